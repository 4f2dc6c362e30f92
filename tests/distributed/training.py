"""The same training unsharded and on several ranks: what the tests and two_gpus.py compare."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

import signconv
from signconv.runtime.compat import HAS_LLVM
from signconv.runtime.formats import named
from signconv.runtime.hybrid import Hybrid
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference.memory import load_moment, store_moment
from signconv.verification.bits import different
from tests.support import generated_classes
from tests.support.entries import CORE, entry_of

#: Cuts between and inside blocks, rows of 32 and not, uneven parts, ranks without any.
SHAPES = (
    (8, 64),
    (5, 32),  # uneven; on 4 ranks the last has none
    (1, 64),  # only the first rank has any
    (64,),  # on 3 ranks cut inside blocks
    (256,),
    (33,),
    (127,),  # on 2 ranks the first part has two whole blocks, the second a partial one
    (6, 7),
    (64, 3),
    (7, 1),
    (5, 33),
    (3, 2, 32),
)
#: A moment that starts from the parameter.
ANCHORED = '''\
from signconv.dsl import Optimizer


class Anchored(Optimizer):
    """Towards an average of past weights."""

    lr = hyper(1e-2, ge=0)
    beta = hyper(0.9, ge=0, lt=1)

    anchor = state(init=param)
    anchor.next = beta * anchor.prev + (1 - beta) * param
    update = grad + param - anchor
'''
State = dict[str, Any]


class Model(nn.Module):
    """Parameters of every shape, without a forward: gradients are given."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        made = [torch.randn(s, generator=rng).to(device, dtype) for s in SHAPES]
        self.weights = nn.ParameterList(made)


def gradients(t: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1000 + t)
    return [torch.randn(s, generator=rng) * 1e-2 for s in SHAPES]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    edit: Callable[[int, list[Tensor]], None] | None = None,
    hessian: bool = False,
) -> None:
    """Steps with given gradients, each rank taking its part of them; hessian: of that extra input
    too, at every second step."""
    for t in steps:
        found = gradients(t)
        if edit is not None:
            edit(t, found)
        for p, g in zip(model.parameters(), found, strict=True):
            g = g.to(p.device, p.dtype)
            p.grad = part_of(g, p) if isinstance(p, DTensor) else g
        given: dict[str, Any] = {}
        if hessian and t % 2 == 0:
            drawn = zip(model.parameters(), gradients(t + 100), strict=True)
            parts = (part_of(h, p) if isinstance(p, DTensor) else h for p, h in drawn)
            given["hessian"] = [*parts]
        optimizer.step(**given)
        optimizer.zero_grad()


def part_of(x: Tensor, p: DTensor) -> DTensor:
    """This rank's part of a tensor that every rank has, placed as ``p`` is."""
    for dim, placement in enumerate(p.placements):
        if isinstance(placement, Shard):
            parts = x.chunk(p.device_mesh.size(dim), placement.dim)
            rank = p.device_mesh.get_local_rank(dim)
            x = parts[rank] if rank < len(parts) else x.narrow(placement.dim, 0, 0)
    return DTensor.from_local(
        x, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


def here(x: Tensor) -> Tensor:
    """What this rank has of a tensor, on the CPU."""
    return (x.to_local() if isinstance(x, DTensor) else x).detach().cpu().clone()


def result(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """What this rank has of every parameter and every state tensor."""
    made = {}
    for i, p in enumerate(model.parameters()):
        made[f"{i} {list(p.shape)}"] = here(p)
        for name, value in optimizer.state[p].items():
            made[f"{i} {list(p.shape)} {name}"] = here(value)
    return made


def together(parts: list[State]) -> State:
    """The results of all ranks as one; a scalar must be the same everywhere."""
    made = {}
    for name, first in parts[0].items():
        found = [x[name] for x in parts]
        if first.dim() == 0:
            assert all(torch.equal(x, first) for x in found), f"{name} differs between ranks"
        made[name] = torch.cat(found) if first.dim() else first
    return made


def differences(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names whose bits or shapes differ, or that only one side has."""
    found = []
    for k in wanted:
        if k not in got or got[k].shape != wanted[k].shape or different(got[k], wanted[k]) > 0:
            found.append(k)
    return [*found, *(set(got) - set(wanted))]


def cases() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> class and options; every second of CORE (all generated optimizers where
    SIGNCONV_RANKS=all), and the storages of a few."""
    every = generated_classes()
    plain = {"backend": "reference"}
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name, cls in every.items():
        if entry_of(cls) in CORE[::2] or os.environ.get("SIGNCONV_RANKS") == "all":
            found[name] = (cls, plain)
    for name in ("adamw_stosign", "came", "lamb", "nadam_stosign"):
        cls = every[name]
        # CAME's usual lr moves some bf16 weights by less than they resolve
        more = {**plain, "lr": 0.05} if name == "came" else plain
        found[f"{name} bf16"] = (cls, {"dtype": torch.bfloat16, **more})
        found[f"{name} split"] = (cls, {"dtype": torch.bfloat16, "master": "split", **more})
    found["adamw_stosign_fp4 bf16"] = (
        every["adamw_stosign_fp4"],
        {"dtype": torch.bfloat16, **plain},
    )
    for name in ("adamw_stosign", "lamb") if HAS_LLVM else ():
        found[f"{name} cpu"] = (every[name], {"backend": "cpu"})
    if os.environ.get("TRITON_INTERPRET") == "1":
        found["nadam_stosign triton"] = (every["nadam_stosign"], {"backend": "triton"})
        split = {"dtype": torch.bfloat16, "master": "split", "backend": "triton"}
        found["adamw_stosign triton split"] = (every["adamw_stosign"], split)
    found["mixed"] = (mixed, {**plain})
    return found


def mixed(params: Any, **options: Any) -> Hybrid:
    """A hybrid of matrices and vectors, in the place of a class."""
    params = [*params]
    wide, thin = [p for p in params if p.dim() > 1], [p for p in params if p.dim() < 2]
    skip = options.pop("skip_nonfinite", False)  # asked for by one alone
    first = generated_classes()["lamb"](wide, **options)
    clipping = signconv.compile("adamw", convert="clip:norm=0.05,stosign")
    return signconv.hybrid(first, clipping(thin, skip_nonfinite=skip, **options))


def extra_cases() -> dict[str, type[FusedOptimizer]]:
    """Optimizers with an extra input: of one each rank steps its parts, and the norms of the other
    take whole parameters."""
    convert = "clip:over=tensor"
    return {"near": signconv.compile("sophia"), "far": signconv.compile("sophia", convert=convert)}


def formerly(optimizer: FusedOptimizer) -> dict[str, Any]:
    """Its state_dict as releases before E5M3 and E6M2 wrote it."""
    assert optimizer.program.former is not None
    was, formats = optimizer.program.former
    saved = copy.deepcopy(optimizer.state_dict())
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    for m in optimizer.program.moments:
        for shape, entry in zip(shapes, saved["state"].values(), strict=True):
            codes, scale = entry[m.name], entry[f"{m.name}_scale"]
            x = load_moment(codes, scale, m.stored, shape.numel())
            if shape.numel() // (shape[0] if len(shape) > 1 else 1) % 32:
                entry[m.name] = x.view(shape).to(torch.bfloat16)  # no partial blocks then
                del entry[f"{m.name}_scale"]
            elif m.name in formats:
                none = torch.zeros_like(x, dtype=torch.int32)
                store_moment(codes, scale, x, none, named(formats[m.name]))
    for group in saved["param_groups"]:
        group["program"] = was
    return saved


def distribute(model: Model, mesh: Any) -> None:
    """The parameters that fully_shard makes, in a tenth of its time."""
    for i, p in enumerate(model.weights):
        x = p.detach()
        made = part_of(
            x,
            DTensor.from_local(
                x[:0], mesh, [Shard(0)], run_check=False, shape=x.shape, stride=x.stride()
            ),
        )
        model.weights[i] = nn.Parameter(made)


def start(
    cls: Any,
    options: Mapping[str, Any],
    mesh: Any,
    device: str = "cpu",
    by: Callable[..., Any] = fully_shard,
) -> tuple[nn.Module, FusedOptimizer]:
    """A model, sharded over ``mesh`` where there is one, and a fresh optimizer."""
    options = {"seed": 7, **options}
    model = Model(options.pop("dtype", torch.float32), device)
    if mesh is not None:
        by(model, mesh=mesh)
    return model, cls(model.parameters(), **options)


def save(folder: Path, model: nn.Module, optimizer: FusedOptimizer, ahead: bool = False) -> Any:
    """As torch.distributed.checkpoint's users do; one process alone saves plain tensors.

    ahead: return the future of a save that goes on while training does.
    """
    parts = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    if ahead:  # its own group: collectives of training go on beside it
        return dcp.async_save(parts, checkpoint_id=folder, process_group=dist.new_group())
    return dcp.save(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(folder: Path, model: nn.Module, optimizer: FusedOptimizer) -> None:
    parts = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.load(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_model_state_dict(model, parts["model"])
    set_optimizer_state_dict(model, optimizer, parts["optimizer"])


def spawned(run: Callable[..., None], arguments: tuple[Any, ...], seconds: float) -> None:
    """``run(rank, *arguments)`` in as many processes as the first argument says; a failed test
    where they do not finish."""
    context = torch.multiprocessing.start_processes(
        run, arguments, nprocs=arguments[0], join=False, start_method="spawn"
    )
    assert context is not None
    deadline = time.monotonic() + seconds
    while not context.join(timeout=5):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{arguments[0]} ranks did not finish in {seconds:g} s")


def join(rank: int, ranks: int, folder: Path, device: str) -> Any:
    """Enter the process group and return its mesh."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=ranks,
    )
    return init_device_mesh(device, (ranks,))
