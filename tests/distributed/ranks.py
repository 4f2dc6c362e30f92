"""What each process of test_sharded.py does; it writes down what it finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.came import CAME
from signconv.generated.lamb import LAMB
from signconv.generated.muon import Muon
from signconv.generated.nadam_stosign import NAdamStoSign
from signconv.generated.prodigy import Prodigy
from signconv.generated.s3 import S3
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import signconv
from signconv.runtime.optimizer import FusedOptimizer
from tests.distributed import dealing
from tests.distributed.training import (
    State,
    cases,
    differences,
    distribute,
    extra_cases,
    formerly,
    here,
    join,
    load,
    mixed,
    part_of,
    result,
    save,
    start,
    train,
)

#: LLVM takes its time in every process; the reference starts at once.
REFERENCE = {"backend": "reference"}

CHECKPOINTED: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw stosign": (AdamWStoSign, REFERENCE),
    "nadam stosign": (NAdamStoSign, REFERENCE),
    "lamb": (LAMB, REFERENCE),
    "came": (CAME, REFERENCE),
    "muon": (Muon, REFERENCE),
    "prodigy": (Prodigy, REFERENCE),
    "adamw fp4": (AdamWFP4, REFERENCE),
    "mixed": (mixed, REFERENCE),
    "split": (AdamWStoSign, {"dtype": torch.bfloat16, "master": "split", "backend": "reference"}),
}


def poison(t: int, grads: list[Tensor]) -> None:
    """At step 1 one element of the first row, which only the first rank has, is NaN."""
    if t == 1:
        grads[0][0, 3] = float("nan")


def run(rank: int, ranks: int, folder: str, anchored: str) -> None:
    """Every case on this rank, then checkpoints, refusals and the rest."""
    mesh = join(rank, ranks, Path(folder), "cpu")
    found: dict[str, Any] = {}
    for name, (cls, options) in {**cases(), "anchored": (_class(anchored), REFERENCE)}.items():
        by = fully_shard if " " in name else distribute
        model, optimizer = start(cls, options, mesh, by=by)
        train(model, optimizer, range(3))
        found[name] = result(model, optimizer)
    found["skip"] = _skip(AdamWStoSign, mesh)
    found["mixed skip"] = _skip(mixed, mesh)
    for name, (cls, options) in CHECKPOINTED.items():
        found[f"checkpoint {name}"] = _checkpoint(Path(folder), name, cls, options, mesh)
    found["full state dict"] = _full_state_dict(mesh)
    found["plain state dict"] = _plain_state_dict(mesh)
    found["former state dict"] = _former_state_dict(mesh)
    found["placements"] = _placements_alike(mesh)
    found["refusals"] = _refusals(mesh)
    found["inspect"] = _inspect(mesh)
    found["master weights"] = _master_weights(mesh)
    found["replicated"] = _replicated(mesh)
    found["scaler"] = _scaler(mesh, rank)
    found["zero"] = _zero()
    found["release"] = _release(mesh)
    found["extras"] = _extras(mesh)
    found["dealt"] = dealing.results(mesh, [Shard(0)])
    found["counted"] = dealing.counted(mesh, [Shard(0)])
    found["failing"] = dealing.failing(mesh, [Shard(0)])
    torch.save(found, Path(folder) / f"found{rank}.pt")
    dist.destroy_process_group()


def _class(path: str) -> type[FusedOptimizer]:
    from signconv.verification.bits import load_class

    return load_class(Path(path))


def _skip(cls: Any, mesh: Any) -> State:
    model, optimizer = start(cls, {"skip_nonfinite": True, "backend": "reference"}, mesh)
    train(model, optimizer, range(3), poison)
    return {**result(model, optimizer), "skipped": torch.tensor(optimizer.skipped_steps)}


def _checkpoint(folder: Path, name: str, cls: Any, options: dict[str, Any], mesh: Any) -> State:
    """Load what another number of ranks wrote into an optimizer that never stepped; go on, the
    next checkpoint being written meanwhile."""
    model, optimizer = start(cls, {**options, "seed": 1}, mesh)
    load(folder / "in" / name, model, optimizer)
    train(model, optimizer, range(2, 4))
    saving = save(folder / "out" / name, model, optimizer, ahead=True)
    train(model, optimizer, range(4, 5))
    saving.result()
    return result(model, optimizer)


def _full_state_dict(mesh: Any) -> State:
    """Through a full, unsharded state_dict, broadcast from rank 0."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = start(AdamWStoSign, REFERENCE, mesh)
    train(model, optimizer, range(2))
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    other = AdamWStoSign(model.parameters(), seed=1, backend="reference")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, other, saved, options=options)
    train(model, other, range(2, 3))
    return result(model, other)


def _plain_state_dict(mesh: Any) -> State:
    """The state_dict of an unsharded run into a sharded optimizer."""
    plain, first = start(AdamWStoSign, REFERENCE, None)
    train(plain, first, range(2))
    model, optimizer = start(AdamWStoSign, {"seed": 1, **REFERENCE}, mesh)
    with torch.no_grad():
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            p.copy_(part_of(q.detach(), p))
    optimizer.load_state_dict(first.state_dict())
    train(model, optimizer, range(2, 3))
    return result(model, optimizer)


def _former_state_dict(mesh: Any) -> State:
    """What an earlier release wrote in other codes, of an unsharded run, in a sharded optimizer."""
    made: State = {}
    for cls in (AdamW, S3):
        plain, first = start(cls, REFERENCE, None)
        train(plain, first, range(2))
        model, optimizer = start(cls, {"seed": 1, **REFERENCE}, mesh)
        optimizer.load_state_dict(formerly(first))
        made |= {f"{cls.__name__} {n}": x for n, x in result(model, optimizer).items()}
    return made


def _placements_alike(mesh: Any) -> list[str]:
    """State tensors that are no DTensors placed as their parameter is; none should be."""
    model, optimizer = start(AdamWStoSign, {"dtype": torch.bfloat16, "master": "split"}, mesh)
    train(model, optimizer, range(1))
    wrong = []
    for i, p in enumerate(model.parameters()):
        for name, x in optimizer.state[p].items():
            if x.dim() and not (isinstance(x, DTensor) and x.placements == p.placements):
                wrong.append(f"{i} {name}")
    return wrong


def _message(call: Callable[[], object]) -> str:
    try:
        call()
    except (TypeError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {re.sub(r'[ ]+', ' ', str(error))}"
    return "no error"


def _refusals(mesh: Any) -> dict[str, str]:
    part = DTensor.from_local(torch.ones(4, 64), mesh, [Partial()], run_check=False)
    partial = torch.nn.Parameter(part)
    rows = torch.nn.Parameter(distribute_tensor(torch.ones(4, 64), mesh, [Shard(0)]))
    optimizer = AdamWStoSign([rows])
    rows.grad = distribute_tensor(torch.ones(4, 64), mesh, [Replicate()])
    sophia = signconv.compile("sophia")([rows], **REFERENCE)
    whole = distribute_tensor(torch.ones(4, 64), mesh, [Replicate()])
    return {
        "extra": _message(lambda: sophia.step(hessian=[torch.ones(4, 64)])),
        "extra elsewhere": _message(lambda: sophia.step(hessian=[whole])),
        "partial": _message(lambda: AdamWStoSign([partial])),
        "gradient": _message(optimizer.step),
    }


def _inspect(mesh: Any) -> list[str]:
    model, optimizer = start(AdamWStoSign, {"dtype": torch.bfloat16, "master": "split"}, mesh)
    for t in range(3):
        train(model, optimizer, range(t, t + 1))
        health = signconv.inspect(optimizer)
    return [f"{r.parameter} {r.moment} {r.stalled is not None}" for r in health.rows]


def _master_weights(mesh: Any) -> State:
    """Exact fp32 weights out of a sharded model, and into a fresh one that goes on."""
    options = {"dtype": torch.bfloat16, "master": "split"}
    model, optimizer = start(AdamWStoSign, options, mesh)
    train(model, optimizer, range(2))
    exact = optimizer.master_weights(model)
    made = {f"out {k}": here(v) for k, v in exact.items()}
    other, fresh = start(AdamWStoSign, options, mesh)
    fresh.load_master_weights(other, exact)
    again = fresh.master_weights(other)
    return {**made, **{f"in {k}": here(v) for k, v in again.items()}}


def _replicated(mesh: Any) -> State:
    """DTensors that every rank has whole."""
    x = torch.nn.Parameter(distribute_tensor(torch.ones(127), mesh, [Replicate()]))
    optimizer = LAMB([x], backend="reference")
    x.grad = distribute_tensor(torch.linspace(-1, 1, 127), mesh, [Replicate()])
    optimizer.step()
    return {"x": here(x), "m": here(optimizer.state[x]["m"])}


def _scaler(mesh: Any, rank: int) -> dict[str, Any]:
    """GradScaler around fully_shard: two steps as without it, then Inf on the first rank only."""
    ends = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 5))
        fully_shard(model, mesh=mesh)
        optimizer = AdamWStoSign(model.parameters(), **REFERENCE)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for t in range(3 if enabled else 2):
            loss = model(torch.full((4, 64), t + 1.0)).square().sum()
            scaler.scale(loss * (float("inf") if t == 2 and rank == 0 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append([here(p) for p in model.parameters()])
    steps = {int(entry["step"]) for entry in optimizer.state.values()}
    same = all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    return {"same": same, "scale": scaler.get_scale(), "steps": steps}


def _zero() -> list[State]:
    """ZeRO-1 of equal parameters with equal gradients, then resumed from its consolidated state:
    each rank steps its own, and all have the results."""
    made: list[State] = []
    saved: Any = None
    for steps in (range(2), range(2, 3)):
        params = [torch.nn.Parameter(torch.full((4, 64), 1.0 + i)) for i in range(4)]
        optimizer = ZeroRedundancyOptimizer(
            params, optimizer_class=AdamWStoSign, lr=0.01, backend="reference"
        )
        if saved is not None:
            optimizer.load_state_dict(saved)
        before = [p.detach().clone() for p in params]
        for t in steps:
            for p in params:
                p.grad = torch.linspace(-1, 1, 256).view(4, 64) * (t + 1)
            optimizer.step()
        pairs = zip(params, before, strict=True)
        made.append({f"{i}": (p.detach() - q).sign() for i, (p, q) in enumerate(pairs)})
        optimizer.consolidate_state_dict(to=0)
        box = [optimizer.state_dict() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(box, src=0)
        saved = box[0]
    return made


def _extras(mesh: Any) -> dict[str, State]:
    made = {}
    for name, cls in extra_cases().items():
        model, optimizer = start(cls, REFERENCE, mesh, by=distribute)
        train(model, optimizer, range(3), hessian=True)
        made[name] = result(model, optimizer)
    return made


def _release(mesh: Any) -> list[Any]:
    """fully_shard, stepped inside backward with clipping, beside ordinary steps: what differs, how
    many gradients were left for ``step()``, and the norms."""
    made: list[Any] = []
    for clip in (None, 0.05):
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 5))
            fully_shard(model[0], mesh=mesh)
            models.append(fully_shard(model, mesh=mesh))
        a, b = (AdamWStoSign(m.parameters(), lr=0.01, seed=3, **REFERENCE) for m in models)
        handle = signconv.gradient_release(b, max_norm=clip)
        left, norms = 0, []
        for t in range(3):
            x = torch.linspace(-1, 1, 4 * 64).view(4, 64) * (t + 1 + dist.get_rank())
            if clip is not None:
                with handle.norm():
                    models[1](x).square().mean().backward()
            models[1](x).square().mean().backward()
            left += sum(p.grad is not None for p in models[1].parameters())
            b.step()  # no zero_grad, as in docs/memory.md: what was left for it is freed too
            models[0](x).square().mean().backward()
            if clip is not None:
                assert handle.total_norm is not None
                total = torch.nn.utils.get_total_norm([p.grad for p in models[0].parameters()])
                norms.append((float(handle.total_norm), float(total.full_tensor())))
                for p in models[0].parameters():
                    p.grad.to_local().mul_((clip / (handle.total_norm + 1e-6)).clamp(max=1.0))
            a.step()
            a.zero_grad()
        wrong = differences(result(models[1], b), result(models[0], a))
        made.append((wrong, left, norms))
    return made
