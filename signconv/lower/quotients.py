"""A ratio as the numerator times the reciprocal of its denominator, where that stays away from 0
(docs/design.md#ratios).

A denominator is a root of something >= 0, times bias corrections, and what is added to it is >= 0.
Where the recurrences tie the numerator to it, what is smaller than any promised gradient makes
counts as 0 and moves nothing: then its reciprocal has one sequence of instructions, and no check
looks at what is divided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from signconv.ir.analysis import is_scalar
from signconv.ir.nodes import Const, Expr, Op, Ref, add, mul, op
from signconv.lower.powers import integer_power
from signconv.lower.sign_form import ONE, peel, peel_root

if TYPE_CHECKING:
    from signconv.lower.schedule import Lowerer

#: Whole orders of roots that have an inverse (lower/decompositions.py).
INVERSE = range(3, 17)
#: The root of what counts as 0, as in ``divisor_sqrt``: no correction makes it overflow.
HUGE = 2.0**100
#: Names, sums and maxima to look through for a root: a program may share them without end.
DEPTH = 6


def quotient(low: Lowerer, numerator: Expr, denominator: Expr) -> Expr | None:
    """The lowered ``numerator / denominator``, or None where the denominator may come near 0."""
    inverse = _inverse_root(low, numerator, denominator)
    if inverse is None:
        bounded = _bounded(low, numerator, denominator)
        if bounded is None:
            return None
        inverse = Op("reciprocal", (bounded,))
    return mul(low.short("numerator", numerator), inverse)


def _inverse_root(low: Lowerer, numerator: Expr, e: Expr) -> Expr | None:
    """1 / e for a root of order 3 or more by itself."""
    core, factor, order = _root(low, numerator, e)
    if order not in INVERSE or factor != ONE:
        return None
    return Op("inverse_root", (low.local("power", core), Const(float(order))))


def _bounded(low: Lowerer, numerator: Expr, e: Expr, depth: int = DEPTH) -> Expr | None:
    """``e`` lowered, if it is a root that the numerator is tied to, and what is added to it."""
    if depth == 0:
        return None
    if isinstance(e, Ref) and e.kind == "temp" and not is_scalar(e, low.p):
        return _bounded(low, numerator, low.p.temp(e.name).expr, depth - 1)
    if isinstance(e, Op) and e.fn in ("add", "max"):
        for one, other in (e.args, e.args[::-1]):
            if low.ranges.nonneg(other):
                made = _bounded(low, numerator, one, depth - 1)
                if made is not None:
                    rest = low.element(other, "denominator")
                    return add(made, rest) if e.fn == "add" else op("nonneg_max", made, rest)
    core, factor, order = _root(low, numerator, e)
    if order == 2:
        root: Expr = Op("divisor_sqrt", (low.element(core, "power"),))
    elif order in INVERSE:
        power = low.local("power", core)
        inverse = low.local("inverse", Op("inverse_root", (power, Const(float(order)))))
        root = mul(power, integer_power(inverse, order - 1))
        root = op("where", op("eq", inverse, 0), HUGE, root)
    else:
        return None
    if factor == ONE:
        return root
    factor = op("sqrt", factor) if order == 2 else op("root", factor, order)
    return mul(root, low.scalar(factor, "root_correction"))


def _root(low: Lowerer, numerator: Expr, e: Expr) -> tuple[Expr, Expr, int]:
    """``e`` = (core * factor)**(1/order) with a factor of bias corrections alone; order 0 where it
    is none, or where nothing ties the numerator to it."""
    if not (isinstance(e, Op) and e.fn in ("sqrt", "root")) or not low.ranges.nonneg(e.args[0]):
        return e, ONE, 0
    core, factor, order = peel_root(low, e)
    if order == 1:
        return e, ONE, 0
    if not _corrections(factor):
        core, factor = e.args[0], ONE
    return (core, factor, order) if low.ties(numerator, core, order) else (e, ONE, 0)


def folded(low: Lowerer, numerator: Expr) -> tuple[Expr, Expr]:
    """A numerator without its bias correction, and that: it is part of lr."""
    core, factor = peel(low, numerator)
    return (core, factor) if _corrections(factor) else (numerator, ONE)


def _corrections(factor: Expr) -> bool:
    """Whether a factor is made of 1 / (1 - beta**t): between 1 and 2^53, whatever beta."""
    if not isinstance(factor, Op):
        return factor == ONE
    if factor.fn == "mul":
        return all(_corrections(a) for a in factor.args)
    return factor.fn == "div" and factor.args[0] == ONE and _bias(factor.args[1])


def _bias(e: Expr) -> bool:
    if not (isinstance(e, Op) and e.fn == "sub" and e.args[0] == ONE):
        return False
    return isinstance(e.args[1], Op) and e.args[1].fn == "pow"


__all__ = ["folded", "quotient"]
