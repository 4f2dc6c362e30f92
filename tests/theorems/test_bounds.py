"""C2 and C3: how large numerator/denominator can be, by running the sequences that reach it.

The float64 evaluator runs the specs; eps is 0.  A bound counts as checked only if a sequence
attains it and a search does not exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signconv.ir.nodes import Program
from tests.support.runs import OWN, Array, converted, updates

LATE = 10**6  # t at which bias corrections are 1
ZEROS = 200  # steps without gradient that a schedule's product needs to die out
BETAS = {"beta1": 0.9, "beta2": 0.999}

# ---------------------------------------------------------------- C2: S3


def soft(p: int, nesterov: bool = True) -> Program:
    return converted("adamw", f"soft:p={p}" + (",nesterov" if nesterov else ""))


def weights(beta: float, t: int, nesterov: bool = True) -> float:
    """W: the sum of the weights of the read."""
    return 1 - beta ** (t + 1 if nesterov else t)


SIZES = st.floats(1e-20, 1e20) | st.just(0.0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    grads=st.lists(st.tuples(SIZES, st.booleans()), min_size=1, max_size=25),
    beta=st.floats(0, 0.999),
    p=st.integers(1, 8),
    nesterov=st.booleans(),
)
def test_s3_is_bounded(grads: list, beta: float, p: int, nesterov: bool) -> None:
    """|update| <= W**(1 - 1/p) <= 1 at every step of every sequence."""
    signed = [np.array([-g if negative else g]) for g, negative in grads]
    for t, u in enumerate(updates(soft(p, nesterov), signed, beta=beta), 1):
        assert abs(u[0]) <= weights(beta, t, nesterov) ** (1 - 1 / p) * (1 + 1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_s3_equality(p: int) -> None:
    """Constant gradients attain it; for p = 1 any of one sign."""
    grads = [np.array([-2.5 if p > 1 else -(1.1**t)]) for t in range(60)]
    wanted = [weights(0.9, t) ** (1 - 1 / p) for t in range(1, 61)]
    assert -np.array(updates(soft(p), grads, beta=0.9))[:, 0] == pytest.approx(wanted, abs=1e-13)
    if p > 1:
        grads[-1] = grads[-1] * 1.1
        last = -updates(soft(p), grads, beta=0.9)[-1][0]
        assert last < wanted[-1] - 1e-6


def test_s3_warm_up() -> None:
    """The values of a constant gradient at beta = 0.95, p = 3."""
    got = np.array(updates(converted("s3"), [np.array([3.0])] * 100))[:, 0]
    assert [round(got[t - 1], 4) for t in (1, 2, 10, 100)] == [0.2118, 0.2730, 0.5708, 0.9962]


def test_s3_does_not_increase_with_its_order() -> None:
    rng = np.random.default_rng(5)
    grads = [rng.standard_normal(3000) * 10 ** rng.uniform(-2, 2, 3000) for _ in range(30)]
    by_order = [np.abs(updates(soft(p), grads)[-1]) for p in range(1, 9)]
    for low, high in pairwise(by_order):
        assert (high <= low * (1 + 1e-12)).all()


# ---------------------------------------------------------------- the extremal sequence


def parts(p: Program) -> tuple[Program, Program]:
    """Programs whose updates are the numerator and the denominator of ``p``."""
    bare = replace(p, link="ratio", denominator=None)
    return bare, replace(bare, numerator=p.denominator)


def extremal(
    p: Program, order: float, horizon: int, grads_of: Callable[[Array], Array], **hypers: float
) -> Array:
    """Gradients that maximize the ratio after ``horizon`` steps, by Hölder's equality case.

    One impulse shows the weights a_k of the numerator and c_k = (denominator response)**order;
    the sequence is sign(a_k) * |a_k/c_k|**(1/(order - 1)), newest first.  order 1: the best k.
    """
    impulse = np.zeros((horizon, 1))
    impulse[0] = 1.0
    silence = [np.zeros(1)] * ZEROS
    a, c = (
        np.array(updates(q, [*silence, *grads_of(impulse)], LATE, **hypers))[ZEROS:, 0]
        for q in parts(p)
    )
    c = np.abs(c) ** order
    if order == 1:
        wanted = (np.arange(horizon) == np.argmax(np.abs(a / c))).astype(float)
    else:
        wanted = np.sign(a) * np.abs(a / c) ** (1 / (order - 1))
    return grads_of(wanted[::-1, None])


def itself(h: Array) -> Array:
    return h


def adan_input(h: Array) -> Array:
    """The gradients whose g + beta2*(g - g_prev) is h."""
    g, prev = np.zeros_like(h), np.zeros(h.shape[1])
    for i, x in enumerate(h):
        g[i] = prev = (x + 0.92 * prev) / 1.92
    return g


@dataclass(frozen=True)
class Bound:
    """A program, the order of its denominator (0: a decayed maximum) and the supremum.

    NAdam's is that of t to infinity alone: before, its schedule and its bias corrections, which
    do not sum to one, exceed it.
    """

    spec: str
    convert: str | None
    order: float
    value: float
    hypers: dict[str, float] = field(default_factory=dict)
    grads_of: Callable[[Array], Array] = itself

    @property
    def program(self) -> Program:
        return converted(self.spec, self.convert)

    def sequence(self, horizon: int = 800) -> list[Array]:
        if self.order == 0:
            return list(self.hypers["beta2"] ** np.arange(horizon)[:, None])
        made = extremal(self.program, self.order, horizon, self.grads_of, **self.hypers)
        return [np.zeros(1)] * ZEROS + list(made)


ADAM = {**BETAS, "eps": 0.0}
BOUNDS = {
    "AdamW": Bound("adamw", None, 2, 7.270292, ADAM),
    "AdamW .99": Bound("adamw", None, 2, 2.345208, {**ADAM, "beta2": 0.99}),
    "AdamW .95": Bound("adamw", None, 2, 1.164965, {**ADAM, "beta2": 0.95}),
    "NAdam": Bound("nadam", None, 2, 8.415122, ADAM),
    "nesterov(AdamW)": Bound("adamw", "nesterov", 2, 7.266916, ADAM),
    "AdaMax": Bound("adamax", None, 0, 1.009091, ADAM),
    "RMSprop": Bound("rmsprop", None, 2, 10.0, {"alpha": 0.99, "eps": 0.0}),
    "RMSprop .999": Bound("rmsprop", None, 2, 1000**0.5, {"alpha": 0.999, "eps": 0.0}),
    "Adan": Bound("adan", None, 2, 1.205441, {"eps": 0.0}, adan_input),
    "two betas, order 3": Bound(OWN + "TwoBetas3", None, 3, 3.609933, BETAS),
    "two betas, order 2": Bound(OWN + "TwoBetas2", None, 2, 7.266916, BETAS),
    "two betas, order 3/2": Bound(OWN + "TwoBetasThreeHalves", None, 1.5, 15.461274, BETAS),
    "two betas, order 1": Bound(OWN + "TwoBetas1", None, 1, 95.047524, BETAS),
    "close betas, order 3": Bound(
        OWN + "TwoBetas3", None, 3, 1.143476, {"beta1": 0.95, "beta2": 0.98}
    ),
}
bounds = pytest.mark.parametrize("name", BOUNDS)


@bounds
def test_supremum_is_attained(name: str) -> None:
    b = BOUNDS[name]
    got = updates(b.program, b.sequence(), LATE, **b.hypers)[-1][0]
    assert got == pytest.approx(b.value, rel=2e-6)


def search(p: Program, **hypers: float) -> float:
    """The largest |numerator/denominator| over random sequences, and over all extremal ones,
    from the first step and long after it (NAdam: only that)."""
    rng = np.random.default_rng(8)
    size, steps = 400, 60
    kinds = [
        rng.standard_normal((steps, size)),
        rng.standard_cauchy((steps, size)),
        rng.standard_normal((steps, size)) * (rng.uniform(size=(steps, size)) < 0.05),
        np.cumprod(rng.uniform(0.8, 1.3, (steps, size)), axis=0),
        rng.uniform(0.5, 2, size) ** np.arange(steps)[:, None],
    ]
    largest = 0.0
    for start, silence in ((1, 0), (LATE, ZEROS))[p.key == "nadam" :]:
        for grads in (*kinds, *EXTREMAL):
            made = updates(p, [*[np.zeros(1)] * silence, *grads], start, **hypers)
            largest = max(largest, float(np.max(np.abs(made[silence:]))))
    return largest


EXTREMAL = [b.sequence(150) for n, b in BOUNDS.items() if n in ("AdamW", "AdaMax", "Adan")]


@bounds
def test_search_does_not_exceed_it(name: str) -> None:
    b = BOUNDS[name]
    assert search(b.program, **b.hypers) <= b.value * (1 + 1e-6)


ALWAYS = {
    "S3": ("s3", None, {}),
    "soft_1(AdamW)": ("adamw", "soft:p=1", {}),
    "soft_4, nesterov": ("adamw", "soft:p=4,nesterov", {"beta": 0.8}),
    "stosign(S3)": ("s3", "stosign", {}),
    "StoSignSGD": ("stosignsgd", None, {"beta2": 1.0}),
    "StoSignSGDv2 as read": ("stosignsgd_v2", None, {"beta2": 0.9}),
    "IE-StoSignSGD": ("ie_stosignsgd", None, {"beta2": 0.7}),
    "stosign(plain SGD)": (OWN + "PlainSGD", "stosign", {}),
    "nesterov, stosign(SGD)": ("sgd", "nesterov,stosign", {}),
    "AdamW, one beta": ("adamw", None, {"beta1": 0.9, "beta2": 0.9, "eps": 0.0}),
    "nesterov(AdamW), one beta": ("adamw", "nesterov", {"beta1": 0.9, "beta2": 0.9, "eps": 0.0}),
    "AdaMax, beta2 = 1": ("adamax", None, {"beta2": 1.0, "eps": 0.0}),
}


@pytest.mark.parametrize("name", ALWAYS)
def test_sigma_covers_m_always(name: str) -> None:
    spec, convert, hypers = ALWAYS[name]
    assert 0.99 < search(converted(spec, convert), **hypers) <= 1 + 1e-12


@pytest.mark.parametrize("spec", ["signsgd", "signum", "lion", "s3gd"])
def test_sign_methods_have_updates_of_size_one(spec: str) -> None:
    assert 0.99 < search(converted(spec)) <= 1


# ---------------------------------------------------------------- closed forms


def hoelder(b1: float, b2: float, p: float, nesterov: bool) -> float:
    """C2's supremum for two betas; inf where beta1**p >= beta2."""
    if p == 1:
        return (1 - b1**2) / (1 - b2**2) if b1 <= b2 else math.inf
    q = p / (p - 1)
    rho = b1**q * b2 ** (1 - q)
    if rho >= 1:
        return math.inf
    tail = (1 - b1) ** q * (1 - b2) ** (1 - q) / (1 - rho)
    first = (1 - b1**2) ** q * (1 - b2**2) ** (1 - q)
    return (first + tail * rho**2 if nesterov else tail) ** (1 / q)


FORMS = {
    (OWN + "TwoBetas3", None, 3): lambda a, b: hoelder(a, b, 3, True),
    (OWN + "TwoBetas2", None, 2): lambda a, b: hoelder(a, b, 2, True),
    (OWN + "TwoBetasThreeHalves", None, 1.5): lambda a, b: hoelder(a, b, 1.5, True),
    (OWN + "TwoBetas1", None, 1): lambda a, b: hoelder(a, b, 1, True),
    (OWN + "SmoothedOrder3", None, 3): lambda a, b: hoelder(a, b, 3, False),
    ("adamw", None, 2): lambda a, b: (1 - a) / math.sqrt((1 - b) * (1 - a * a / b)),
    ("adamax", None, 0): lambda a, b: (1 - a) * b / (b - a),
    ("nadam", None, 2): lambda a, b: math.sqrt(
        ((1 - a * a) ** 2 + (1 - a) ** 2 * a**4 / b / (1 - a * a / b)) / (1 - b)
    ),
    ("rmsprop", None, 2): lambda a, b: 1 / math.sqrt(1 - b),
}


MORE_BETAS = ((0.31, 0.77), (0.7, 0.99))


@pytest.mark.parametrize(
    ("b1", "b2"),
    [(0.5, 0.9), (0.9, 0.95), *(pytest.param(*b, marks=pytest.mark.long) for b in MORE_BETAS)],
)
@pytest.mark.parametrize("case", FORMS, ids=lambda c: f"{c[0].removeprefix(OWN)}-{c[2]}")
def test_closed_form_at_other_betas(case: tuple, b1: float, b2: float) -> None:
    spec, convert, order = case
    p = converted(spec, convert)
    known = {"beta1": b1, "beta2": b2, "alpha": b2, "eps": 0.0}
    hypers = {h.name: known[h.name] for h in p.hypers if h.name in known}
    b = Bound(spec, convert, order, FORMS[case](b1, b2), hypers)
    got = updates(p, b.sequence(), LATE, **hypers)[-1][0]
    assert got == pytest.approx(b.value, rel=1e-6)
    assert search(p, **hypers) <= b.value * (1 + 1e-6)


def test_without_limit_where_beta1_is_too_large() -> None:
    """beta1**p >= beta2: the same sequence grows past any bound with its length."""
    hypers = {"beta1": 0.9, "beta2": 0.6}
    b = Bound(OWN + "TwoBetas3", None, 3, math.inf, hypers)
    got = [updates(b.program, b.sequence(n), LATE, **hypers)[-1][0] for n in (50, 100, 200)]
    assert got[0] > 1 and got[1] > 2 * got[0] and got[2] > 2 * got[1]


@pytest.mark.parametrize("p", [1.5, 2, 3])
def test_one_beta_is_the_smallest_bound(p: float) -> None:
    assert hoelder(0.9, 0.9, p, True) == pytest.approx(1, abs=1e-12)
    assert all(hoelder(0.9, b2, p, True) > 1 for b2 in (0.8999, 0.9001, 0.95, 0.999))


# ---------------------------------------------------------------- C3: Adam's 7.27


def geometric(steps: int) -> list[Array]:
    return [np.array([(0.999 / 0.9) ** i]) for i in range(1, steps + 1)]


def test_adam_attains_seven() -> None:
    """10000 zero gradients leave the state at zero; then 60 steps of (beta2/beta1)**i."""
    adam = converted("adamw")
    silence = updates(adam, [np.zeros(1)] * 20, **ADAM)
    assert not np.any(silence)
    got = updates(adam, geometric(60), 10001, **ADAM)[-1][0]
    assert got == pytest.approx(7.270125, abs=2e-6)
    assert got < BOUNDS["AdamW"].value


@pytest.mark.parametrize(("t", "largest"), [(1, 1.0), (10, 1.043), (100, 2.243), (1000, 5.781)])
def test_bias_correction_caps_early_spikes(t: int, largest: float) -> None:
    """Without the zeros: the extremal sequence of t steps, from t = 1."""
    scaled = [g * (0.9 / 0.999) ** t for g in geometric(t)]
    assert updates(converted("adamw"), scaled, **ADAM)[-1][0] == pytest.approx(largest, abs=6e-4)


def test_one_spike_after_silence() -> None:
    got = updates(converted("adamw"), [np.ones(1)], LATE, **ADAM)[0][0]
    assert got == pytest.approx(0.1 / math.sqrt(0.001), abs=1e-12)


def test_nadam_exceeds_its_limit() -> None:
    """One spike after 1800 silent steps, when its momentum is half way up its schedule."""
    silence = [np.zeros(1)] * 1800
    real = updates(converted("nadam"), [*silence, np.ones(1)], **ADAM)[-1][0]
    assert real == pytest.approx(14.21, abs=0.01)
    assert real > 1.6 * BOUNDS["NAdam"].value
    first = updates(converted(OWN + "SimpleNAdam"), [np.ones(1)], **ADAM)[-1][0]
    assert first == pytest.approx(1 + 0.9 / 1.9, abs=1e-12)
