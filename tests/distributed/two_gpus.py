"""Sharded training on the GPUs of one host against the unsharded one, bit for bit.

    python -m tests.distributed.two_gpus                          # two GPUs, NCCL
    python -m tests.distributed.two_gpus --device cpu --ranks 3   # gloo

Prints one row per check and exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from signconv.generated.nadam_stosign import NAdamStoSign
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from signconv import compile, gradient_release
from signconv.runtime.optimizer import FusedOptimizer
from tests.distributed import meshes
from tests.distributed.ranks import poison
from tests.distributed.training import differences, join, load, result, save, start, together, train

STORED: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": torch.bfloat16},
    "bf16, split": {"dtype": torch.bfloat16, "master": "split"},
}
Check = Callable[[Any, str, Path], int]


def gathered(mine: dict[str, Any], mesh: Any) -> dict[str, Any]:
    """The parts of all ranks as one result; what every rank has whole must be the same."""
    parts: list[Any] = [None] * mesh.size()
    dist.all_gather_object(parts, mine)
    return together(parts)


def same_bits(cls: type[FusedOptimizer], options: dict[str, Any]) -> Check:
    """Names that differ between sharded and unsharded training."""

    def check(mesh: Any, device: str, folder: Path) -> int:
        found = []
        for m in (mesh, None):
            model, optimizer = start(cls, options, m, device)
            edit = poison if "skip_nonfinite" in options else None
            train(model, optimizer, range(4), edit)
            found.append(result(model, optimizer))
        return len(differences(gathered(found[0], mesh), found[1]))

    return check


def checkpoint(mesh: Any, device: str, folder: Path) -> int:
    """Saved by torch.distributed.checkpoint, loaded into an optimizer that never stepped."""
    model, optimizer = start(AdamWStoSign, {}, mesh, device)
    train(model, optimizer, range(2))
    save(folder / "saved", model, optimizer)
    other, fresh = start(AdamWStoSign, {"seed": 1}, mesh, device)
    load(folder / "saved", other, fresh)
    train(model, optimizer, range(2, 4))
    train(other, fresh, range(2, 4))
    return len(differences(result(other, fresh), result(model, optimizer)))


def ddp_and_fsdp(mesh: Any, device: str, folder: Path) -> int:
    """Forward, backward, step: the ranks of DDP agree; fully_shard runs and is as good."""
    losses = []
    for way in ("ddp", "fsdp"):
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))
        model = model.to(device)
        if way == "ddp":
            model = DistributedDataParallel(model)
        else:
            fully_shard(model, mesh=mesh)
        optimizer = AdamWStoSign(model.parameters(), lr=1e-3)
        rng = torch.Generator().manual_seed(1 + mesh.get_rank())
        history = []
        for _ in range(30):
            x = torch.randn(32, 64, generator=rng).to(device)
            loss = (model(x) - x.flip(1)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            history.append(loss.item())
        losses.append(history[-1] / history[0])
        if way == "ddp":
            parts: list[Any] = [None] * mesh.size()
            dist.all_gather_object(parts, [p.detach().cpu() for p in model.parameters()])
            if not all(torch.equal(a, b) for q in parts for a, b in zip(parts[0], q, strict=True)):
                return 1
    return int(losses[0] > 0.9 or losses[1] > 0.9)


def replicas(mesh: Any, device: str, folder: Path) -> int:
    """HSDP: two replicas, each sharded; every replica has the unsharded bits."""
    ranks = mesh.size()
    grid = init_device_mesh(device, (2, ranks // 2), mesh_dim_names=("replicas", "parts"))
    model, optimizer = start(AdamWStoSign, {"skip_nonfinite": True}, grid, device)
    plain, unsharded = start(AdamWStoSign, {"skip_nonfinite": True}, None, device)
    train(model, optimizer, range(3), poison)
    train(plain, unsharded, range(3), poison)
    parts: list[Any] = [None] * ranks
    dist.all_gather_object(parts, result(model, optimizer))
    halves = (parts[: ranks // 2], parts[ranks // 2 :])
    return sum(len(differences(together(x), result(plain, unsharded))) for x in halves)


def any_cut(cls: type[FusedOptimizer], options: dict[str, Any], shape: tuple[int, int]) -> Check:
    """Names that differ where parameters are cut in every way over a mesh of two dimensions."""

    def check(mesh: Any, device: str, folder: Path) -> int:
        grid = init_device_mesh(device, shape, mesh_dim_names=("dp", "tp"))
        found = []
        for m in (grid, None):
            params, optimizer = meshes.started((cls, options), m, device)
            meshes.stepped(params, optimizer, range(3), "skip_nonfinite" in options)
            found.append(meshes.results(params, optimizer))
        return len(differences(*found))

    return check


def cut_by_torch(way: str, shape: tuple[int, int]) -> Check:
    """The same of a model that torch cuts, and of two steps more from its checkpoint on a flat
    mesh."""

    def check(mesh: Any, device: str, folder: Path) -> int:
        grid = init_device_mesh(device, shape, mesh_dim_names=("dp", "tp"))
        plain, cut, other = (meshes.Model().to(device) for _ in range(3))
        meshes.WAYS[way](cut, grid)
        fully_shard(other, mesh=mesh)
        first, second = (AdamWStoSign(m.parameters(), seed=7) for m in (plain, cut))
        fresh = AdamWStoSign(other.parameters(), seed=1)
        wrong = 0
        for model, optimizer in ((plain, first), (cut, second)):
            meshes.trained(model, optimizer, range(3))
        wrong += len(differences(*(
            meshes.results([*m.parameters()], o) for m, o in ((cut, second), (plain, first))
        )))  # fmt: skip
        save(folder / f"{way} {shape}", cut, second)
        load(folder / f"{way} {shape}", other, fresh)
        for model, optimizer in ((plain, first), (other, fresh)):
            meshes.trained(model, optimizer, range(3, 5))
        wrong += len(differences(*(
            meshes.results([*m.parameters()], o) for m, o in ((other, fresh), (plain, first))
        )))  # fmt: skip
        return wrong

    return check


def released_and_averaged(mesh: Any, device: str, folder: Path) -> int:
    """Tensors that differ between release that averages inside backward and a step behind DDP."""
    nets: list[nn.Module] = []
    optimizers = []
    for _ in range(2):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64)]
        nets.append(nn.Sequential(*layers).to(device))
        optimizers.append(AdamWStoSign(nets[-1].parameters(), lr=1e-2, seed=0))
    ddp = DistributedDataParallel(nets[0])
    gradient_release(optimizers[1], average=True)
    rng = torch.Generator().manual_seed(1 + mesh.get_rank())
    for _ in range(5):
        x = torch.randn(32, 64, generator=rng).to(device)
        for net, optimizer in zip((ddp, nets[1]), optimizers, strict=True):
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    pairs = zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    return sum(not torch.equal(a, b) for a, b in pairs)


def checks(ranks: int) -> dict[str, Check]:
    made: dict[str, Check] = {}
    clipped = compile("adamw", convert="clip:norm=0.05,stosign")
    for cls, names in ((AdamWStoSign, STORED), (NAdamStoSign, ["bf16"]), (LAMB, ["fp32", "bf16"])):
        for name in names:
            made[f"{cls.__name__}, {name}: same bits"] = same_bits(cls, STORED[name])
    made["one NaN skips the step everywhere"] = same_bits(AdamWStoSign, {"skip_nonfinite": True})
    made["checkpoint into a fresh optimizer"] = checkpoint
    made["DDP ranks agree, DDP and FSDP2 learn"] = ddp_and_fsdp
    made["release, averaged in backward: DDP's bits"] = released_and_averaged
    shapes = [(1, ranks), (ranks, 1)] + ([(2, ranks // 2)] if ranks in (4, 8) else [])
    for shape in shapes:
        size = f"{shape[0]} x {shape[1]}"
        for name in STORED:
            made[f"any cut, {size}, {name}: same bits"] = any_cut(AdamWStoSign, STORED[name], shape)
        made[f"any cut, {size}, fp4: same bits"] = any_cut(AdamWFP4, STORED["bf16"], shape)
        made[f"any cut, {size}, LAMB: same bits"] = any_cut(LAMB, {}, shape)
        made[f"any cut, {size}, clipped: same bits"] = any_cut(clipped, {}, shape)
        made[f"any cut, {size}, skipped"] = any_cut(AdamWStoSign, {"skip_nonfinite": True}, shape)
        for way in meshes.WAYS:
            made[f"{way}, {size}, resumed"] = cut_by_torch(way, shape)
    if ranks % 2 == 0 and ranks >= 4:
        made["two replicas of shards: same bits"] = replicas
    return made


def run(rank: int, ranks: int, device: str, folder: str) -> None:
    mesh = join(rank, ranks, Path(folder), device)
    failed = 0
    for name, check in checks(ranks).items():
        wrong = torch.tensor(check(mesh, device, Path(folder)), device=device)
        dist.all_reduce(wrong)
        failed += int(wrong)
        if rank == 0:
            print(f"{name:<50} {'ok' if int(wrong) == 0 else f'{int(wrong)} differ'}", flush=True)
    dist.destroy_process_group()
    if failed:
        raise SystemExit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    where = "gloo, CPU"
    if options.device == "cuda":
        if torch.cuda.device_count() < options.ranks:
            print(f"needs {options.ranks} GPUs, this host has {torch.cuda.device_count()}")
            return 2
        where = f"NCCL, {torch.cuda.get_device_name()}"
    print(f"{options.ranks} ranks, {where}, torch {torch.__version__}", flush=True)
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.ranks, options.device, folder)
        try:
            torch.multiprocessing.spawn(run, arguments, nprocs=options.ranks)
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
