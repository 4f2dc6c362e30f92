"""Reductions over dimensions where steps are skipped, states are replaced and gradients missing."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import signconv
from signconv.verification.bits import different

#: By element, by blocks down columns with a segment that is not full, and a vector.
SHAPES = [(3, 5), (70, 64), (32,)]
BACKENDS = ["auto", "reference", "triton"]


@cache
def class_of(name: str) -> Any:
    return signconv.compile(name)


def params() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=rng)) for s in SHAPES]


def give(ps: list[nn.Parameter], step: int) -> None:
    for i, p in enumerate(ps):
        rng = torch.Generator().manual_seed(10 * step + i)
        p.grad = torch.randn(p.shape, generator=rng)


def held(ps: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    """Copies of weights and state."""
    states = [x for p in ps for _, x in sorted(optimizer.state[p].items())]
    return [x.detach().clone() for x in (*ps, *states)]


def assert_same(one: list[Tensor], two: list[Tensor]) -> None:
    assert [different(a, b) for a, b in zip(one, two, strict=True)] == [0] * len(one)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["came", "sm3"])
def test_a_skipped_step_keeps_the_numbers_of_rows_and_columns(name: str, backend: str) -> None:
    ps = params()
    optimizer = class_of(name)(ps, backend=backend, skip_nonfinite=True)
    give(ps, 1)
    optimizer.step()
    before = held(ps, optimizer)
    give(ps, 2)
    ps[1].grad[0, 0] = torch.nan  # type: ignore[index]
    optimizer.step()
    assert_same(held(ps, optimizer), before)
    give(ps, 2)
    optimizer.step()
    assert all(different(a, b) for a, b in zip(ps, before, strict=False))


@pytest.mark.parametrize("name", ["came", "sm3"])
def test_a_kernel_follows_states_to_where_they_are_now(name: str) -> None:
    """New tensors of a checkpoint, others in their place, a parameter that pauses."""
    found = []
    for backend in ("reference", "triton"):
        ps = params()
        optimizer = class_of(name)(ps, backend=backend, seed=0)
        for step in range(1, 7):
            give(ps, step)
            if step == 2:
                optimizer.load_state_dict(optimizer.state_dict())
            if step == 3:
                ps[0].grad = None
            if step == 5:  # all as at the step before, but for that tensor
                kept = optimizer.program.kept[0].name
                optimizer.state[ps[1]][kept] = optimizer.state[ps[1]][kept].clone()
            optimizer.step()
        found.append(held(ps, optimizer))
    assert_same(*found)
