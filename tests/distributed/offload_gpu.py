"""FSDP2 with CPUOffloadPolicy (parts on the CPU, the mesh on GPUs) against runs without it.

    python -m tests.distributed.offload_gpu            # two GPUs, NCCL

Prints one row per check and exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from signconv.generated.nadam_stosign import NAdamStoSign
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from signconv.runtime import sharded
from signconv.runtime.mesh import part_of
from tests.distributed.training import Model, differences, gradients, here, join, result, together


def given(cls: Any, mesh: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Trained on given gradients; with a mesh sharded and offloaded, else whole on the CPU."""
    options = dict(options)
    model: nn.Module = Model(options.pop("dtype", torch.float32), "cpu" if mesh is None else "cuda")
    if mesh is not None:
        fully_shard(model, mesh=mesh, offload_policy=CPUOffloadPolicy())
    optimizer = cls(model.parameters(), lr=0.01, seed=3, **options)
    for t in range(4):
        for p, g in zip(model.parameters(), gradients(t), strict=True):
            g = g.to(p.dtype)
            if isinstance(p, DTensor):
                assert p.to_local().device.type == "cpu" and mesh.device_type == "cuda"
                p.grad = sharded.wrap(part_of(g, p).clone(), p, p.shape)
            else:
                p.grad = g
        optimizer.step()
        optimizer.zero_grad()
    return result(model, optimizer)


def trained(mesh: Any, offload: bool) -> dict[str, Any]:
    """Forward, backward, step: with offload on the CPU backend, without on the kernel."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)).cuda()
    more = {"offload_policy": CPUOffloadPolicy()} if offload else {}
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh, **more)
    optimizer = AdamWStoSign(model.parameters(), lr=0.01, seed=3)
    for t in range(4):
        rng = torch.Generator().manual_seed(10 * t + mesh.get_local_rank())
        model(torch.randn(16, 64, generator=rng).cuda()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {str(i): here(p) for i, p in enumerate(model.parameters())}


def run(rank: int, ranks: int, folder: str) -> None:
    mesh = join(rank, ranks, Path(folder), "cuda")
    failed = 0
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("AdamWStoSign", AdamWStoSign, {}),
        ("AdamWStoSign, bf16, split", AdamWStoSign, {"dtype": torch.bfloat16, "master": "split"}),
        ("AdamWStoSign, skip_nonfinite", AdamWStoSign, {"skip_nonfinite": True}),
        ("NAdamStoSign", NAdamStoSign, {}),
        ("LAMB, gathered", LAMB, {}),
        ("AdamWStoSign, reference", AdamWStoSign, {"backend": "reference"}),
    ]
    rows = []
    for name, cls, options in cases:
        parts: list[Any] = [None] * ranks
        dist.all_gather_object(parts, given(cls, mesh, options))
        rows.append((name, len(differences(together(parts), given(cls, None, options)))))
    rows.append(("trained, against none offloaded", 0))
    rows[-1] = (rows[-1][0], len(differences(trained(mesh, True), trained(mesh, False))))
    for name, found in rows:
        wrong = torch.tensor(found, device="cuda")
        dist.all_reduce(wrong)
        failed += int(wrong)
        if rank == 0:
            print(f"{name:<42} {'ok' if int(wrong) == 0 else f'{int(wrong)} differ'}", flush=True)
    dist.destroy_process_group()
    if failed:
        raise SystemExit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    ranks = parser.parse_args().ranks
    if torch.cuda.device_count() < ranks:
        print(f"needs {ranks} GPUs, this host has {torch.cuda.device_count()}")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(run, (ranks, folder), nprocs=ranks)
        except (
            torch.multiprocessing.ProcessExitedException,
            torch.multiprocessing.ProcessRaisedException,
        ) as error:
            print(f"failed: {error}")
            return 1
    print("all equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
