"""The argument of a sign update, without divisions and without roots
(docs/design.md#the-argument-of-a-sign).

A sign does not change when its argument is scaled by a positive number, so
sign(m/a + sqrt(v/b)*n) = sign(m*|m| + v*k*(n*|n|)) with k = a**2/b: the squares keep the order of
m/a and sqrt(v/b)*n and their signs.  A root of order p works the same way with p-th powers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from signconv.ir.analysis import is_scalar
from signconv.ir.nodes import NOISE, Const, Expr, Op, Ref, add, div, mul
from signconv.lower.scalars import bias

if TYPE_CHECKING:
    from signconv.lower.schedule import Lowerer

ONE = Const(1.0)


def sign_argument(low: Lowerer) -> Expr:
    """The lowered expression whose sign is the update of ``low.p``."""
    p = low.p
    if p.link == "sign":
        core, _ = peel(low, p.numerator)
        return low.element(core, "numerator")
    assert p.denominator is not None
    num, num_factor = peel(low, p.numerator)
    den, den_factor, order = peel_root(low, p.denominator)
    m = low.local("numerator", num) if order > 1 else low.element(num, "numerator")
    left, right = signed_power(m, order), signed_power(NOISE, order)
    if order > 2:  # lines that a reader can take in
        left, right = low.local("numerator_power", left), low.local("noise_power", right)
    gain = over(den_factor, _power(num_factor, order))
    sigma = low.local("denominator", den) if order > 1 else low.element(den, "denominator")
    if gain != ONE:
        sigma = mul(sigma, low.scalar(gain, "noise_gain"))
    return add(left, mul(sigma, right))


def peel(low: Lowerer, e: Expr) -> tuple[Expr, Expr]:
    """``e`` = core * factor with a factor that is a scalar, provably positive (1 if none)."""
    p = low.p
    if isinstance(e, Ref) and e.kind == "temp" and _peelable(low, p.temp(e.name).expr):
        return peel(low, p.temp(e.name).expr)
    if isinstance(e, Op) and e.fn == "corrected":
        ref = e.args[0]
        assert isinstance(ref, Ref)
        total = bias(p, ref.name)
        return (ref, div(1, total)) if low.ranges.positive(total) else (e, ONE)
    if isinstance(e, Op) and e.fn in ("mul", "div"):
        a, b = e.args
        if is_scalar(b, p) and low.ranges.positive(b):
            core, factor = peel(low, a)
            return core, times(factor, b) if e.fn == "mul" else over(factor, b)
        if e.fn == "mul" and is_scalar(a, p) and low.ranges.positive(a):
            core, factor = peel(low, b)
            return core, times(a, factor)
    return e, ONE


def _peelable(low: Lowerer, e: Expr) -> bool:
    return not is_scalar(e, low.p) and peel(low, e)[1] != ONE


def peel_root(low: Lowerer, e: Expr) -> tuple[Expr, Expr, int]:
    """``e`` = (core * factor)**(1/order); order 1 where ``e`` is not a root of something >= 0."""
    if isinstance(e, Op) and (e.fn == "sqrt" or (e.fn == "root" and _integer(e.args[1]))):
        order = 2 if e.fn == "sqrt" else int(e.args[1].value)  # type: ignore[attr-defined]
        if low.ranges.nonneg(e.args[0]):
            core, factor = peel(low, e.args[0])
            return core, factor, order
    core, factor = peel(low, e)
    if isinstance(core, Op) and core.fn in ("sqrt", "root") and core is not e:
        inner, inner_factor, order = peel_root(low, core)
        return inner, times(inner_factor, _power(factor, order)), order
    return core, factor, 1


def signed_power(x: Expr, order: int) -> Expr:
    """sign(x) * abs(x)**order, exactly in this order of evaluation."""
    if order == 1:
        return x
    size = Op("abs", (x,))
    result: Expr = x
    for _ in range(order - 1):
        result = mul(result, size)
    return result


def _integer(e: Expr) -> bool:
    return isinstance(e, Const) and e.value == int(e.value)


def times(a: Expr, b: Expr) -> Expr:
    return b if a == ONE else a if b == ONE else mul(a, b)


def over(a: Expr, b: Expr) -> Expr:
    """a / b, with reciprocals turned over so that the scalar code stays readable."""
    if b == ONE:
        return a
    turned = _reciprocal(b)
    if turned is None:
        return div(a, b)
    below = _reciprocal(a)
    return turned if a == ONE else div(turned, below) if below is not None else mul(a, turned)


def _reciprocal(e: Expr) -> Expr | None:
    """x where ``e`` is 1/x or a product of such."""
    if isinstance(e, Op) and e.fn == "div" and e.args[0] == ONE:
        return e.args[1]
    if isinstance(e, Op) and e.fn == "mul":
        parts = [_reciprocal(a) for a in e.args]
        if parts[0] is not None and parts[1] is not None:
            return mul(parts[0], parts[1])
    return None


def _power(a: Expr, n: int) -> Expr:
    result = a
    for _ in range(n - 1):
        result = times(result, a)
    return result


__all__ = ["ONE", "over", "peel", "peel_root", "sign_argument", "times"]
