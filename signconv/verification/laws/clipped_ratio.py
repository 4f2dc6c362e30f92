"""What stosign and expected share: the clipped ratio of the program before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce
from itertools import accumulate

import numpy as np

from signconv.ir.analysis import is_scalar
from signconv.ir.nodes import Expr, Op, Program, Ref, add
from signconv.verification.laws.base import Array, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """clip(ratio) of the program before: as it is, or as the mean of a sign over its draws.

    There a negative sigma mirrors the draws, so that the mean is clip(m/abs(sigma)).
    """
    plain = replace(before, link="ratio")
    grads = gradients()
    tops = [u for u, _ in run(replace(plain, denominator=None), grads)]
    if before.denominator is None:
        (g,) = {m.name for m in after.moments} - {m.name for m in before.moments}
        beta = after.moment(g).beta
        hyper = after.hyper(beta.name) if isinstance(beta, Ref) else None
        kept = 1.0 if hyper is None else hyper.default
        sigmas = [*accumulate(map(np.abs, tops), lambda last, new: np.maximum(kept * last, new))]
        states = [s for _, s in run(replace(after, link="ratio"), grads)]
        if any(differ(s[g], largest) for s, largest in zip(states, sigmas, strict=True)):
            return f"{g} is not the decayed maximum of the numerator"
    else:
        below = before.denominator
        again = before.link == "stosign"  # another noise is all that such a program gets
        if options.get("eps", "drop") != "keep" and not again:
            below = without_summands(before, below)
        sigma = replace(plain, numerator=below, denominator=None)
        sigmas = [u for u, _ in run(sigma, grads)]
    if after.link == "expected":
        found = [u for u, _ in run(after, grads)]
        wanted = [_clipped(m, s) for m, s in zip(tops, sigmas, strict=True)]
        return "not the clipped ratio" if any(map(differ, found, wanted)) else ""
    wanted = [_clipped(m, np.abs(s)) for m, s in zip(tops, sigmas, strict=True)]
    draws = [(2 * u + 1 - levels) / levels for u in range(levels)]
    signs = np.mean([[u for u, _ in run(after, grads, n)] for n in draws], axis=0)
    gap = np.abs(signs - wanted)
    return "mean of the sign is not clip(ratio)" if (gap > 1 / levels + 1e-9).any() else ""


def without_summands(p: Program, e: Expr) -> Expr:
    """The denominator as it was written, less the numbers that are added to the whole of it:
    outside of the root that it is, inside of that root, or both (docs/design.md#passes)."""
    while isinstance(e, Ref) and e.kind == "temp":
        e = p.temp(e.name).expr
    if not isinstance(e, Op) or is_scalar(e, p):
        return e
    if e.fn == "add":
        first, *others = [x for x in _terms(p, e) if not is_scalar(x, p)]
        return reduce(add, others, first) if others else without_summands(p, first)
    whole = [i for i, a in enumerate(e.args) if not is_scalar(a, p)]
    if e.fn in ("sqrt", "root", "mul") or (e.fn == "div" and whole == [0]):
        if len(whole) == 1:  # the rest are orders and factors, the same for all elements
            args = (without_summands(p, a) if i in whole else a for i, a in enumerate(e.args))
            return replace(e, args=tuple(args))
    return e


def _terms(p: Program, e: Expr) -> Iterator[Expr]:
    """The summands of a sum of sums, through names."""
    if isinstance(e, Ref) and e.kind == "temp" and isinstance(p.temp(e.name).expr, Op):
        inner = p.temp(e.name).expr
        if inner.fn == "add":  # type: ignore[attr-defined]
            e = inner
    if isinstance(e, Op) and e.fn == "add":
        for a in e.args:
            yield from _terms(p, a)
    else:
        yield e


def _clipped(m: Array, sigma: Array) -> Array:
    """clip(m/sigma, -1, 1) with 0/0 = 0."""
    return np.clip(np.where((m == 0) & (sigma == 0), 0.0, m / sigma), -1.0, 1.0)
