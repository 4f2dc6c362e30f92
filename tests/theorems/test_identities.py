"""One optimizer reached in two ways (docs/design.md#identities): symbolically, lowered, and
bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
import sympy as sp
import torch

from signconv.ir.nodes import Expr, Ref, rewrite
from signconv.lower import lower
from signconv.lower.kernel_program import KernelProgram
from signconv.verification.witnesses import gradients
from tests.support.runs import OWN, built, converted, run, updates
from tests.support.symbols import hyper, parsed, real, same, unroll

STATES = ("fp32", "fp8")
#: Values of all hyperparameters and symbols in runs of built classes; none is a default.
NUMBERS = {
    "lr": 0.02, "weight_decay": 0.1, "momentum": 0.8, "beta": 0.7, "beta1": 0.8, "beta2": 0.95,
    "alpha": 0.9, "eps": 1e-3, "b": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Side:
    """A spec, its passes, and hyperparameters tied to others: ``{"beta1": "b**2"}``."""

    spec: str
    convert: str | None = None
    values: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def program(self):
        return converted(self.spec, self.convert)

    def numbers(self) -> dict[str, float]:
        """Every hyperparameter of the built class."""
        table = {hyper(name): value for name, value in NUMBERS.items()}
        named = {h.name: self.values.get(h.name, h.name) for h in self.program.hypers}
        return {name: float(parsed(text).subs(table)) for name, text in named.items()}


@dataclass(frozen=True)
class Identity:
    """Two ways to one optimizer.

    lowered: also the same kernel up to names, False where the two differ in a hyperparameter's
    value or in the order of operations; exact: bit for bit only where nothing rounds, so on small
    integers with b = 1/2; states: state formats in which the bits agree.
    """

    left: Side
    right: Side
    lowered: bool = True
    exact: bool = False
    states: tuple[str, ...] = STATES


def s3_like(spec: str, p: int) -> Side:
    return Side(spec, f"soft:p={p},nesterov")


ZERO = {"momentum": "0"}
FRESH = "stosign:noise=fresh"  # the papers'; specs that are signs themselves have it
IDENTITIES = {
    "SignSGD = sign(plain SGD)": Identity(Side("signsgd"), Side(OWN + "PlainSGD", "sign")),
    "SignSGD = presign(plain SGD)": Identity(
        Side("signsgd"), Side(OWN + "PlainSGD", "presign"), lowered=False
    ),
    "SignSGD = sign(SGD), momentum 0": Identity(
        Side("signsgd"), Side("sgd", "sign", ZERO), lowered=False
    ),
    "SignSGD = presign(SGD), momentum 0": Identity(
        Side("signsgd"), Side("sgd", "presign", ZERO), lowered=False
    ),
    "SignSGD = Signum, momentum 0": Identity(
        Side("signsgd"), Side("signum", None, ZERO), lowered=False
    ),
    "Signum = sign(SGD)": Identity(Side("signum"), Side("sgd", "sign")),
    "StoSignSGD = stosign(SGD)": Identity(Side("stosignsgd"), Side("sgd", FRESH)),
    "StoSignSGD = stosign(Signum)": Identity(Side("stosignsgd"), Side("signum", FRESH)),
    "online StoSignSGD = stosign(plain SGD)": Identity(
        Side(OWN + "OnlineStoSignSGD"), Side(OWN + "PlainSGD", FRESH)
    ),
    "online StoSignSGD = StoSignSGD, momentum 0": Identity(
        Side(OWN + "OnlineStoSignSGD"), Side("stosignsgd", None, ZERO), lowered=False
    ),
    "Alg. 8 = stosign:eps=keep(AdamW)": Identity(
        Side(OWN + "SignAdamW"), Side("adamw", FRESH + ":eps=keep")
    ),
    "Alg. 9 = stosign:eps=keep(AdaMax)": Identity(
        Side(OWN + "SignAdaMax"), Side("adamax", FRESH + ":eps=keep")
    ),
    "sign-converted RMSprop = stosign(RMSprop)": Identity(
        Side(OWN + "SignRMSprop"), Side("rmsprop", FRESH)
    ),
    "S3 = nesterov(soft_3(AdamW))": Identity(Side("s3"), s3_like("adamw", 3)),
    "S3 = nesterov(soft_3(SGD))": Identity(Side("s3"), s3_like("sgd", 3)),
    "S3 of order 2 = nesterov(soft_2(AdamW))": Identity(
        Side(OWN + "S3Order2"), s3_like("adamw", 2)
    ),
    "order 1: AdamW and SGD": Identity(s3_like("adamw", 1), s3_like("sgd", 1)),
    "order 2: AdaMax and SGD": Identity(s3_like("adamax", 2), s3_like("sgd", 2)),
    "order 4: AdamW and SGD": Identity(s3_like("adamw", 4), s3_like("sgd", 4)),
    "stosign(S3) = stosign(nesterov(soft_3(AdamW)))": Identity(
        Side("s3", "stosign"), Side("adamw", "soft:p=3,nesterov,stosign")
    ),
    "S3GD = presign(SGD)": Identity(Side("s3gd"), Side("sgd", "presign")),
    "Adam with one beta = soft_2(AdamW)": Identity(
        Side(OWN + "AdamOneBeta"), Side("adamw", "soft:p=2")
    ),
    "Adam = AdamW, no decay": Identity(
        Side("adam", None, {"weight_decay": "0"}),
        Side("adamw", None, {"weight_decay": "0"}),
        lowered=False,
    ),
    "Lion(b1, b2) = sign(nesterov[b1/b2](momentum from zero))": Identity(
        Side("lion"),
        Side(OWN + "LookAhead", "sign", {"a": "beta1/beta2", "momentum": "beta2"}),
        lowered=False,
        states=(),
    ),
    "Lion(b**3, b) = sign(nesterov[b**2](momentum from zero))": Identity(
        Side("lion", None, {"beta1": "b**3", "beta2": "b"}),
        Side(OWN + "LookAhead", "sign", {"a": "b**2", "momentum": "b"}),
        lowered=False,
        exact=True,
    ),
    "Lion(b*b, b) = sign(nesterov(momentum from zero))": Identity(
        Side("lion", None, {"beta1": "b**2", "beta2": "b"}),
        Side(OWN + "MomentumFromZero", "nesterov,sign", {"momentum": "b"}),
        lowered=False,
        exact=True,
    ),
    "Lion(b, b) = sign(momentum from zero)": Identity(
        Side("lion", None, {"beta1": "b", "beta2": "b"}),
        Side(OWN + "MomentumFromZero", "sign", {"momentum": "b"}),
        lowered=False,
    ),
    "Adan's numerator with one beta = nesterov(momentum from zero)": Identity(
        Side(OWN + "AdanNumerator", None, {"beta": "b"}),
        Side(OWN + "MomentumFromZero", "nesterov", {"momentum": "b"}),
        lowered=False,
        exact=True,
        states=("fp32",),
    ),
}
#: What the three comparisons must tell apart.
DIFFERENT = {
    "S3 and its order 2": Identity(Side("s3"), s3_like("adamw", 2)),
    "S3 and soft without nesterov": Identity(Side("s3"), Side("adamw", "soft:p=3")),
    "SGD and its zero start": Identity(Side("sgd"), Side(OWN + "MomentumFromZero")),
    "Signum and SGD": Identity(Side("signum"), Side("sgd")),
    "StoSignSGD and its mean": Identity(Side("stosignsgd"), Side("sgd", "expected")),
    "eps kept and eps dropped": Identity(
        Side(OWN + "SignAdamW"), Side("adamw", "stosign"), states=("fp32",)
    ),
    "Adam and AdamW": Identity(Side("adam"), Side("adamw")),
    "Lion and sign(momentum)": Identity(
        Side("lion", None, {"beta1": "b**2", "beta2": "b"}),
        Side(OWN + "MomentumFromZero", "sign", {"momentum": "b"}),
        exact=True,
    ),
    "presign and sign": Identity(Side("sgd", "presign"), Side("sgd", "sign")),
}
every = pytest.mark.parametrize("name", IDENTITIES)
other = pytest.mark.parametrize("name", DIFFERENT)


# ---------------------------------------------------------------- symbolically


def equal_symbolically(i: Identity) -> bool:
    """Three unrolled steps, symbols for gradients, draws, start and all hyperparameters."""
    left, right = (unroll(s.program, 3, s.values) for s in (i.left, i.right))
    return all(same(a.param, b.param) for a, b in zip(left, right))


@every
def test_symbolically(name: str) -> None:
    assert equal_symbolically(IDENTITIES[name])


@other
def test_symbols_tell_apart(name: str) -> None:
    assert not equal_symbolically(DIFFERENT[name])


@pytest.mark.parametrize("p", range(1, 9))
def test_every_order_of_soft_forgets_its_base(p: int) -> None:
    assert equal_symbolically(Identity(s3_like("adamw", p), s3_like("sgd", p)))


# ---------------------------------------------------------------- lowered


def renamed(k: KernelProgram) -> tuple[object, list[str]]:
    """A lowered program with names by first use, and its moments in that order.

    Scalars are written out down to hyperparameters, so neither their names nor their order count.
    """
    scalars = {s.target: s.expr for s in k.scalars}
    names: dict[tuple[str, str], str] = {("local", "p"): "p", ("local", "g"): "g"}
    moments: list[str] = []
    kinds = {m.name: "moment" for m in k.moments}

    def name(kind: str, text: str) -> str:
        if kind == "moment" and text not in moments:
            moments.append(text)
        return names.setdefault((kind, text), f"{kind}{len(names)}")

    def rule(e: Expr) -> Expr | None:
        if not isinstance(e, Ref):
            return None
        if e.kind in ("scalar", "hyper") and e.name in scalars:
            return rewrite(scalars[e.name], rule)
        if e.kind in ("scalar", "hyper"):
            return Ref("hyper", name("hyper", e.name))
        if e.kind in ("value", "prev", "local", "temp"):
            kind = kinds.get(e.name, "local")
            return Ref("prev" if e.kind == "prev" else kind, name(kind, e.name))
        return e

    math = []
    for s in k.math:
        value = rewrite(s.expr, rule)
        math.append((name(kinds.get(s.target, "local"), s.target), value))
    plans = [next(m for m in k.moments if m.name == x) for x in moments]
    stored = [(m.format, m.word, m.field, m.init) for m in plans]
    return (math, stored, k.noise, k.words), moments


def equal_lowered(i: Identity, state: str) -> bool:
    left, right = (renamed(lower(s.program, state))[0] for s in (i.left, i.right))
    return left == right


@pytest.mark.parametrize("state", STATES)
@every
def test_lowered(name: str, state: str) -> None:
    """Equal where the table says so, and nowhere else."""
    assert equal_lowered(IDENTITIES[name], state) is IDENTITIES[name].lowered


@other
def test_lowering_tells_apart(name: str) -> None:
    assert not equal_lowered(DIFFERENT[name], "fp32")


# ---------------------------------------------------------------- bit for bit


@cache
def inputs(exact: bool) -> list[torch.Tensor]:
    """Gradients of a (32, 64) tensor over four decades with some zeros, or small integers."""
    rng = np.random.default_rng(6)
    made = [rng.integers(-8, 9, 2048).astype(float) for _ in range(8)]
    made = made if exact else gradients(rng, 12, 2048)
    return [torch.tensor(g.reshape(32, 64), dtype=torch.float32) for g in made]


def equal_bits(i: Identity, state: str) -> bool:
    """The parameter after every step; where the kernels are the same, all state as well."""
    start = torch.linspace(-1, 1, 2048).reshape(32, 64)
    points, states = [], []
    for s in (i.left, i.right):
        cls = built(s.spec, s.convert, state)
        path, final = run(cls, inputs(i.exact), s.numbers(), start, seed=3)
        assert not torch.equal(path[-1], path[-2])
        _, moments = renamed(lower(s.program, state))
        keep = [final[n + end] for n in moments for end in ("", "_scale") if n + end in final]
        points.append(torch.stack(path).view(torch.int32))
        states.append(keep if i.lowered else [])
    together = zip(*states, strict=True) if len(states[0]) == len(states[1]) else [(0, 1)]
    return torch.equal(*points) and all(torch.equal(a, b) for a, b in together)


@pytest.mark.parametrize(
    ("name", "state"), [(n, s) for n, i in IDENTITIES.items() for s in i.states]
)
def test_bit_for_bit(name: str, state: str) -> None:
    assert equal_bits(IDENTITIES[name], state)


@other
def test_bits_tell_apart(name: str) -> None:
    assert not equal_bits(DIFFERENT[name], "fp32")


# ---------------------------------------------------------------- identities of another form

EXPECTED = Side("sgd", "expected")


def test_expected_is_ie_stosignsgd() -> None:
    """A16 writes no clipping: without it the two are the same, and it is idle, in every bit."""
    bare = replace(EXPECTED.program, link="ratio")
    left, right = unroll(bare), unroll(converted("ie_stosignsgd"))
    assert all(same(a.param, b.param) for a, b in zip(left, right))
    written = Identity(Side("ie_stosignsgd"), EXPECTED, lowered=False)
    for state in STATES:
        assert equal_bits(written, state)


def test_expected_is_the_mean_of_stosign() -> None:
    """C1: both links are given the same ratio; the first returns it, the second draws a sign."""
    for spec in ("sgd", "adamw", "s3"):
        mean, drawn = unroll(converted(spec, "expected")), unroll(converted(spec, "stosign"))
        for t, (a, b) in enumerate(zip(mean, drawn), 1):
            assert same(b.argument, b.denominator * (a.argument + real(f"n{t}")))


def test_adan_with_its_own_start_differs_by_a_decaying_term() -> None:
    b = hyper("beta")
    own, zero = (unroll(converted(OWN + n)) for n in ("AdanOwnStart", "AdanNumerator"))
    for t, (x, y) in enumerate(zip(own, zero), 1):
        assert same(x.numerator - y.numerator, -(1 - b) * b**t * real("g1"))


def test_nadam_is_not_nesterov_of_adamw() -> None:
    b = hyper("beta1")
    simple, pass_ = unroll(converted(OWN + "SimpleNAdam")), unroll(converted("adamw", "nesterov"))
    for t, (x, y) in enumerate(zip(simple, pass_), 1):
        gap = (1 - b) * real(f"g{t}") * (1 / (1 - b**t) - 1 / (1 - b ** (t + 1)))
        assert same(x.numerator - y.numerator, gap)
        assert not same(x.numerator, y.numerator)


def test_nadam_without_schedule_is_its_simple_form() -> None:
    """momentum_decay so large that mu is beta1 from the first step."""
    grads = gradients(np.random.default_rng(2), 30)
    simple = updates(converted(OWN + "SimpleNAdam"), grads)
    full = updates(converted("nadam"), grads, momentum_decay=1e6)
    assert np.allclose(simple, full, rtol=0, atol=1e-12)
    assert not np.allclose(simple, updates(converted("nadam"), grads), rtol=0, atol=1e-3)


def test_opaque_functions_hide_nothing() -> None:
    """The symbolic comparison sees what is under a sign, up to its normal form and no further."""
    x, y = sp.symbols("x y")
    f = sp.Function("sign_")
    assert same(f(sp.cancel((x**2 - y**2) / (x - y))), f(x + y))
    assert not same(f(2 * x), f(x))
