"""Laws that need no second implementation, over every optimizer of generated/.

Each changes the input in a way whose effect on the output is known: gradients times a power of
two, elements in another order, a tensor cut in two, groups merged, a sign turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from signconv.ir.analysis import Degrees
from signconv.ir.nodes import Const, Expr, Program, Ref, map_expressions
from signconv.pipeline import Build, build
from signconv.pipeline.catalogue import Entry
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.program import HyperSlot, MomentSlot
from signconv.runtime.reference import ops as reference_ops
from signconv.verification.bits import different
from tests.support.entries import class_for, core_first
from tests.support.runs import built

STEPS = 4
every = pytest.mark.parametrize("entry", core_first())
#: The kernel's turn comes on a GPU; its agreement with the reference is tested elsewhere.
backends = pytest.mark.parametrize(
    "backend", ["reference", pytest.param("triton", marks=pytest.mark.gpu)]
)


@cache
def made(entry: Entry) -> Build:
    return build(**asdict(entry))


def start(shape: tuple[int, ...], backend: str = "reference") -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return values.to("cuda" if backend == "triton" else "cpu").requires_grad_()


def gradient(shape: tuple[int, ...], t: int) -> Tensor:
    """Between 2**-5 and 2**2 in size, with zeros."""
    rng = torch.Generator().manual_seed(t)
    g = (
        (torch.rand(shape, generator=rng) + 0.03).clamp(max=1)
        * 4
        * (torch.randint(0, 2, shape, generator=rng) * 2 - 1)
    )
    return torch.where(torch.rand(shape, generator=rng) < 0.05, 0.0, g)


def train(
    optimizer: FusedOptimizer, params: list[Tensor], grads: Callable[[int], list[Tensor]]
) -> None:
    for t in range(1, STEPS + 1):
        for p, g in zip(params, grads(t), strict=True):
            p.grad = g.to(p.device)
        optimizer.step()


# ---------------------------------------------------------------- gradients times a power of two

SHAPE = (6, 64)
TAIL = (33,)


def without_eps(p: Program) -> Program:
    def rule(e: Expr) -> Expr | None:
        return Const(0.0) if isinstance(e, Ref) and e.name == "eps" else None

    return map_expressions(p, rule)


def scale_free(p: Program) -> bool:
    """Whether the update has degree 0 in the gradient once eps and l2 decay are 0."""
    p = without_eps(p)
    degrees = Degrees(p)
    num = degrees.of(p.numerator)
    if p.link == "sign":
        return num is not None
    if p.denominator is None:
        return num == 0
    return num is not None and num == degrees.of(p.denominator)


#: Scale-free although no degree is derived, and the reason.
UNDERIVED = {
    "adafactor": "eps1 is beside squares, and lost there; what eps2 is beside has degree 0",
    "adalomo": "as adafactor's",
    "came": "as adafactor's",
    "lamb": "norm(p) has no degree in the gradient; the ratio it multiplies has degree 0",
    "cautious_adamw": "u / mean(mask) reads a comparison",
    "schedulefree_adamw": "param has no degree in the gradient; its decay is 0 by default",
    "adopt": "the mask of its first step reads t, and its clip's limits have degree 0",
    "sophia": "without a Hessian it is the momentum over eps, which is scaled here",
    "stableadamw": "param has no degree in the gradient; the ratios beside and below it have 0",
}


def eps_at(h: HyperSlot, k: int) -> float:
    """0; where it has to be above, a power of two that goes with the gradient's: eps is a size of
    the gradient there too, and powers of two leave every bit of what they scale."""
    return 0.0 if h.gt < 0 else 2.0 ** (k - 20)


def scaled_run(entry: Entry, k: int, backend: str) -> tuple[list[Tensor], FusedOptimizer]:
    cls = class_for(entry)
    params = [start(SHAPE, backend), start(TAIL, backend)]
    eps = {h.name: eps_at(h, k) for h in cls.program.hypers if h.name == "eps"}
    l2 = {"weight_decay": 0.0} if entry.spec in ("sgd", "adam") else {}
    optimizer = cls(params, backend=backend, seed=2, **eps, **l2)
    train(optimizer, params, lambda t: [gradient(tuple(p.shape), t) * 2.0**k for p in params])
    return params, optimizer


def moment(optimizer: FusedOptimizer, p: Tensor, m: MomentSlot) -> Tensor:
    """Decoded, as float64."""
    entry = optimizer.state[p]
    scale = entry.get(f"{m.name}_scale")
    return reference_ops.load_moment(entry[m.name], scale, m.stored, p.numel()).double()


@backends
@every
def test_gradients_times_a_power_of_two(entry: Entry, backend: str) -> None:
    """docs/numerics.md: per element, first-order state down to 1e-30; where the update divides by
    the root of a second moment, (1 - beta2)*g**2 >= 2**-100, which is |g| >= 2**-45 at 0.999; other
    powers while they are normal fp32 numbers, |g| >= 2**-58 for squares and 2**-40 for cubes."""
    program = made(entry).program
    free = scale_free(program) or entry.spec in UNDERIVED
    degrees = Degrees(without_eps(program)).moments.values()
    order = max([1, *(d for d in degrees if isinstance(d, int | float))])
    lowest = {1: -92, 2: -39 if program.link == "ratio" else -52, 3: -34}[order]
    if entry.spec in ("adafactor", "adalomo", "came"):  # an eps of 1e-30 beside squares
        lowest = -26
    lowest = -19 if entry.spec == "prodigy" else lowest  # d0, 1e-6, is squared with the gradient
    powers = (lowest, -7, 9, 37 if order == 3 else 57)
    wanted, reference = scaled_run(entry, 0, backend)

    def alike(found: list[Tensor]) -> bool:
        return all(different(p, q) == 0 for p, q in zip(wanted, found, strict=True))

    if not free:  # MARS is above norm 1, where it clips: a power in either direction
        assert not all(alike(scaled_run(entry, k, backend)[0]) for k in (3, -9))
        return
    for k in powers:
        found, optimizer = scaled_run(entry, k, backend)
        assert alike(found), f"times 2**{k}"
        for m in optimizer.program.moments:
            if m.stored.dtype == torch.uint8:
                mine, theirs = (moment(o, p[0], m) for o, p in (
                    (optimizer, found), (reference, wanted)
                ))  # fmt: skip
                power = mine.abs().max() / theirs.abs().max()
                assert math.frexp(power)[0] == 0.5 and torch.equal(mine, theirs * power)


# ---------------------------------------------------------------- elements in another order


@every
def test_permuting_elements_together_with_their_draws(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 state has no blocks, so an element knows nothing of its neighbours."""
    cls = built(entry.spec, entry.convert, "fp32")
    order = torch.randperm(97, generator=torch.Generator().manual_seed(8))
    p, q = start((97,)), start((97,)).detach()[order].requires_grad_()
    train(cls([p], backend="reference"), [p], lambda t: [gradient((97,), t)])
    plain = reference_ops.draw_words

    class Moved:
        def __init__(self, word: reference_ops.Word) -> None:
            self.word = word

        def field(self, which: int) -> Tensor:
            return self.word.field(which)[order]

    monkeypatch.setattr(reference_ops, "draw_words", lambda *a: [Moved(w) for w in plain(*a)])
    train(cls([q], backend="reference"), [q], lambda t: [gradient((97,), t)[order]])
    if cls.program.reductions:  # its sums are a tree over the order
        torch.testing.assert_close(q, p.detach()[order], rtol=1e-6, atol=1e-6)
    else:
        assert different(q, p.detach()[order]) == 0


# ---------------------------------------------------------------- cut, merged, turned


@backends
@every
def test_a_tensor_cut_in_two_at_32_rows(entry: Entry, backend: str) -> None:
    """Blocks do not straddle rows, and the second half's draws start where the first's end."""
    cls = class_for(entry)
    whole = start((64, 64), backend)
    halves = [x.detach().clone().requires_grad_() for x in (whole[:32], whole[32:])]
    one, two = cls([whole], backend=backend), cls(halves, backend=backend)
    train(one, [whole], lambda t: [gradient((64, 64), t)])
    train(two, halves, lambda t: list(gradient((64, 64), t).split(32)))
    same = different(whole, torch.cat([h.detach() for h in halves])) == 0
    if any(r.over not in ("last", "rest") for r in cls.program.reductions):
        assert not same  # a norm is that of the tensor
        return
    assert same
    for name, value in one.state[whole].items():
        if value.dim():
            both = torch.cat([two.state[h][name] for h in halves])
            assert different(value, both) == 0, name


@backends
@every
def test_merging_param_groups(entry: Entry, backend: str) -> None:
    cls = class_for(entry)
    shapes = [(3, 64), (33,), (5, 7)]

    def after(group: Callable[[list[Tensor]], list[Any]]) -> list[Tensor]:
        params = [start(s, backend) for s in shapes]
        train(
            cls(group(params), backend=backend), params, lambda t: [gradient(s, t) for s in shapes]
        )
        return params

    one = after(lambda ps: ps)
    for grouping in (
        lambda ps: [{"params": [p]} for p in ps],
        lambda ps: [{"params": ps[:2]}, {"params": ps[2:]}],
    ):
        assert all(different(p, q) == 0 for p, q in zip(one, after(grouping), strict=True))


@backends
@every
def test_maximize_is_descent_on_the_negated_gradient(entry: Entry, backend: str) -> None:
    cls = class_for(entry)
    p, q = start((5, 64), backend), start((5, 64), backend)
    train(cls([p], backend=backend), [p], lambda t: [gradient((5, 64), t)])
    train(cls([q], backend=backend, maximize=True), [q], lambda t: [-gradient((5, 64), t)])
    assert different(p, q) == 0
    r = start((5, 64), backend)
    train(cls([r], backend=backend, maximize=True), [r], lambda t: [gradient((5, 64), t)])
    assert different(p, r) > 0
