"""Bounds between moments that follow from their recurrences alone
(docs/design.md#the-largest-ratio)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from signconv.ir.analysis import (
    Degrees,
    Ranges,
    evaluation_order,
    is_constant,
    is_scalar,
    scalar_moments,
)
from signconv.ir.extras import reads_extra
from signconv.ir.nodes import (
    GRAD,
    Const,
    Expr,
    Moment,
    Op,
    Program,
    Ref,
    Temp,
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
    for numerator, denominator in ratios(p):
        above |= reached(p, numerator)
        below |= _through(p, reached(p, denominator))
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
    for numerator, denominator in ratios(p):
        below = _through(p, reached(p, denominator))
        kept = {b.upper.name for b in bounds if b.lower.name in below}
        tied = {n for name in below for e in p.moment(name).reads for n in reached(p, e)}
        loose = {name for name in reached(p, numerator) - below - tied - kept if degrees[name] == 1}
        if loose and below:
            found |= loose | below
    return found


class Ties:
    """Which ratios cannot come near x/0 by the recurrences of their moments."""

    def __init__(self, p: Program) -> None:
        self.p, self.degrees, self.ranges = p, Degrees(p), Ranges(p)
        self.bounds, self.scalars = list(moment_bounds(p)), scalar_moments(p)
        self._linear: dict[str, bool] = {}
        self._under: dict[str, frozenset[str]] = {}
        for x in evaluation_order(p):  # so that no proof recurses from name to name
            if isinstance(x, Temp):
                self._linear[x.name] = self.linear(x.expr)
                self._under[x.name] = self.under(x.expr)
            else:
                self._under[x.name] = self._moment(x)

    def __call__(self, numerator: Expr, power: Expr, order: float) -> bool:
        """Whether what is small in ``power`` is small in ``numerator``, and what is 0 was always.

        So it is where the numerator is linear in the gradient and its averages, ``power`` is at
        least a multiple of an average of abs(grad)**order, and a ``MomentBound`` keeps each
        average above within that one.
        """
        if self.degrees.of(numerator) != 1 or self.degrees.of(power) != order:
            return False
        below = {n for n in self.under(power) if power_of_gradient(self.p.moment(n)) == order}
        kept = {b.upper.name for b in self.bounds if b.lower.name in below}
        above = reached(self.p, numerator) - self.scalars
        return bool(below) and self.linear(numerator) and above <= kept

    def linear(self, e: Expr) -> bool:
        """Whether ``e`` is a sum, difference or extremum of multiples of gradient and moments."""
        if isinstance(e, Ref):
            return self._linear[e.name] if e.kind == "temp" else e.kind in ("grad", "value")
        if not isinstance(e, Op):
            return False
        if e.fn in ("mul", "div") and is_scalar(e.args[1], self.p):
            return self.linear(e.args[0])
        if e.fn == "mul" and is_scalar(e.args[0], self.p):
            return self.linear(e.args[1])
        sums = ("add", "sub", "neg", "abs", "max", "min", "corrected")
        return e.fn in sums and all(self.linear(a) for a in e.args)

    def under(self, e: Expr) -> frozenset[str]:
        """Averages of powers of the gradient that ``e`` is at least a multiple of."""
        if isinstance(e, Ref) and e.kind in ("temp", "value"):
            return self._under.get(e.name, frozenset())
        if not isinstance(e, Op):
            return frozenset()
        scaled = e.fn == "div" and is_scalar(e.args[1], self.p)
        scaled |= e.fn == "mul" and any(is_scalar(a, self.p) for a in e.args)
        if (e.fn == "add" or scaled) and not all(self.ranges.nonneg(a) for a in e.args):
            return frozenset()
        if e.fn in ("add", "max", "corrected") or scaled:
            return frozenset[str]().union(*(self.under(a) for a in e.args))
        return frozenset()

    def _moment(self, m: Moment) -> frozenset[str]:
        if m.kind == "ema" and m.next is None and power_of_gradient(m) is not None:
            # An average that keeps its first value for good is under nothing
            fades = m.beta is not None and self.ranges.at_most_one(m.beta, strictly=True)
            return frozenset({m.name}) if fades else frozenset()
        inner = m.next if m.next is not None else m.input if m.kind == "max" else None
        return frozenset() if inner is None else self.under(inner)


def covered(p: Program) -> set[str]:
    """Moments of denominators that bound everything they stand under, however both are rounded.

    Every numerator over such a moment is a sum of multiples of this step's gradient and of new
    values of averages that a ``MomentBound`` ties to it.
    """
    ties = Ties(p)
    found, refused = set[str](), set[str]()
    for numerator, denominator in ratios(p):
        above = reached(p, numerator) - ties.scalars
        whole = ties.degrees.of(numerator) == 1 and ties.linear(numerator)
        for name in _through(p, reached(p, denominator)):
            kept = {b.upper.name for b in ties.bounds if b.lower.name == name}
            (found if whole and above <= kept else refused).add(name)
    return found - refused


def ratios(p: Program) -> Iterator[tuple[Expr, Expr]]:
    """Numerator and denominator of the update, and of every quotient inside it."""
    if p.denominator is not None:
        yield p.numerator, p.denominator
    for e in (p.numerator, *(x.expr for x in p.temps)):
        for n in walk(e):
            if isinstance(n, Op) and n.fn == "div" and not is_scalar(n.args[1], p):
                yield n.args[0], n.args[1]


def _through(p: Program, names: set[str]) -> set[str]:
    """``names`` and the moments whose new values these average or take the maximum of."""
    more = {n for name in names for e in p.moment(name).reads for n in reached(p, e)} - names
    return _through(p, names | more) if more else names


def reached(p: Program, e: Expr, kind: str = "value") -> set[str]:
    """Moments whose value (or "prev", the last step's) ``e`` reads, through temporaries."""
    found, seen = set[str](), set[str]()
    pending = [e]
    while pending:
        e = pending.pop()
        found |= references(e, kind)
        names = references(e, "temp") - seen
        seen |= names
        pending += [p.temp(name).expr for name in names]
    return found


def has_offset(p: Program) -> bool:
    """Whether a number (eps) is added to every denominator of the update, or bounds it below."""
    return all(_offset(p, denominator) for _, denominator in ratios(p))


def _offset(p: Program, e: Expr) -> bool:
    pending, seen = [e], set[str]()
    while pending:
        e = pending.pop()
        if isinstance(e, Ref) and e.kind == "temp" and e.name not in seen:
            seen.add(e.name)
            pending.append(p.temp(e.name).expr)
        if isinstance(e, Op) and e.fn in ("add", "max"):
            if any(is_scalar(a, p) and not reads_extra(p, a) for a in e.args):
                return True
        if isinstance(e, Op) and e.fn in ("sqrt", "root", "mul", "div"):
            pending += e.args
    return False
