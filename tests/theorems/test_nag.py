"""C4: three forms of Nesterov's accelerated gradient are one, in symbols, for any gradient."""

from __future__ import annotations

import sympy as sp

from tests.support.runs import OWN, converted
from tests.support.symbols import hyper, normal, same, unroll

STEPS = 4
F = sp.Function("F")
B = hyper("b")
CONSTANT = [hyper("rate")] * STEPS
VARYING = [hyper(f"rate{t}") for t in range(1, STEPS + 1)]
FORMS = {
    "II": (converted(OWN + "MomentumFromZero", "nesterov"), {"momentum": "b"}),
    "III": (converted(OWN + "AdanNumerator"), {"beta": "b"}),
    "III, g_0 = g_1": (converted(OWN + "AdanOwnStart"), {"beta": "b"}),
}


def pass_form(name: str, rates: list[sp.Expr]) -> list[sp.Expr]:
    """x_1 … x_4 of a program that is given g = F(x); no weight decay."""
    program, values = FORMS[name]
    values = values | {"weight_decay": "0"}
    steps = unroll(program, STEPS, values, lambda x, t: F(normal(x)), rates)
    return [s.param for s in steps]


def look_ahead(rates: list[sp.Expr]) -> list[sp.Expr]:
    """Form I by hand: g at th - rate*b*m; returns those points, one step after another."""
    th, m = sp.Symbol("x0", real=True), sp.Integer(0)
    points = []
    for t, rate in enumerate(rates):
        m = B * m + (1 - B) * F(normal(th - rate * B * m))
        th = th - rate * m
        after = rates[min(t + 1, STEPS - 1)]
        points.append(th - after * B * m)
    return points


def equal(a: list[sp.Expr], b: list[sp.Expr]) -> list[bool]:
    return [same(x, y) for x, y in zip(a, b, strict=True)]


def test_all_three_at_a_constant_rate() -> None:
    second = pass_form("II", CONSTANT)
    assert all(equal(look_ahead(CONSTANT), second))
    assert all(equal(second, pass_form("III", CONSTANT)))


def test_second_and_third_at_any_rate() -> None:
    assert all(equal(pass_form("II", VARYING), pass_form("III", VARYING)))


def test_first_differs_at_a_varying_rate() -> None:
    """After step 1 by b*(1-b)*(rate1 - rate2)*g_1, when its point is the next look-ahead."""
    first, second = look_ahead(VARYING), pass_form("II", VARYING)
    gap = B * (1 - B) * (VARYING[0] - VARYING[1]) * F(sp.Symbol("x0", real=True))
    assert same(first[0] - second[0], gap)
    assert not any(equal(first, second))


def test_third_with_the_other_start_differs() -> None:
    """g_0 = g_1 leaves out b*(1-b)*g_1 at the first step."""
    other, third = pass_form("III, g_0 = g_1", CONSTANT), pass_form("III", CONSTANT)
    assert same(other[0] - third[0], CONSTANT[0] * B * (1 - B) * F(sp.Symbol("x0", real=True)))
    assert not any(equal(other, third))
