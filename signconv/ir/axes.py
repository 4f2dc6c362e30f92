"""For how much of a tensor an expression is one number: each element, a row, …, or all of it."""

from __future__ import annotations

from collections.abc import Mapping

from signconv.ir.analysis import is_scalar, scalar_moments
from signconv.ir.nodes import APART, REDUCTIONS, Expr, Moment, Op, Program, Ref, everything, walk
from signconv.runtime.axes import ELEMENTS, joined, reduced

#: Of what is the same for all tensors: it joins with anything.
SCALAR = "scalar"


def over(e: Expr, p: Program, named: Mapping[str, str] | None = None) -> str:
    """SCALAR, or one of ``runtime.axes.AXES``; ``named``: of other names than the program's."""
    known = {**_names(p), **(named or {})}
    return _over(e, p, known)


def reduced_moments(p: Program) -> dict[str, str]:
    """Moments that are kept once for more than an element, and for how much."""
    known, scalar = _names(p), scalar_moments(p)
    return {
        m.name: known[m.name]
        for m in p.moments
        if m.name not in scalar and known[m.name] != ELEMENTS
    }


def has_axes(p: Program) -> bool:
    """Whether anything of a program is one number for a part of a tensor, or kept for all of it, or
    reads it as a matrix."""
    return bool(reduced_moments(p)) or any(
        (isinstance(n, Op) and n.fn in REDUCTIONS and bool(n.over))
        or (isinstance(n, Op) and n.fn == "msign")
        or (isinstance(n, Ref) and n.kind == "shape")
        for e in everything(p)
        for n in walk(e)
    )


def by_shape(e: Expr, p: Program) -> bool:
    """Whether an expression is a number that a parameter's shape decides, beside what is the same
    for all."""
    return is_scalar(e, p) or (
        all(
            n.kind == "shape"
            or is_scalar(n, p)
            or (n.kind == "temp" and by_shape(p.temp(n.name).expr, p))
            for n in walk(e)
            if isinstance(n, Ref)
        )
        and not any(isinstance(n, Op) and n.fn in APART for n in walk(e))
    )


def has_blocks(p: Program) -> bool:
    """Whether anything runs over blocks of rows."""
    return any(isinstance(n, Op) and n.over == "block" for e in everything(p) for n in walk(e))


def _names(p: Program) -> dict[str, str]:
    """Of moments and temporaries; found once per Program, from the fewest numbers up."""
    known: dict[str, str] | None = vars(p).get("_overs")
    if known is not None:
        return known
    made = {x.name: SCALAR for x in p.defined}
    while True:
        before = dict(made)
        for x in p.defined:
            if isinstance(x, Moment) and x.init == "param":
                made[x.name] = ELEMENTS
            for e in x.reads if isinstance(x, Moment) else (x.expr,):
                made[x.name] = _joined(made[x.name], _over(e, p, made))
        if made == before:
            break
    scalar = scalar_moments(p)
    for m in p.moments:  # an average of a number that is the same for all is kept for each
        if made[m.name] == SCALAR and m.name not in scalar:
            made[m.name] = ELEMENTS
    vars(p)["_overs"] = made
    return made


def _joined(a: str, b: str) -> str:
    if SCALAR in (a, b):
        return b if a == SCALAR else a
    return joined(a, b)


def _over(e: Expr, p: Program, known: Mapping[str, str]) -> str:
    """A loop and not a recursion, since expressions may be deep."""
    made: dict[int, str] = {}
    for n in reversed([*walk(e)]):
        if isinstance(n, Ref):
            made[id(n)] = _of_name(n, p, known)
        elif isinstance(n, Op):
            found = SCALAR
            for a in n.args:
                found = _joined(found, made[id(a)])
            if n.fn in REDUCTIONS and found != SCALAR:
                left = reduced(found, n.over)
                found = found if left is None else left
            made[id(n)] = SCALAR if n.fn == "total" else found
        else:
            made[id(n)] = SCALAR
    return made[id(e)]


def _of_name(r: Ref, p: Program, known: Mapping[str, str]) -> str:
    if r.kind in ("grad", "param", "stepped", "draw", "extra"):
        return ELEMENTS
    if r.kind == "shape":
        return ""
    if r.kind in ("value", "prev", "temp", "local"):
        found = known.get(r.name)
        if found is None:
            return SCALAR if is_scalar(r, p) else ELEMENTS
        return found
    return SCALAR
