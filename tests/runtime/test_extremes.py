"""Gradients of extreme sizes (docs/design.md#storage): a huge element among tiny ones, powers that
underflow, and gradients times a power of two.  The reference runs; it equals the kernel bit for
bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from signconv.ir.bounds import moment_bounds
from signconv.ir.nodes import references
from signconv.pipeline import build
from signconv.prove.proofs import prove
from signconv.prove.ratios import fraction
from signconv.runtime.reference import ops as ref
from tests.support import class_of
from tests.support.runs import OWN, built, converted, keywords

#: Ratios with a finite bound whose numerator's moment is kept below what the denominator holds.
RATIOS = [
    *((spec, None) for spec in ("adam", "adamw", "amsgrad", "adamax", "nadam", "rmsprop", "s3")),
    *(("adamw", f"soft:p={p}") for p in (1, 1.5, 2, 3)),
    *(("adamw", f"soft:p={p},nesterov") for p in (2.5, 4, 5)),
    ("adamw", "nesterov"),
    ("adan", None),  # no bound between its moments is kept: they are bf16
    (OWN + "HeavyBallRatio", None),  # nor here
    *((OWN + name, None) for name in ("TwoBetas1", "TwoBetas2", "TwoBetas3", "SmoothedOrder3")),
]
#: Ratios without eps, and by how much abs(update) may exceed its bound where powers underflow:
#: there the smallest floats are a coarse grid.
UNDERFLOW = [
    ("s3", None),
    *(("adamw", f"soft:p={p}") for p in (1, 1.5, 2, 3, 4)),
    *(("adamw", f"soft:p={p},nesterov") for p in (3, 5, 8)),
    (OWN + "TwoBetas2", None),
    (OWN + "TwoBetas3", None),
]
COARSE = 1.6


def largest_allowed(spec: str, convert: str | None) -> float:
    """The proved bound, that of early steps included."""
    b = prove(converted(spec, convert))
    assert b.status == "proved" and np.isfinite(b.value)
    return max(b.value, b.early[1] if b.early else 0.0)


def still(spec: str, convert: str | None, state: str, shape: tuple[int, int]):
    """A parameter of zeros and its optimizer with lr 1 and no weight decay: updates can be read."""
    cls = built(spec, convert, state)
    x = torch.zeros(shape, requires_grad=True)
    hypers = {h.name: 0.0 for h in cls.program.hypers if h.name == "weight_decay"}
    return x, cls([x], backend="reference", **keywords(cls, {**hypers, "lr": 1.0}))


def update(x: Tensor, optimizer, g: Tensor) -> Tensor:
    with torch.no_grad():
        x.zero_()
    x.grad = g
    optimizer.step()
    return x.detach().abs()


# ---------------------------------------------------------------- one huge element


@pytest.mark.parametrize("huge", [pytest.param(1e6, marks=pytest.mark.long), 1e3])
@pytest.mark.parametrize(("spec", "convert"), RATIOS)
def test_a_huge_element_costs_its_neighbours_no_wild_step(
    spec: str, convert: str | None, huge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e6 or 1e3 among 31 of 1e-5, with the worst rounding there is: m always up, v always down.

    16 random bits do not round 1e-5 up to the smallest code beside 1e6, but they do beside 1e3.
    """
    over, under = fraction(converted(spec, convert))
    below = {n for e in under for n in references(e, "value")}
    above = {n for e in over for n in references(e, "value")} - below
    x, optimizer = still(spec, convert, "fp8", (4, 32))
    plain, pinned = ref.store_moment, set()

    def worst(stored, scale, value, field, fmt) -> None:
        name = next(n for n, s in optimizer.state[x].items() if s is stored)
        pinned.add(name)
        plain(stored, scale, value, torch.full_like(field, -1 if name in above else 0), fmt)

    monkeypatch.setattr(ref, "store_moment", worst)
    others = torch.arange(32) != 5
    largest = 0.0
    for t in range(20):
        g = torch.full((4, 32), 1e-5)
        g[:, ::2] *= -1
        if t == 3:
            g[:, 5] = huge
        u = update(x, optimizer, g)
        assert bool(u.isfinite().all())
        # m is above its own bound by a code or two, and its bias correction multiplies that
        largest = max(largest, float(u[:, others].max()) * (1 - 0.9 ** (t + 1)))
    assert pinned == {m.name for m in optimizer.program.moments}
    assert largest <= 1.1 * largest_allowed(spec, convert)


def test_without_its_floor_it_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test above is not idle: AdamW as it is, and without what lowering adds on decode."""
    from signconv.lower.schedule import Lowerer

    monkeypatch.setattr(Lowerer, "floors", lambda self: None)
    cls = class_of(build("adamw"), tmp_path)
    x = torch.zeros(4, 32, requires_grad=True)
    optimizer = cls([x], lr=1.0, weight_decay=0.0, backend="reference")
    plain = ref.store_moment

    def worst(stored, scale, value, field, fmt) -> None:
        up = stored is optimizer.state[x]["m"]
        plain(stored, scale, value, torch.full_like(field, -1 if up else 0), fmt)

    monkeypatch.setattr(ref, "store_moment", worst)
    largest = 0.0
    for t in range(6):
        g = torch.full((4, 32), 1e-5)
        g[:, 5] = 1e3 if t == 3 else 1e-5
        largest = max(largest, float(update(x, optimizer, g)[:, :5].max()))
    assert largest > 100


@pytest.mark.parametrize(
    ("name", "order"),
    [("TwoBetas1", 1), ("TwoBetas2", 2), ("TwoBetas3", 3), ("SmoothedOrder3", 3)],
)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.95, 0.98), (0.9, 0.6)])
def test_the_floor_is_idle_in_exact_arithmetic(
    name: str, order: int, betas: tuple[float, float]
) -> None:
    """floor * |m|**p <= v for random sequences, and nearly equal for the extremal one (Hölder)."""
    (bound,) = moment_bounds(converted(OWN + name))
    assert bound.order == order
    program = built(OWN + name, None, "fp8").program
    given = {"lr": 1.0, "beta1": betas[0], "beta2": betas[1]}
    initial = [x for _, x in program.scalar_states]
    made, _ = program.reference.scalars(1, 1.0, [given[h.name] for h in program.hypers], initial)
    floor = dict(zip(program.outputs, made, strict=True))["s_floor"]
    b1, b2 = betas
    if b1**order >= b2:
        assert floor == 0
        return
    rng = np.random.default_rng(4)
    k = np.arange(400)[:, None]
    ratio = (b1 / b2) ** (k / max(order - 1, 1)) if order > 1 else 1.0 * (k == 0)
    grads = np.concatenate(
        [rng.standard_normal((400, 50)), rng.standard_cauchy((400, 50)), ratio[::-1]], axis=1
    )
    m, v = np.zeros(101), np.zeros(101)
    share = np.zeros(101)
    for g in grads:
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * np.abs(g) ** order
        share = np.maximum(share, floor * np.abs(m) ** order / np.where(v > 0, v, 1))
    assert share.max() <= 1 + 1e-12
    assert share[-1] > 0.999


# ---------------------------------------------------------------- powers that underflow


@pytest.mark.parametrize("state", ["fp32", "fp8"])
@pytest.mark.parametrize(("spec", "convert"), UNDERFLOW)
def test_tiny_gradients_never_make_a_wild_step(spec: str, convert: str | None, state: str) -> None:
    """Rows of gradients from 1 down to 1e-45, constant, random, growing and as spikes."""
    rows, steps = 46, 40
    x, optimizer = still(spec, convert, state, (rows, 32))
    rng = np.random.default_rng(0)
    size = 10.0 ** -np.arange(rows)[:, None]
    kind = np.broadcast_to(np.arange(32) % 4, (rows, 32))
    largest = 0.0
    for t in range(steps):
        one = np.ones((rows, 32))
        shapes = [one, rng.standard_normal((rows, 32)), 1.2 ** (t - steps) * one]
        g = np.choose(kind, [*shapes, one * (t % 15 == 14)]) * size
        u = update(x, optimizer, torch.tensor(g, dtype=torch.float32))
        assert bool(u.isfinite().all())
        largest = max(largest, float(u.max()))
    assert largest <= COARSE * largest_allowed(spec, convert)
    assert float(u[0].max()) > 0.1


@pytest.mark.parametrize("state", ["fp32", "fp8"])
def test_what_has_underflowed_moves_nothing(state: str) -> None:
    """abs(g)**3 is 0 in fp32 here, so is the denominator, and m is not."""
    x, optimizer = still("s3", None, state, (2, 32))
    for _ in range(3):
        assert float(update(x, optimizer, torch.full((2, 32), 1e-17)).max()) == 0
    m = optimizer.state[x]["m"]
    assert bool((m != 0).all())
    assert float(update(x, optimizer, torch.full((2, 32), 1.0)).min()) > 0.01


@pytest.mark.parametrize("state", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("betas", [(0.99, 0.9), (0.9, 0.5), (0.9, 0.0)])
def test_a_denominator_that_fades_first_makes_no_wild_step(
    betas: tuple[float, float], state: str
) -> None:
    """Without eps, and with b1**2 >= b2, nothing bounds the ratio: over 40 steps without gradient
    v goes to 0 long before m, exactly so where it is rounded.  Up to there it grows by
    b1 / sqrt(b2) a step; x/0 is no step."""
    x = torch.zeros(8, 32, requires_grad=True)
    cls, largest = built("adamw", None, state), 0.0
    optimizer = cls([x], lr=1.0, betas=betas, eps=0.0, weight_decay=0.0, seed=0)
    rng = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.randint(-5, 3, (8, 32), generator=rng)
    for t in range(120):
        g = torch.zeros(8, 32) if t % 40 else torch.randn(8, 32, generator=rng) * sizes
        largest = max(largest, float(update(x, optimizer, g).abs().max()))
    assert 0.5 < largest < 1e8


@pytest.mark.parametrize("order", [2, 3, 5])
def test_a_root_with_eps_zero_over_what_underflowed(order: int, tmp_path: Path) -> None:
    """Something is added to the root, and it is 0: reference and kernel take no step."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from signconv.dsl import *\n\n\nclass Mine(Optimizer):\n    lr = hyper(1e-2, ge=0)\n"
        "    b, eps = hyper(0.9, ge=0, lt=1), hyper(0.0, ge=0)\n    m = ema(grad, b)\n"
        f"    v = ema(abs(grad) ** {order}, b)\n    numerator = m\n"
        f"    denominator = root(v, {order}) + eps\n"
    )
    cls = class_of(build(f"{path}:Mine", state="fp32"), tmp_path)
    for backend in ("reference", "triton", "cpu"):
        x = torch.zeros(2, 32, requires_grad=True)
        optimizer = cls([x], lr=1.0, backend=backend)
        assert float(update(x, optimizer, torch.full((2, 32), 1e-38)).abs().max()) < 1e-30
        assert 0.1 < float(update(x, optimizer, torch.ones(2, 32)).abs().min()) < 10


def test_an_average_that_keeps_its_first_value_moves_nothing(tmp_path: Path) -> None:
    """beta2 = 1 leaves v at 0 and the gradient is not: x/0 is no step."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from signconv.dsl import *\n\n\nclass Mine(Optimizer):\n    lr = hyper(1e-2, ge=0)\n"
        "    b = hyper(0.9, ge=0, le=1)\n    v = ema(grad**2, b)\n    numerator = grad\n"
        "    denominator = sqrt(v)\n"
    )
    x = torch.zeros(2, 32, requires_grad=True)
    optimizer = class_of(build(f"{path}:Mine", state="fp32"), tmp_path)([x], lr=1.0, b=1.0)
    assert float(update(x, optimizer, torch.ones(2, 32)).abs().max()) == 0


# ---------------------------------------------------------------- scale


@pytest.mark.parametrize(
    ("spec", "convert", "low", "high"),
    [
        ("s3", None, -30, 30),
        ("s3", "stosign", -30, 30),
        ("adamw", "soft:p=2", -40, 60),
        ("adamw", "soft:p=5,nesterov", -12, 18),
    ],
)
def test_gradients_times_a_power_of_two(
    spec: str, convert: str | None, low: int, high: int
) -> None:
    """The same parameters bit for bit while the powers are normal floats (numerics.md)."""
    rng = torch.Generator().manual_seed(2)
    grads = [torch.randn(8, 32, generator=rng).clamp(-4, 4) for _ in range(6)]
    grads = [torch.where(g.abs() < 0.1, 0.1, g) for g in grads]
    ends = []
    for k in (0, low, -7, 9, high):
        cls = built(spec, convert, "fp8")
        p = torch.linspace(-1, 1, 256).view(8, 32).clone().requires_grad_()
        optimizer = cls([p], lr=0.01, backend="reference", seed=3)
        for g in grads:
            p.grad = g * 2.0**k
            optimizer.step()
        ends.append(p.detach())
    assert all(torch.equal(ends[0], end) for end in ends[1:])


# ---------------------------------------------------------------- decay


@cache
def decayed(weight_decay: float) -> Tensor:
    """Where SGD's fp32 weights are after 300 steps of lr 1e-6 on the same gradients."""
    rng = torch.Generator().manual_seed(5)
    x = (1.25 + 0.5 * torch.rand(2**15, generator=rng)).requires_grad_()
    optimizer = built("sgd", None, "fp32")([x], lr=1e-6, momentum=0.0, weight_decay=weight_decay)
    for _ in range(300):
        x.grad = torch.randn(x.shape, generator=rng)
        optimizer.step()
    return x.detach().double()


@pytest.mark.parametrize("product", [1e-10, 1e-8, 1e-6])
def test_tiny_decay_is_not_lost(product: float) -> None:
    """lr * weight_decay far below half a unit of p's last place, over 300 steps.

    Rounding each step leaves 0.29 units of 1.2e-7 a step in each of the two runs, so the mean of
    32,768 differences has a sigma of 4.7e-9; 4 of those are 42 % of what 1e-10 makes, 4.5e-8, and
    0.4 % from 1e-8 on.
    """
    lost = float((decayed(0.0) - decayed(product / 1e-6)).mean())
    assert lost == pytest.approx(300 * product * 1.5, rel=2e-3, abs=4 * 4.7e-9)
