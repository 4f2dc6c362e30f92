"""Hugging Face Trainer with a generated optimizer, on a tiny model made here.

    python examples/hf_trainer.py

Trainer passes ``TrainingArguments.weight_decay``, 0 unless set, to the optimizer, so set it there.
It does not pass ``TrainingArguments.learning_rate`` to a class of yours: put that into the pair.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments


def examples(count: int = 64, length: int = 16) -> list[dict[str, list[int]]]:
    """Sequences that count upwards, which a model can learn in a few steps."""
    tokens = [[(i + j) % 32 for j in range(length)] for i in range(count)]
    return [{"input_ids": x, "labels": x} for x in tokens]


def make_trainer(folder: Path, steps: int = 40, **options: Any) -> Trainer:
    """A Trainer that checkpoints into ``folder`` every ten steps."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=4e-3,
        weight_decay=0.01,
        per_device_train_batch_size=16,
        save_steps=10,
        logging_steps=5,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **options,
    )
    return Trainer(
        model=GPT2LMHeadModel(config),
        args=args,
        train_dataset=examples(),
        optimizer_cls_and_kwargs=(AdamWStoSign, {"lr": args.learning_rate, "seed": 0}),
    )


def main(folder: Path) -> list[float]:
    """Train; returns the logged losses."""
    trainer = make_trainer(folder)
    trainer.train()
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    print(f"loss before {losses[0]:.3f}, after {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/hf_trainer"))
