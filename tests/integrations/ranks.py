"""What each process of the tests with several ranks does: torchtitan's and DeepSpeed's trainers'
parts on two CPUs.  Called by name; returns nothing, and fails where something differs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from signconv.verification.bits import different
from tests.distributed.training import join

SHAPES = (64, 96, 8)


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    a, b, c = SHAPES
    return nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.Linear(b, c)).to(dtype)


def batch(t: int, rank: int = 0) -> Tensor:
    return torch.randn(4, SHAPES[0], generator=torch.Generator().manual_seed(10 * t + rank))


def whole(net: nn.Module) -> dict[str, Tensor]:
    return {
        n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for n, p in net.named_parameters()
    }


def titan_container(net: nn.Module) -> Any:
    """Two kinds of ours, and torchtitan's own AdamW for the norm."""
    from torchtitan.components.optimizer import ParamGroupConfig

    from signconv.integrations.torchtitan import OptimizersContainer

    names = {r"1\.": "AdamW", r"0\.": "signconv-adamw-fp4", ".*": "signconv-adamw-stosign"}
    groups = [
        ParamGroupConfig(
            pattern=pattern, optimizer_name=name, optimizer_kwargs={"lr": 1e-2, "weight_decay": 0.1}
        )
        for pattern, name in names.items()
    ]
    config = OptimizersContainer.Config(param_groups=groups, implementation="for-loop")
    return config.build(model_parts=[net])


def titan(rank: int, ranks: int, folder: str, part: str) -> None:
    """part "first": train, save by DCP, go on; "second": load on another number of ranks and go on.

    Both leave the parameters they end with; data are the same on all ranks.
    """
    mesh = join(rank, ranks, Path(folder) / part, "cpu")
    net = model()
    for layer in net:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    container = titan_container(net)

    def train(steps: range) -> None:
        for t in steps:
            net(batch(t)).square().mean().backward()
            container.step()
            container.zero_grad()

    saved = Path(folder) / "checkpoint"
    if part == "first":
        train(range(3))
        dcp.save(
            {"model": net.state_dict(), "optimizer": container.state_dict()}, checkpoint_id=saved
        )
    else:
        there = {"model": net.state_dict(), "optimizer": container.state_dict()}
        dcp.load(there, checkpoint_id=saved)
        net.load_state_dict(there["model"])
        container.load_state_dict(there["optimizer"])
    train(range(3, 6))
    found = whole(net)
    if rank == 0:
        torch.save(found, Path(folder) / f"{part}.pt")
    dist.destroy_process_group()


def deepspeed(rank: int, ranks: int, folder: str, stage: int) -> None:
    """ZeRO with an optimizer of ours: accumulation, clipping, noise that differs between ranks,
    and a resume from DeepSpeed's checkpoint, bit for bit."""
    join(rank, ranks, Path(folder), "cpu")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    import deepspeed as ds
    from signconv.generated.adamw_stosign import AdamWStoSign

    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }

    def start() -> tuple[Any, Any]:
        net = model(torch.bfloat16)
        optimizer = AdamWStoSign(net.parameters(), lr=1e-2)
        engine, *_ = ds.initialize(model=net, optimizer=optimizer, config=config)
        return engine, optimizer

    def train(engine: Any, steps: range) -> list[float]:
        losses = []
        for t in steps:
            for k in range(2):
                loss = engine(batch(2 * t + k, rank).bfloat16()).float().square().mean()
                engine.backward(loss)
                engine.step()
            losses.append(loss.item())
        return losses

    engine, optimizer = start()
    losses = train(engine, range(6))
    assert losses[-1] < losses[0], losses
    (part,) = optimizer.param_groups[0]["params"]
    assert part.numel() < sum(p.numel() for p in engine.module.parameters())
    offsets: list[Any] = [None] * ranks
    dist.all_gather_object(offsets, int(optimizer.state[part]["offset"]))
    assert len({*offsets}) == ranks, offsets
    engine.save_checkpoint(folder)
    train(engine, range(6, 9))
    again, other = start()
    again.load_checkpoint(folder)
    train(again, range(6, 9))
    pairs = zip(engine.module.parameters(), again.module.parameters(), strict=True)
    assert all(different(p, q) == 0 for p, q in pairs)
    (twin,) = other.param_groups[0]["params"]
    for name, value in optimizer.state[part].items():
        assert different(value, other.state[twin][name]) == 0, name
    dist.destroy_process_group()
