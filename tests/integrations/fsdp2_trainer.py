"""Hugging Face Trainer with FSDP2, on the GPUs of a host (accelerate has FSDP on no CPU):

    python -m torch.distributed.run --nproc-per-node 2 -m tests.integrations.fsdp2_trainer FOLDER

Accumulation, clipping, and a resume in mid-epoch from Trainer's own checkpoint, bit for bit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer

from signconv.verification.bits import different
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from hf_trainer import make_trainer

STEPS, SAVED = 12, 5


def started(folder: Path, cls: Any, rows: int) -> Trainer:
    trainer = make_trainer(
        folder,
        steps=STEPS,
        fsdp=True,
        fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["GPT2Block"]},
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
    )
    trainer.args.save_steps = trainer.state.save_steps = SAVED
    trainer.args.per_device_train_batch_size = rows
    trainer.optimizer_cls_and_kwargs = (cls, {"lr": 4e-3, "seed": 0})
    return trainer


def everything(trainer: Trainer) -> dict[str, Tensor]:
    optimizer: Any = trainer.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    made: dict[str, Tensor] = {}
    for i, p in enumerate(p for g in inner.param_groups for p in g["params"]):
        assert isinstance(p, DTensor), type(p)
        parts = {"": p, **inner.state[p]}
        made |= {
            f"{i} {n}": (x.full_tensor() if isinstance(x, DTensor) else x).detach().cpu()
            for n, x in parts.items()
            if isinstance(x, Tensor)
        }
    return made


def main(folder: Path) -> int:
    failed = 0
    for cls in (AdamWStoSign, AdamWFP4):
        mine = folder / cls.__name__
        first = started(mine, cls, 4)
        first.train()
        ranks = dist.get_world_size()
        losses = [x["loss"] for x in first.state.log_history if "loss" in x]
        whole = everything(first)
        again = started(mine, cls, 4)
        again.train(resume_from_checkpoint=str(mine / f"checkpoint-{SAVED}"))
        resumed = everything(again)
        same = whole.keys() == resumed.keys()
        apart = [n for n in whole if not same or different(whole[n], resumed[n])]
        ok = same and not apart and losses[-1] < losses[0]
        failed += not ok
        if dist.get_rank() == 0:
            word = "ok" if ok else f"WRONG {losses} {apart[:8]}"
            print(f"Trainer, FSDP2, {cls.__name__}, ranks {ranks}: resumed, same bits  {word}")
    dist.destroy_process_group()
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
