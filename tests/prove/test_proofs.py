"""What ``prove.proofs`` claims, against docs/design.md#the-largest-ratio, and by running
extremal sequences."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from signconv.ir.nodes import Program
from signconv.passes.base import canonical, parse
from signconv.pipeline import apply_passes, builtin_names, resolve
from signconv.pipeline.catalogue import Entry
from signconv.prove import extremal
from signconv.prove.proofs import EARLY, bare, prove
from signconv.prove.ratios import derive
from tests.support import program_of
from tests.support.entries import CORE, marks


def converted(spec: str, convert: str = "") -> Program:
    requests = [parse(x) for x in convert.split(",") if x]
    return apply_passes(resolve(spec), canonical(requests))


def checked(p: Program, hypers: Mapping[str, float] = {}) -> tuple[float, float]:
    """The claimed bound at ``hypers``, after comparing series, formula and a run."""
    b = prove(p, hypers, steps=0)
    assert b.status == "proved" and b.attained is not None
    assert b.attained <= b.value * (1 + 1e-9)
    if b.closed is not None:
        values = {h.name: hypers.get(h.name, h.default) for h in p.hypers}
        at = {s: values[s.name] for s in b.closed.free_symbols}
        assert float(b.closed.subs(at)) == pytest.approx(b.value, rel=1e-9)
    return b.value, b.attained


# ---------------------------------------------------------------- docs/design.md#the-largest-ratio

TABLE = {
    ("adam", ""): "(1-beta1)/(sqrt(1-beta2)*sqrt(1-beta1**2/beta2))",
    ("adamw", "stosign"): "(1-beta1)/(sqrt(1-beta2)*sqrt(1-beta1**2/beta2))",
    ("amsgrad", ""): "(1-beta1)/(sqrt(1-beta2)*sqrt(1-beta1**2/beta2))",
    ("nadam", ""): "sqrt(((1-beta1**2)**2 + (1-beta1)**2*beta1**2*(beta1**2/beta2)"
    "/(1-beta1**2/beta2))/(1-beta2))",
    ("adamw", "nesterov"): "sqrt((1-beta1**2)**2/(1-beta2**2)"
    "+ (1-beta1)**2/(1-beta2)*(beta1**2/beta2)**2/(1-beta1**2/beta2))",
    ("adamax", ""): "(1-beta1)*beta2/(beta2-beta1)",
    ("rmsprop", "stosign"): "1/sqrt(1-alpha)",
    ("s3", "stosign"): "1",
    ("adamw", "soft:p=1,nesterov"): "1",
    ("adamw", "presign,soft:p=3"): "1",
    ("sgd", "stosign"): "1",
    ("stosignsgd", ""): "1",
    ("s3gd", ""): "1",
}


@pytest.mark.parametrize(("spec", "convert"), TABLE)
def test_closed_form_of_the_table(spec: str, convert: str) -> None:
    p = converted(spec, convert)
    value, attained = checked(p)
    wanted = sp.sympify(TABLE[spec, convert])
    at = {s: p.hyper(s.name).default for s in wanted.free_symbols}
    assert value == pytest.approx(float(wanted.subs(at)), rel=1e-9)
    assert attained >= value * (1 - 1e-3)


VALUES = {"adamw": 7.270292, "nadam": 8.415122, "adamax": 1.009091, "adan": 1.205441, "s3": 1.0}


@pytest.mark.parametrize("spec", VALUES)
def test_values_of_the_table(spec: str) -> None:
    assert prove(converted(spec), steps=0).value == pytest.approx(VALUES[spec], abs=1e-6)


TWO_BETAS = """
    b1, b2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    x, y = ema(grad, b1), ema({power}, b2)
    numerator = b1*x + (1 - b1)*grad
    denominator = root(b2*y + (1 - b2)*{power}, {order})
"""
POWERS = {3: "abs(grad)**3", 2: "grad**2", 1.5: "abs(grad)*sqrt(abs(grad))", 1: "abs(grad)"}


@pytest.mark.parametrize(
    ("order", "value"), [(3, 3.609933), (2, 7.266916), (1.5, 15.461274), (1, 95.047524)]
)
def test_every_order_of_c2(order: float, value: float, tmp_path: Path) -> None:
    p = program_of(tmp_path, TWO_BETAS.format(power=POWERS[order], order=order))
    claimed, attained = checked(p)
    assert claimed == pytest.approx(value, abs=1e-6)
    assert attained >= claimed * (1 - 1e-3)


# ---------------------------------------------------------------- random hyperparameters

RANDOM = [
    ("adamw", "", "beta1", "beta2", 2),
    ("adamw", "nesterov,stosign", "beta1", "beta2", 2),
    ("amsgrad", "", "beta1", "beta2", 2),
    ("adamax", "stosign", "beta1", "beta2", 1),
    ("nadam", "", "beta1", "beta2", 2),
    ("adan", "", "beta1", "beta3", 2),
    ("rmsprop", "", None, "alpha", 2),
    ("s3", "", None, "beta", 3),
]


@pytest.mark.parametrize(("spec", "convert", "first", "second", "order"), RANDOM)
def test_random_betas(spec: str, convert: str, first: str, second: str, order: int) -> None:
    """Attained within 1e-3 of the claim, and never above it."""
    rng = np.random.default_rng(len(spec) + order)
    p = converted(spec, convert)
    for _ in range(3):
        high = rng.uniform(0.3, 0.99)
        hypers = {second: high}
        if first is not None:
            hypers[first] = (rng.uniform(0.05, 0.97) * high) ** (1 / order)
        if spec == "amsgrad":  # sharp where the extremal sequence grows: b1 < b2
            hypers[first] = min(hypers[first], high)
        if spec == "adan":
            hypers["beta2"] = (rng.uniform(0.05, 0.97) * high) ** (1 / order)
        value, attained = checked(p, hypers)
        assert attained >= value * (1 - 1e-3)


@pytest.mark.parametrize(
    ("spec", "hypers"),
    [
        ("adamw", {"beta1": 0.9, "beta2": 0.8}),
        ("adamax", {"beta1": 0.9, "beta2": 0.9}),
        ("nadam", {"beta1": 0.99, "beta2": 0.9}),
        ("adabelief", {}),
    ],
)
def test_no_bound(spec: str, hypers: dict[str, float]) -> None:
    """Where the series diverges, longer sequences reach more."""
    p = converted(spec)
    b = prove(p, hypers, steps=0)
    assert b.status == "infinite" and math.isinf(b.value) and not b.at_most_one
    ((ratio,),) = derive(p)
    grads = ratio.weights({h.name: h.default for h in p.hypers} | hypers).sequence()
    reached = [extremal.attained(bare(p), grads[-n:], hypers) for n in (5, 50, 400)]
    assert reached[0] < reached[1] < reached[2] and reached[2] > 10 * reached[0]
    assert b.attained == pytest.approx(reached[2], rel=1e-2)


# ---------------------------------------------------------------- specs written here

OWN = {
    "mixed read": """
        a, b = hyper(0.8, ge=0, lt=1), hyper(0.95, ge=0, lt=1)
        q, w = ema(grad, a), ema(grad**2, b)
        numerator = 0.3*q - 0.7*grad
        denominator = 2*sqrt(w)""",
    "third order, temporaries, eps inside": """
        a, b = hyper(0.8, ge=0, lt=1), hyper(0.9, ge=0, lt=1)
        tiny = hyper(1e-9, ge=0)
        q, w = ema(grad, a), moment(grad, order=3, beta=b)
        top = q + 0.1*grad
        bottom = root(w + tiny, 3)
        numerator = top / 3
        denominator = max(bottom, tiny)""",
    "average of an average": """
        a, b = hyper(0.7, ge=0, lt=1), hyper(0.95, ge=0, lt=1)
        q = ema(grad, a)
        r = ema(q, a)
        w = ema(grad**2, b)
        numerator = r.corrected
        denominator = sqrt(w.corrected)""",
    "a state of its own": """
        a = hyper(0.6, ge=0, lt=1)
        s = state()
        s.next = a*s.prev + grad
        w = state()
        w.next = 0.5*w.prev + 0.25*grad**2
        numerator = s
        denominator = sqrt(w)""",
    "the last step's moment": """
        q, w = ema(grad, 0.5), ema(grad**2, 0.9)
        numerator = q.prev + grad
        denominator = sqrt(w)""",
    "signed weights beside a maximum": """
        b = hyper(0.9, ge=0, le=1)
        q, top = ema(grad, 0.5), max_ema(abs(grad), b)
        numerator = q - 0.6*grad
        denominator = 3*top""",
    "a maximum of another moment": """
        a, b = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, le=1)
        q = ema(grad, a)
        top = max_ema(abs(q), b)
        numerator = a*q + (1 - a)*grad
        denominator = top""",
    "differences of gradients": """
        c = hyper(0.5, ge=0, lt=1)
        old = state()
        old.next = grad
        q, w = ema(grad, 0.6), ema((grad + c*(grad - old.prev))**2, 0.9)
        numerator = q
        denominator = sqrt(w)""",
    "mean absolute value": """
        a, b = hyper(0.5, ge=0, lt=1), hyper(0.9, ge=0, lt=1)
        q, w = ema(grad, a), ema(abs(grad), b)
        numerator = q
        denominator = w""",
    "the first gradient starts the average": """
        q, w = ema(grad, 0.8, init="first"), ema(grad**2, 0.9, init="first")
        numerator = q
        denominator = sqrt(w)""",
    "an accumulator that starts above zero": """
        q, w = ema(grad, 0.5), state(init=1)
        w.next = w.prev + grad**2
        numerator = q
        denominator = sqrt(w)""",
    "a mask": """
        q, w = ema(grad, 0.5), ema(grad**2, 0.9)
        kept = where(q * grad > 0, q, 0)
        numerator = kept * where(grad > 0, 1, 0.5)
        denominator = sqrt(w)""",
    "a quotient as update": """
        a, b = hyper(0.8, ge=0, lt=1), hyper(0.9, ge=0, lt=1)
        q, w = ema(grad, a), ema(grad**2, b)
        ratio = q / (sqrt(w) + 1e-8)
        update = -0.5 * ratio""",
}


@pytest.mark.parametrize("case", OWN)
def test_specs_written_here(case: str, tmp_path: Path) -> None:
    p = program_of(tmp_path, OWN[case])
    rng = np.random.default_rng(5)
    for hypers in ({}, {h.name: h.default * rng.uniform(0.9, 1) for h in p.hypers}):
        hypers.pop("lr", None)
        value, attained = checked(p, hypers)
        assert attained >= value * (1 - 1e-3)
        assert extremal.search(bare(p), hypers, steps=100) <= value * (1 + 1e-9)


def test_a_maximum_beside_a_read_ahead_is_one_plus_two_beta(tmp_path: Path) -> None:
    """docs/design.md#commutation: sup|n_t|/G = 1 + 2b where G bounds |m_t| only."""
    p = program_of(tmp_path, OWN["a maximum of another moment"])
    assert prove(p, {"b": 1.0, "a": 0.9}, steps=0).value == pytest.approx(2.8)


@pytest.mark.parametrize(
    "spec", [pytest.param(n, marks=marks(Entry(n) in CORE)) for n in builtin_names()]
)
def test_search_never_beats_a_bound(spec: str) -> None:
    p = converted(spec)
    b = prove(p, steps=0)  # without the search that follows where nothing is proved
    if b.status != "proved":
        return
    largest = max(b.value, b.early[1] if b.early else 0.0)
    assert extremal.search(bare(p), {}, steps=200, seed=3) <= largest * (1 + 1e-9)


# ---------------------------------------------------------------- each t on its own


@pytest.mark.parametrize(("t", "value"), [(1, 1.0), (10, 1.043), (100, 2.243), (1000, 5.781)])
def test_bias_correction_caps_the_first_steps(t: int, value: float) -> None:
    """The figures of docs/design.md#the-largest-ratio; the bound rises with t, so the last of t
    steps has it."""
    p = converted("adamw")
    ((ratio,),) = derive(p)
    step, size = extremal.early(ratio.program, ratio.weights({}), {}, t)
    assert step == t and size == pytest.approx(value, abs=6e-4)


def test_a_schedule_can_raise_the_first_steps() -> None:
    """The limit is not the maximum while the momentum schedule lasts; checked by running."""
    p = converted("nadam")
    b = prove(p)
    t, size = b.early
    assert 1 < t < EARLY and size > 1.5 * b.value
    ratio = bare(p)
    heads, tails = np.zeros(40), np.zeros(40)  # responses at t to a unit gradient k steps before
    run_a = extremal.Run(extremal.ratio_program(ratio, ratio.numerator, None), 40, {})
    run_b = extremal.Run(extremal.ratio_program(ratio, ratio.denominator, None), 40, {})
    for step in range(1, t + 1):
        g = np.where(np.arange(40) == t - step, 1.0, 0.0)
        heads, tails = run_a.step(g), run_b.step(g)
    run = extremal.Run(ratio, 1, {})
    for step in range(1, t + 1):
        k = t - step
        x = run.step(np.array([heads[k] / tails[k] ** 2 if k < 40 else 0.0]))
    assert abs(x[0]) == pytest.approx(size, rel=1e-3)
    assert abs(x[0]) <= size * (1 + 1e-9)
