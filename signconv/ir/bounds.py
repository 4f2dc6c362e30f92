"""Bounds between moments that follow from their recurrences alone
(docs/design.md#the-largest-ratio)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from signconv.ir.analysis import Degrees, Ranges, is_constant, is_scalar
from signconv.ir.nodes import (
    GRAD,
    Const,
    Expr,
    Moment,
    Op,
    Program,
    Ref,
    div,
    mul,
    op,
    references,
    sub,
    walk,
)


@dataclass(frozen=True)
class MomentBound:
    """abs(upper)**order * floor <= lower, for every gradient sequence; floor is a scalar.

    The betas of ``floor`` are hyperparameters or numbers.  A user may change those between steps:
    then the smallest floor of all steps so far holds, and no other (docs/design.md#the-floor).
    """

    upper: Moment
    lower: Moment
    order: float
    floor: Expr


def power_of_gradient(m: Moment) -> float | None:
    """p if the input of ``m`` is abs(grad)**p, as ``grad**2`` and ``abs(grad)`` are."""
    u = m.input
    if u == Op("abs", (GRAD,)):
        return 1
    if isinstance(u, Op) and u.fn == "pow" and isinstance(u.args[1], Const):
        p, base = u.args[1].value, u.args[0]
        if base == Op("abs", (GRAD,)) or (base == GRAD and p % 2 == 0):
            return p
    return None


def moment_bounds(p: Program) -> Iterator[MomentBound]:
    """How large a numerator's EMA of the gradient can be beside a denominator's moment.

    EMA m (b1) of g against EMA v (b2) of abs(g)**p, p > 1, q = 1/(p-1), by Hölder's inequality
    over the two weight sequences: |m|**p (1-b2) (1 - (b1**p/b2)**q)**(p-1) / (1-b1)**p <= v where
    b1**p < b2, and for p = 1: |m| (1-b2)/(1-b1) <= v where b1 < b2; against the decayed maximum u
    of abs(g): |m| (b2-b1)/(b2 (1-b1)) <= u where b1 < b2; elsewhere there is no bound: floor 0.
    The betas must be provably between 0 and 1, and must not change with t by themselves: there a
    single step with b1**p >= b2 would end the bound for good.
    """
    ranges = Ranges(p)
    above: set[str] = set()
    below: set[str] = set()
    for numerator, denominator in _ratios(p):
        above |= _reach(p, numerator)
        below |= _through(p, _reach(p, denominator))
    for upper in p.moments:
        if upper.name not in above or upper.kind != "ema" or upper.input != GRAD:
            continue
        for lower in p.moments:
            order = power_of_gradient(lower)
            if lower.name not in below or order is None:
                continue
            b1, b2 = upper.beta, lower.beta
            if b1 is None or b2 is None or not (_weight(b1, p, ranges) and _weight(b2, p, ranges)):
                continue
            if upper.init != "zero" or lower.init != "zero":
                continue
            if lower.kind == "max" and order == 1:
                gap = sub(b2, b1)
                floor: Expr = div(gap, mul(b2, sub(1, b1)))
            elif lower.kind == "ema" and order == 1 and b1 != b2:
                gap = sub(b2, b1)
                floor = div(sub(1, b2), sub(1, b1))
            elif lower.kind == "ema" and order == 2 and b1 != b2:
                gap = sub(b2, mul(b1, b1))
                rest = sub(1, b1)
                floor = div(mul(sub(1, b2), gap), mul(b2, mul(rest, rest)))
            elif lower.kind == "ema" and order > 1 and b1 != b2:
                gap = sub(b2, op("pow", b1, order))
                rho = op("pow", div(op("pow", b1, order), b2), 1 / (order - 1))
                kept = op("pow", sub(1, rho), order - 1)
                floor = div(mul(sub(1, b2), kept), op("pow", sub(1, b1), order))
            elif lower.kind == "ema" and b1 == b2:
                yield MomentBound(upper, lower, order, Const(1.0))  # Jensen: equal weights
                continue
            else:
                continue
            yield MomentBound(upper, lower, order, op("where", op("gt", gap, 0), floor, 0))


def _weight(beta: Expr, p: Program, ranges: Ranges) -> bool:
    """Whether a beta is provably between 0 and 1, and the same at every step."""
    return is_constant(beta, p) and ranges.nonneg(beta) and ranges.at_most_one(beta)


def unkept(p: Program) -> set[str]:
    """Moments of a ratio that the program bounds and no ``MomentBound`` keeps: not for FP8 blocks.

    Beside a huge element FP8 rounds both to a few coarse values, a denominator's to 0 and a
    numerator's up, and nothing ties the two.  A moment that the denominator's own input reads
    (adabelief's) is tied to it by that.
    """
    degrees, bounds = Degrees(p).moments, list(moment_bounds(p))
    found: set[str] = set()
    for numerator, denominator in _ratios(p):
        below = _through(p, _reach(p, denominator))
        kept = {b.upper.name for b in bounds if b.lower.name in below}
        tied = {n for name in below for e in p.moment(name).reads for n in _reach(p, e)}
        loose = {name for name in _reach(p, numerator) - below - tied - kept if degrees[name] == 1}
        if loose and below:
            found |= loose | below
    return found


def _ratios(p: Program) -> Iterator[tuple[Expr, Expr]]:
    """Numerator and denominator of the update, and of every quotient inside it."""
    if p.denominator is not None:
        yield p.numerator, p.denominator
    for e in (p.numerator, *(x.expr for x in p.temps)):
        for n in walk(e):
            if isinstance(n, Op) and n.fn == "div" and not is_scalar(n.args[1], p):
                yield n.args[0], n.args[1]


def _through(p: Program, names: set[str]) -> set[str]:
    """``names`` and the moments whose new values these average or take the maximum of."""
    more = {n for name in names for e in p.moment(name).reads for n in _reach(p, e)} - names
    return _through(p, names | more) if more else names


def _reach(p: Program, e: Expr) -> set[str]:
    """Moments whose value ``e`` reads, through temporaries."""
    found, seen = set[str](), set[str]()
    pending = [e]
    while pending:
        e = pending.pop()
        found |= references(e, "value")
        names = references(e, "temp") - seen
        seen |= names
        pending += [p.temp(name).expr for name in names]
    return found


def has_offset(p: Program) -> bool:
    """Whether a number (eps) is added to every denominator of the update, or bounds it below."""
    return all(_offset(p, denominator) for _, denominator in _ratios(p))


def _offset(p: Program, e: Expr) -> bool:
    pending, seen = [e], set[str]()
    while pending:
        e = pending.pop()
        if isinstance(e, Ref) and e.kind == "temp" and e.name not in seen:
            seen.add(e.name)
            pending.append(p.temp(e.name).expr)
        if isinstance(e, Op) and e.fn in ("add", "max") and any(is_scalar(a, p) for a in e.args):
            return True
        if isinstance(e, Op) and e.fn in ("sqrt", "root", "mul", "div"):
            pending += e.args
    return False
