"""Which products and sums become one operation, and with which signs."""

import pytest

from signconv.ir.nodes import Const, Expr, Op, Ref, add, mul, sub
from signconv.ir.show import text
from signconv.lower.fusion import fused, scales_apart, with_scales
from signconv.lower.kernel_program import MomentPlan, Statement

A, B, C, D = (Ref("local", name) for name in "abcd")


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (add(mul(A, B), C), "fma(a, b, c)"),
        (add(C, mul(A, B)), "fma(a, b, c)"),
        (sub(mul(A, B), C), "fma(a, b, -c)"),
        (sub(C, mul(A, B)), "fma(-a, b, c)"),
        (sub(C, mul(Const(2.0), B)), "fma(-2, b, c)"),
        (sub(mul(A, B), Const(2.0)), "fma(a, b, -2)"),
        (add(mul(A, B), mul(C, D)), "fma(a, b, c * d)"),
        (sub(mul(A, B), mul(C, D)), "fma(a, b, -c * d)"),
        (add(A, mul(B, add(mul(C, D), A))), "fma(b, fma(c, d, a), a)"),
        (mul(add(A, B), C), "(a + b) * c"),
        (sub(A, B), "a - b"),
    ],
)
def test_products_that_feed_sums(expr: Expr, expected: str) -> None:
    """The first of two products; a difference turns a sign that an instruction reads for free."""
    assert text(fused(Statement("x", expr)).expr) == expected


M, BETA = Ref("prev", "m"), Ref("scalar", "beta")
DECAYED = Op("fma", (BETA, M, A))


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (DECAYED, "fma(beta * m_scale, m_code, a)"),
        (Op("fma", (M, BETA, A)), "fma(beta * m_scale, m_code, a)"),
        (Op("max", (mul(BETA, M), A)), "max(beta * m_scale * m_code, a)"),
        (mul(Const(2.0), M), "2 * m_scale * m_code"),
        (
            add(DECAYED, mul(Const(0.5), M)),
            "fma(beta * m_scale, m_code, a) + 0.5 * m_scale * m_code",
        ),
        (add(DECAYED, M), None),  # the number itself is read as well
        (Op("fma", (A, M, B)), None),  # a differs from element to element
        (mul(M, M), None),
        (Op("abs", (M,)), None),
        (add(A, B), None),  # not read at all
        (add(DECAYED, Ref("local", "m_code")), None),  # the name is taken
    ],
)
def test_a_coefficient_takes_the_scale(expr: Expr, expected: str | None) -> None:
    """Where a moment is read beside numbers alone that all elements share."""
    (m,) = scales_apart([MomentPlan("m", "e4m3", 0, 1)], [expr], {"beta"})
    assert m.apart == (expected is not None)
    assert text(with_scales(expr, [m], {"beta"})) == (expected or text(expr))


def test_names_that_statements_have_are_not_taken() -> None:
    """A moment m_code beside m, of which only the value before the step is read."""
    plan = MomentPlan("m", "e4m3", 0, 1)
    assert scales_apart([plan], [DECAYED], {"beta"}, {"m_code"}) == (plan,)
    other = MomentPlan("m_scale", "e4m3", 0, 2)
    assert not scales_apart([plan, other], [DECAYED], {"beta"})[0].apart


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "e4m3-raw", "e4m3-root5"])
def test_what_has_no_scale_or_is_a_power_of_it_stays_whole(fmt: str) -> None:
    plan = MomentPlan("m", fmt, 0, 1)
    assert scales_apart([plan], [DECAYED], {"beta"}) == (plan,)
