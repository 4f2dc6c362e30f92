"""What each process of test_meshes.py does: parameters cut in every way over two dimensions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.adamw_stosign_golden import AdamWStoSignGolden
from signconv.generated.came import CAME
from signconv.generated.lamb import LAMB
from signconv.generated.normuon import NorMuon
from signconv.generated.prodigy import Prodigy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import signconv
from signconv.dsl import Optimizer, ema, grad, hyper, mean, numel, sqrt
from signconv.runtime import mesh as geometry
from signconv.runtime import sharded
from signconv.runtime.compat import HAS_LLVM
from signconv.runtime.optimizer import FusedOptimizer
from tests.distributed import dealing
from tests.distributed.training import State, join, load, save

R, S0, S1, S2 = Replicate(), Shard(0), Shard(1), Shard(2)
#: Shapes and placements over a mesh of 2 by 2: cuts between blocks and inside them, parts without
#: elements, rows that end in partial blocks.
CUT: list[tuple[tuple[int, ...], tuple[Any, Any]]] = [
    ((6, 128), (S0, S1)),  # fully_shard over a row-wise parallel layer
    ((6, 128), (R, S1)),
    ((6, 128), (S1, S0)),
    ((3, 256), (S1, S1)),
    ((3, 96), (S1, R)),  # 48 columns: inside a block
    ((5, 100), (S0, S1)),  # 50
    ((5, 127), (R, S1)),  # 64 and 63
    ((4, 33), (S1, S1)),
    ((9, 64), (S0, S0)),  # 3, 2, 2, 2 rows, one after the other
    ((1, 64), (S0, S1)),
    ((256,), (S0, S0)),
    ((128,), (S0, R)),
    ((70,), (S0, S0)),
    ((4, 3, 64), (S0, S1)),  # 2 of 3, but 3 of 6 block scales
    ((4, 4, 40), (S0, S1)),
    ((2, 3, 64), (S2, S0)),  # along what is no row and no column of a matrix
    ((3, 2, 2, 32), (S1, R)),
    ((), (R, R)),
]
#: How matrices are cut that are dealt out.
DEALT: dict[str, tuple[Any, Any]] = {"replicas": (R, S0), "both": (S0, S1), "columns": (S1, R)}
Case = tuple[type[FusedOptimizer], dict[str, Any]]


class Counted(Optimizer):
    """No reduction, and yet a step that is not that of a part."""

    lr = hyper(1e-2, ge=0)
    m = ema(grad, 0.9)
    update = m / sqrt(numel)


class Blocked(Optimizer):
    """A state that is one number a block, of parts that end inside one too."""

    lr = hyper(1e-2, ge=0)
    v = ema(mean(grad**2, axis="block"), 0.9)
    update = grad / (sqrt(v) + 1e-3)


def cases() -> dict[str, Case]:
    """Name -> class and options."""
    plain = {"backend": "reference"}
    bf16 = {"dtype": torch.bfloat16, **plain}
    fp32 = signconv.compile("adamw", convert="stosign", state="fp32")
    found: dict[str, Case] = {
        "adamw": (AdamW, bf16),
        "adamw stosign": (AdamWStoSign, plain),
        "golden": (AdamWStoSignGolden, bf16),
        "fp4": (AdamWFP4, plain),
        "fp32 state": (fp32, bf16),
        "lamb": (LAMB, plain),
        "came": (CAME, plain),
        "normuon": (NorMuon, plain),
        "numel": (signconv.compile(Counted), plain),
        "blocks": (signconv.compile(Blocked), plain),
        # Sums over all tensors: float64 has room for those of so few, in whatever order
        "prodigy": (Prodigy, plain),
        "prodigy fp32 state": (signconv.compile("prodigy", state="fp32"), plain),
        "clip": (signconv.compile("adamw", convert="clip:norm=0.05,stosign"), plain),
        "split": (AdamWStoSign, {"master": "split", **bf16}),
        "skip": (AdamWStoSign, {"skip_nonfinite": True, **plain}),
    }
    # Each process compiles for itself; tests/runtime/test_columns.py has their kernels
    every = os.environ.get("SIGNCONV_RANKS") == "all"
    if every and HAS_LLVM:
        found["adamw stosign cpu"] = (AdamWStoSign, {"dtype": torch.bfloat16, "backend": "cpu"})
        found["fp32 state cpu"] = (fp32, {"dtype": torch.bfloat16, "backend": "cpu"})
    if every and os.environ.get("TRITON_INTERPRET") == "1":
        found["adamw stosign triton"] = (
            AdamWStoSign,
            {"dtype": torch.bfloat16, "backend": "triton"},
        )
        found["fp32 state triton"] = (fp32, {"dtype": torch.bfloat16, "backend": "triton"})
    return found


def whole_tensors(t: int, scale: float) -> list[Tensor]:
    rng = torch.Generator().manual_seed(500 + t)
    return [torch.randn(shape, generator=rng) * scale for shape, _ in CUT]


def started(
    case: Case, mesh: Any, device: str = "cpu"
) -> tuple[list[nn.Parameter], FusedOptimizer]:
    """Parameters, cut where there is a mesh, and a fresh optimizer."""
    cls, options = case
    options = {"seed": 7, **options}
    dtype = options.pop("dtype", torch.float32)
    made = [x.to(device, dtype) for x in whole_tensors(0, 1.0)]
    if mesh is not None:
        made = [distribute_tensor(x, mesh, p) for x, (_, p) in zip(made, CUT, strict=True)]
    params = [nn.Parameter(x) for x in made]
    return params, cls(params, **options)


def stepped(
    params: list[nn.Parameter], optimizer: FusedOptimizer, steps: range, poison: bool = False
) -> None:
    """Steps with given gradients, each rank taking its part of them."""
    for t in steps:
        for i, (p, g) in enumerate(zip(params, whole_tensors(1 + t, 1e-2), strict=True)):
            if poison and t == 1 and i == 1:
                g[0, 5] = torch.inf
            p.grad = part_of(g.to(p.device, p.dtype), p)
        optimizer.step()
        optimizer.zero_grad()


def part_of(x: Tensor, p: Any) -> Tensor:
    """This rank's part of ``x``, placed as ``p`` is."""
    if not isinstance(p, DTensor):
        return x
    return sharded.wrap(geometry.part_of(x, p).clone(), p, p.shape)


def results(params: list[Any], optimizer: FusedOptimizer) -> State:
    """Every parameter and every state tensor, whole."""
    made: State = {}
    for i, p in enumerate(params):
        name = f"{i} {list(p.shape)}"
        for key, x in {"p": p.detach(), **optimizer.state[p]}.items():
            made[f"{name} {key}"] = (x.full_tensor() if isinstance(x, DTensor) else x).cpu().clone()
    return made


def run(rank: int, ranks: int, folder: str, steps: int) -> None:
    """Every case on this rank, then models cut by torch itself, and checkpoints."""
    join(rank, ranks, Path(folder), "cpu")
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("dp", "tp"))
    found: dict[str, Any] = {}
    for name, case in cases().items():
        params, optimizer = started(case, mesh)
        stepped(params, optimizer, range(steps), poison=name == "skip")
        found[name] = results(params, optimizer)
    found["placed"] = _placed(mesh)
    found["gathered"] = _gathered(mesh)
    found["own"] = _own(mesh)
    found["master weights"] = _master_weights(mesh)
    found["evaluated"] = evaluated(mesh)
    found["parallel"] = parallel(mesh, Path(folder))
    for name, placed in DEALT.items():
        found[f"dealt {name}"] = dealing.results(mesh, placed)
        found[f"counted {name}"] = dealing.counted(mesh, placed)
    torch.save(found, Path(folder) / f"found{rank}.pt")
    dist.destroy_process_group()


def _placed(mesh: Any) -> list[str]:
    """Parts that are not where torch put them; none should be."""
    params, _ = started((AdamW, {}), mesh)
    return [
        f"{list(p.shape)} {p.placements}"
        for p, x in zip(params, whole_tensors(0, 1.0), strict=True)
        if not torch.equal(p.to_local(), geometry.part_of(x, p))
    ]


def _gathered(mesh: Any) -> list[int]:
    """Which tensors a program with block scales cannot step in parts."""
    params, optimizer = started((AdamWStoSign, {"backend": "reference"}), mesh)
    stepped(params, optimizer, range(1))
    program, state = optimizer.program, optimizer.state
    return [i for i, p in enumerate(params) if not sharded.is_local(p, program, state[p])]


def _own(mesh: Any) -> Tensor:
    """What a user keeps beside the state of a parameter that is gathered, placed otherwise."""
    params, optimizer = started((AdamWStoSign, {"backend": "reference"}), mesh)
    stepped(params, optimizer, range(1))
    gathered = next(p for p in params if p.shape == (70,))
    optimizer.state[gathered]["mine"] = distribute_tensor(torch.arange(10.0), mesh, [R, R])
    stepped(params, optimizer, range(1, 3))
    return optimizer.state[gathered]["mine"].full_tensor()


def _master_weights(mesh: Any) -> State:
    """Exact fp32 weights out of cut parameters."""
    params, optimizer = started(cases()["split"], mesh)
    stepped(params, optimizer, range(2))
    model = nn.Module()
    model.weights = nn.ParameterList(params)
    exact = optimizer.master_weights(model)
    return {k: (x.full_tensor() if isinstance(x, DTensor) else x) for k, x in exact.items()}


def evaluated(mesh: Any) -> list[State]:
    """Averages in place of the parameters, and training that goes on after them."""
    averaged = signconv.compile("adamw", convert="clip:norm=0.05,ema:beta=0.5")
    params, optimizer = started((averaged, {"backend": "reference"}), mesh)
    stepped(params, optimizer, range(2))
    optimizer.eval()
    made = [results(params, optimizer)]
    optimizer.train()
    stepped(params, optimizer, range(2, 3))
    return [*made, results(params, optimizer)]


# ---------------------------------------------------------------- models cut by torch


class Model(nn.Module):
    """Two tensor-parallel layers; sizes that leave uneven parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(96, 130), nn.Linear(130, 96)


def _tensor_parallel(model: nn.Module, mesh: Any) -> None:
    parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})


def _both(model: nn.Module, mesh: Any) -> None:
    _tensor_parallel(model, mesh)
    fully_shard(model, mesh=mesh["dp"])


def _hybrid(model: nn.Module, mesh: Any) -> None:
    fully_shard(model, mesh=mesh)


def _fully(model: nn.Module, mesh: Any) -> None:
    fully_shard(model, mesh=mesh._flatten("all") if hasattr(mesh, "_flatten") else mesh["dp"])


def _columns(model: nn.Module, mesh: Any) -> None:
    fully_shard(model, mesh=mesh["dp"], shard_placement_fn=lambda p: Shard(p.dim() - 1))


WAYS: dict[str, Callable[[nn.Module, Any], None]] = {
    "tensor parallel": _tensor_parallel,
    "fully sharded, tensor parallel": _both,
    "hybrid": _hybrid,
    "fully sharded": _fully,
    "columns": _columns,
}


def trained(model: nn.Module, optimizer: FusedOptimizer, steps: range) -> None:
    """Steps with given gradients."""
    for t in steps:
        rng = torch.Generator().manual_seed(900 + t)
        for p in model.parameters():
            g = torch.randn(p.shape, generator=rng) * 1e-2
            p.grad = part_of(g.to(p.device), p)
        optimizer.step()
        optimizer.zero_grad()


def parallel(mesh: Any, folder: Path) -> dict[str, State]:
    """Each way after three steps; then from a checkpoint of the way before, two steps on."""
    made: dict[str, State] = {}
    saved: Path | None = None
    for name, cut in WAYS.items():
        model = Model()
        cut(model, mesh)
        optimizer = AdamWStoSign(model.parameters(), seed=7, backend="reference")
        trained(model, optimizer, range(3))
        made[name] = results([*model.parameters()], optimizer)
        if saved is not None:
            other = Model()
            cut(other, mesh)
            fresh = AdamWStoSign(other.parameters(), seed=1, backend="reference")
            load(saved, other, fresh)
            trained(other, fresh, range(3, 5))
            made[f"{name}, resumed"] = results([*other.parameters()], fresh)
        saved = folder / name.replace(" ", "-").replace(",", "")
        save(saved, model, optimizer)
    return made
