"""A program's update as a ratio of series: what ``proofs`` bounds.

The update is cut into factors; those of known size become a number, the others are numerator and
denominator, read as linear and power signals of the gradient by ``symbolic.View``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sympy as sp

from signconv.ir.analysis import Ranges, inlined, is_scalar
from signconv.ir.nodes import REDUCTIONS, Const, Expr, Op, Program, mul, op, rewrite, walk
from signconv.prove.extremal import Weights, ratio_program
from signconv.prove.signals import Linear, Power, Unproved, Z
from signconv.prove.symbolic import FIRST, T, View, number, symbol

Hypers = Mapping[str, float]


@dataclass(frozen=True)
class Ratio:
    """Series of the weights a and c, and the order p; ``gain`` multiplies the ratio.

    ``exact``: the denominator is this and not merely at least this, and no factor was bounded.
    """

    program: Program
    a: Any
    c: Any
    base: Linear
    order: Any
    rate: Any
    gain: float
    exact: bool
    assumptions: tuple[str, ...]

    def values(self, hypers: Hypers) -> dict[Any, float]:
        """Symbols of the hyperparameters with their values."""
        p = self.program
        return {symbol(p, h.name): hypers.get(h.name, h.default) for h in p.hypers}

    def weights(self, hypers: Hypers) -> Weights:
        """The numbers at one choice of hyperparameters."""
        at = self.values(hypers)

        def coefficients(e: Any) -> tuple[Any, Any]:
            pair = sp.fraction(sp.together(e))
            made = [sp.Poly(x, Z).all_coeffs()[::-1] for x in pair]
            lists = [np.array([float(x.subs(at)) for x in coefs]) for coefs in made]
            return lists[0], lists[1]

        rate = None if self.rate is None else float(sp.sympify(self.rate).subs(at))
        return Weights(
            coefficients(self.a),
            coefficients(self.c),
            coefficients(self.base.weights),
            float(self.order),
            rate,
        )

    def supremum(self, hypers: Hypers) -> float:
        """The bound as t -> infinity, from the series."""
        return self.gain * self.weights(hypers).supremum()


@dataclass(frozen=True)
class Free:
    """An update without denominator: linear in u with weights that sum to ``total``.

    ``size`` bounds abs(u), gain included; None where nothing does.
    """

    weights: Linear
    size: float | None

    @property
    def total(self) -> Any:
        return sp.simplify(self.weights.weights.subs(Z, 1))


def derive(p: Program, view: View | None = None) -> list[list[Ratio]] | list[Free]:
    """For each form of the numerator, the ratios to what the denominator is never below.

    The forms are those that elementwise choices leave.  Raises Unproved with the reason where a
    form has no such ratio.
    """
    view = view or View(p)
    over, under = fraction(p)
    count = len(over) + len(under)
    gain, over, under = _bounded(p, over, under)
    whole = len(over) + len(under) == count
    if any(isinstance(n, Op) and n.fn in REDUCTIONS for e in over + under for n in walk(e)):
        raise Unproved("it reads a norm or a mean, which couples the elements of a tensor")
    if not over:
        raise Unproved("its numerator is bounded by a number, whatever the gradients")
    forms = branches(p, product(over))
    if not forms:
        raise Unproved("the numerator has too many elementwise choices")
    if not under:
        return [_free(p, view, form, gain) for form in forms]
    bottom = product(under)
    found = []
    for form in forms:
        made, reason = [], ""
        for scale in scales(view, bottom):
            try:
                r = _ratio(p, view, form, scale, bottom, gain)
                made.append(replace(r, exact=r.exact and whole and len(forms) == 1))
            except Unproved as why:
                reason = str(why)
        if not made:
            raise Unproved(reason or _why(view, bottom))
        found.append(made)
    return found


def _why(view: View, e: Expr) -> str:
    """Why a denominator has no scales."""
    try:
        view.signal(_stripped(view.p, view.ranges, e))
    except Unproved as reason:
        return str(reason)
    return "the denominator may be negative"


def _ratio(p: Program, view: View, top: Expr, scale: Power, bottom: Expr, gain: float) -> Ratio:
    num = view.signal(top)
    if isinstance(num, Power) and num.plain and num.order == 1:  # abs() of something linear
        num = replace(num.base, weights=num.base.weights * num.weights)
    if not isinstance(num, Linear):
        raise Unproved("the numerator is not linear in the gradients")
    base = scale.base
    if num.atom not in (base.atom, None):
        raise Unproved("numerator and denominator see different functions of the gradient")
    if scale.order < 1 or scale.weights == 0:
        raise Unproved("the denominator is no norm of the gradients")
    if scale.order != scale.root:
        raise Unproved("it changes when all gradients are scaled, so it has no bound")
    a = sp.cancel(num.weights / base.weights)
    timed = (T, FIRST, *view.timed)
    if base.weights.has(*timed) and a.has(Z, *timed):
        raise Unproved("a weight inside a recurrence changes with t")
    c, order, rate = scale.weights, scale.order, scale.rate
    if rate is not None:
        c, order, rate = c ** (1 / order), sp.Integer(1), rate ** (1 / order)
    plain = ratio_program(p, top, stripped(p, bottom))
    needs = tuple(sorted(view.assumptions))
    return Ratio(plain, a, sp.cancel(c), base, order, rate, gain, scale.exact, needs)


def _free(p: Program, view: View, form: Expr, gain: float) -> Free:
    num = view.signal(form)
    if not isinstance(num, Linear) or num.atom is None:
        raise Unproved("it has no denominator and is not linear in a function of the gradient")
    size = size_of(p, num.atom)
    return Free(num, None if size is None or not num.nonneg else gain * size)


def product(parts: list[Expr]) -> Expr:
    """Their product, in order."""
    made = parts[0]
    for e in parts[1:]:
        made = mul(made, e)
    return made


# ---------------------------------------------------------------- cutting expressions


def fraction(p: Program) -> tuple[list[Expr], list[Expr]]:
    """The factors of a program's ratio above and below the bar, temporaries written out."""
    over, under = factors(p, inlined(p, p.numerator))
    if p.denominator is not None:
        below, above = factors(p, inlined(p, p.denominator))
        over, under = over + above, under + below
    return over, under


def factors(p: Program, e: Expr) -> tuple[list[Expr], list[Expr]]:
    """Factors above and below the fraction bar."""
    if isinstance(e, Op) and e.fn in ("mul", "div") and not is_scalar(e, p):
        (a, b), (c, d) = factors(p, e.args[0]), factors(p, e.args[1])
        return (a + c, b + d) if e.fn == "mul" else (a + d, b + c)
    return [e], []


def _bounded(
    p: Program, over: list[Expr], under: list[Expr]
) -> tuple[float, list[Expr], list[Expr]]:
    """The product of the factors of known size that stand beside others, and the rest.

    Plain scalars stay: they belong to the weights.
    """
    kept: tuple[list[Expr], list[Expr]] = ([], [])
    gain = 1.0
    several = sum(not is_scalar(e, p) for e in over) > 1
    for e in over:
        size = None if is_scalar(e, p) or not several else size_of(p, e)
        if size is None:
            kept[0].append(e)
        else:
            gain *= size
    for e in under:
        least = None if is_scalar(e, p) else least_of(e)
        if least is None:
            kept[1].append(e)
        else:
            gain /= least
    alone = [e for e in kept[1] if not is_scalar(e, p)]
    if not alone and kept[1]:
        kept = [*kept[0], *(op("div", 1, e) for e in kept[1])], []
    return gain, *kept


def size_of(p: Program, e: Expr) -> float | None:
    """A number that abs(e) never exceeds."""
    if isinstance(e, Const):
        return abs(e.value)
    if not isinstance(e, Op):
        return None
    sizes = [size_of(p, a) for a in e.args]
    if e.fn in ("sign", "tanh"):
        return 1.0
    if e.fn in ("neg", "abs", "mean", "sqrt"):
        return sizes[0] if e.fn != "sqrt" or sizes[0] is None else sizes[0] ** 0.5
    known = [x for x in sizes if x is not None]
    if e.fn == "mul" and len(known) == 2:
        return known[0] * known[1]
    if e.fn in ("where", "clip"):
        pair = sizes[1:]
        return None if None in pair else max(x for x in pair if x is not None)
    return None


def least_of(e: Expr) -> float | None:
    """A number > 0 that ``e`` never falls below."""
    if isinstance(e, Op) and e.fn == "max":
        found = [a.value for a in e.args if isinstance(a, Const) and a.value > 0]
        return max(found, default=None)
    return None


def branches(p: Program, e: Expr, most: int = 8) -> list[Expr]:
    """The forms an expression takes as its elementwise choices fall either way; [] if too many."""
    for n in walk(e):
        if isinstance(n, Op) and n.fn == "where" and not is_scalar(n, p):
            found: list[Expr] = []
            for taken in n.args[1:]:
                found += branches(p, rewrite(e, lambda x, n=n, t=taken: t if x is n else None))  # type: ignore[misc]
            return found if len(found) <= most else []
    return [e]


def stripped(p: Program, e: Expr) -> Expr:
    """A denominator without the scalars >= 0 added to it (eps), also inside roots and max."""
    return _stripped(p, Ranges(p), inlined(p, e))


def _stripped(p: Program, ranges: Ranges, e: Expr) -> Expr:
    if not isinstance(e, Op) or is_scalar(e, p):
        return e
    if e.fn in ("add", "max"):
        for kept, offset in (e.args, e.args[::-1]):
            if is_scalar(offset, p) and ranges.nonneg(offset) and ranges.nonneg(kept):
                return _stripped(p, ranges, kept)
    if e.fn in ("sqrt", "root", "mul", "add", "max"):
        return replace(e, args=tuple(_stripped(p, ranges, a) for a in e.args))
    if e.fn == "div":  # less in a divisor is more of the quotient
        return replace(e, args=(_stripped(p, ranges, e.args[0]), e.args[1]))
    return e


def scales(view: View, e: Expr) -> Iterator[Power]:
    """Power signals that a denominator is provably never below, scalars >= 0 in it left out."""
    p, ranges = view.p, view.ranges
    e = _stripped(p, ranges, e)
    try:
        made = view.signal(e)
    except Unproved:
        made = None
    if isinstance(made, Power):
        yield made
    elif isinstance(made, Linear) or not isinstance(e, Op):
        return
    elif e.fn in ("add", "max") and all(ranges.nonneg(a) for a in e.args):
        for a in e.args:
            yield from (replace(x, exact=False) for x in scales(view, a))
    elif e.fn in ("sqrt", "root"):
        n = e.args[1] if e.fn == "root" else Const(2.0)
        assert isinstance(n, Const)
        yield from (replace(x, root=x.root * number(n.value)) for x in scales(view, e.args[0]))
    elif e.fn in ("mul", "div") and is_scalar(e.args[1], p):
        factor = e.args[1] if e.fn == "mul" else op("div", 1, e.args[1])
        for x in scales(view, e.args[0]):
            scaled = view.scaled(x, factor)
            assert isinstance(scaled, Power)
            yield scaled
