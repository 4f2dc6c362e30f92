"""Reductions over dimensions where steps are skipped, states are replaced and gradients missing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import signconv
from signconv.verification.bits import different
from tests.support import built_class

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


BLOCKS = """
v = ema(mean(grad**2, axis="block"), 0.9)
top = max(sum(abs(grad), axis="block"), axis=-1)
column = sum(grad, axis=-2)
step_size = 1 / (1 + norm(grad - column, axis="block"))
update = grad / (sqrt(v) + 1e-3) + grad * step_size / (top + 1)
"""


def by_hand(p: Any, g: Any, v: Any) -> tuple[Any, Any]:
    """One step of the spec above in float64, block by block; p, g [rows, n], v [rows, blocks]."""
    p, v = p.copy(), v.copy()
    width = 32 if g.shape[1] % 32 == 0 else g.shape[1]
    for r in range(g.shape[0]):
        cuts = [slice(i, i + width) for i in range(0, g.shape[1], width)]
        top = max(abs(g[r, cut]).sum() for cut in cuts)
        for b, cut in enumerate(cuts):
            x = g[r, cut]
            v[r, b] = 0.9 * v[r, b] + 0.1 * (x**2).mean()
            size = 1 / (1 + np.sqrt(((x - g[:, cut].sum(axis=0)) ** 2).sum()))
            p[r, cut] -= 0.1 * (x / (np.sqrt(v[r, b]) + 1e-3) + x * size / (top + 1))
    return p, v


def test_blocks_of_rows_on_every_backend(tmp_path: Path) -> None:
    """A row of no whole blocks is one."""
    cls = built_class(tmp_path, BLOCKS)
    shapes = [(3, 64), (96,), (5, 40)]
    found = []
    for backend in BACKENDS:
        rng = torch.Generator().manual_seed(1)
        ps = [nn.Parameter(torch.randn(s, generator=rng)) for s in shapes]
        hand = [p.detach().double().numpy().reshape(-1, p.shape[-1]) for p in ps]
        optimizer = cls(ps, lr=0.1, backend=backend, seed=0)
        vs = [np.zeros((len(x), x.shape[1] // 32 if x.shape[1] % 32 == 0 else 1)) for x in hand]
        for step in range(2):
            give(ps, step)
            optimizer.step()
            for i, p in enumerate(ps):
                assert p.grad is not None
                g = p.grad.double().numpy().reshape(hand[i].shape)
                hand[i], vs[i] = by_hand(hand[i], g, vs[i])
        assert [tuple(optimizer.state[p]["v"].shape) for p in ps] == [(3, 2), (3,), (5, 1)]
        for p, x, v in zip(ps, hand, vs, strict=True):
            assert np.allclose(p.detach().numpy().reshape(x.shape), x, rtol=0, atol=3e-6)
            assert np.allclose(optimizer.state[p]["v"].numpy().reshape(v.shape), v, rtol=1e-5)
        found.append(held(ps, optimizer))
    for other in found[1:]:
        assert_same(found[0], other)


@pytest.mark.parametrize("kind", ["decoupled", "l2", "independent"])
def test_decay_by_shape(kind: str, tmp_path: Path) -> None:
    """Vectors decay by half: named, and for l2 read before anything that has a name."""
    body = f"weight_decay = hyper(0.5, ge=0)\nw = where(ndim >= 2, weight_decay, 0.25)\n\
update = grad\ndecay = {kind}(w)"
    cls = built_class(tmp_path, body)
    found = []
    for backend in BACKENDS:
        ps = params()
        before = [p.detach().double() for p in ps]
        optimizer = cls(ps, lr=0.1, backend=backend, seed=0)
        give(ps, 1)
        optimizer.step()
        for p, old in zip(ps, before, strict=True):
            assert p.grad is not None
            weight = 0.5 if p.dim() >= 2 else 0.25
            rate = 1.0 if kind == "independent" else 0.1
            wanted = old - 0.1 * p.grad.double() - rate * weight * old
            assert torch.allclose(p.detach().double(), wanted, rtol=0, atol=1e-6)
        found.append(held(ps, optimizer))
    for other in found[1:]:
        assert_same(found[0], other)
