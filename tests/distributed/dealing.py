"""Matrices that are dealt out: which signs each rank takes, what it holds and what it is sent."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from signconv.generated.adamw import AdamW
from signconv.generated.muon import Muon
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from signconv import hybrid
from signconv.runtime import owners
from signconv.runtime.hybrid import Hybrid
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import stages
from signconv.runtime.reference.backend import ReferenceBackend
from tests.distributed.training import State, part_of

#: Matrices of three kinds; along dim 0 uneven, and of fewer rows than ranks.
SHAPES = [(8, 64), (64, 24), (5, 40)] * 4 + [(1, 32), (33, 7)]

#: What an owner may be sent at once when that is counted.
BATCH_BYTES = 20_000


def started(mesh: Any, placed: Any, **options: Any) -> tuple[list[nn.Parameter], FusedOptimizer]:
    """Matrices, cut where there is a mesh, and Muon."""
    rng = torch.Generator().manual_seed(11)
    made = [torch.randn(shape, generator=rng) for shape in SHAPES]
    if mesh is not None:
        made = [distribute_tensor(x, mesh, placed) for x in made]
    params = [nn.Parameter(x) for x in made]
    half = len(params) // 2  # groups are dealt out together
    groups = [{"params": params[:half]}, {"params": params[half:], "lr": 0.01}]
    return params, Muon(groups, seed=7, backend="reference", **options)


def stepped(params: list[nn.Parameter], optimizer: FusedOptimizer | Hybrid, steps: range) -> None:
    """Steps with given gradients, at one of which a parameter has none."""
    for t in steps:
        rng = torch.Generator().manual_seed(70 + t)
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=rng)
            if (t, i) != (1, 4):
                p.grad = part_of(g, p) if isinstance(p, DTensor) else g
        optimizer.step()
        optimizer.zero_grad()


def results(mesh: Any, placed: Any) -> State:
    """Whole parameters and state, as this rank has them, after three steps."""
    params, optimizer = started(mesh, placed)
    stepped(params, optimizer, range(3))
    made: State = {}
    for i, p in enumerate(params):
        for key, x in {"p": p.detach(), **optimizer.state[p]}.items():
            made[f"{i} {key}"] = x.full_tensor() if isinstance(x, DTensor) else x.clone()
    return made


def counted(mesh: Any, placed: Any) -> dict[str, Any]:
    """Of one step in small batches: shapes of the matrices whose signs this rank took, of the whole
    parameters that it had at a time, bytes that came from others, and how many messages there were
    still, beside what is sent of them, at each exchange."""
    signs: list[tuple[int, ...]] = []
    held: list[list[tuple[int, ...]]] = []
    messages: list[Any] = []
    beside: list[int] = []
    taken, prepared = stages.matrix_sign, ReferenceBackend.prepare
    packed, exchanged = owners.Message.packed, dist.all_to_all_single

    def sign(x: Tensor, how: str, out: Tensor) -> None:
        signs.append((*x.shape[1:],))
        taken(x, how, out)

    def prepare(self: ReferenceBackend, task: Any) -> None:
        held.append([(*p.shape,) for p in task.params])
        prepared(self, task)

    def pack(self: owners.Message, parts: Sequence[Tensor]) -> Tensor:
        made = packed(self, parts)
        messages.append(weakref.ref(made))
        return made

    def exchange(*args: Any, **named: Any) -> Any:
        beside.append(sum(x() is not None for x in messages))
        return exchanged(*args, **named)

    params, optimizer = started(mesh, placed)
    stepped(params, optimizer, range(1))
    with (
        patch.object(owners.Message, "packed", pack),
        patch.object(dist, "all_to_all_single", exchange),
        patch.object(stages, "matrix_sign", sign),
        patch.object(ReferenceBackend, "prepare", prepare),
        patch.object(owners, "BATCH_BYTES", BATCH_BYTES),
        received() as came,
    ):
        stepped(params, optimizer, range(5, 6))
    return {"signs": signs, "held": held, "received": sum(came), "beside": beside}


@contextmanager
def received() -> Iterator[list[int]]:
    """Bytes that come from other ranks, by collective."""
    came: list[int] = []
    one, all_of = dist.all_to_all_single, dist.all_gather_into_tensor

    def to_each(output: Tensor, x: Tensor, got: list[int], sent: Any, group: Any = None) -> Any:
        came.append(output.nbytes - got[dist.get_rank(group)] * output.element_size())
        return one(output, x, got, sent, group=group)

    def to_all(output: Tensor, x: Tensor, group: Any = None) -> Any:
        came.append(output.nbytes - x.nbytes)
        return all_of(output, x, group=group)

    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    with patch.object(dist, "all_to_all_single", to_each), patch.object(dist, name, to_all):
        yield came


def bytes_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """Parameters, gradients and state of these: fp32, fp32, codes and a scale for each block."""
    return sum(rows * columns * 9 + rows * -(-columns // 32) for rows, columns in shapes)


def failing(mesh: Any, placed: Any) -> tuple[str, list[bool], int]:
    """Signs that the first rank cannot take, in a hybrid whose other part has a vector for each
    rank: what this rank raises, which vectors moved, and how many whole parameters outlive the
    error.  All ranks have to come back."""

    def sign(x: Tensor, how: str, out: Tensor) -> None:
        raise MemoryError("no memory for a sign")

    matrices, first = started(mesh, placed)
    made = [distribute_tensor(torch.ones(70), mesh, placed) for _ in range(dist.get_world_size())]
    vectors = [nn.Parameter(x) for x in made]
    optimizer = hybrid(first, AdamW(vectors, backend="reference"))
    whole: list[Any] = []
    joined = owners.Lot.joined

    def watched(*args: Any) -> owners.Whole:
        found = joined(*args)
        whole.append(weakref.ref(found.p))
        return found

    message = ""
    gc.disable()
    try:
        with (
            patch.object(owners.Lot, "joined", watched),
            patch.object(
                stages, "matrix_sign", sign if dist.get_rank() == 0 else stages.matrix_sign
            ),
        ):
            stepped([*matrices, *vectors], optimizer, range(1))
    except MemoryError as error:
        message = str(error)
    left = sum(x() is not None for x in whole)
    gc.enable()
    full = [p.detach().full_tensor() for p in vectors]  # type: ignore[operator]
    return message, [bool((x != 1).any()) for x in full], left
