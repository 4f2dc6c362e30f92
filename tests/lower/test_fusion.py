"""Which products and sums become one operation, and with which signs."""

import pytest

from signconv.ir.nodes import Const, Expr, Ref, add, mul, sub
from signconv.ir.show import text
from signconv.lower.fusion import fused
from signconv.lower.kernel_program import Statement

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
