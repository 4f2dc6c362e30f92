"""Fewer operations with the same meaning: where a product feeds a sum, one that rounds once; where
a decoded moment meets a coefficient, the coefficient takes the block's scale
(docs/design.md#numerics)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

from signconv.ir.nodes import Const, Expr, Op, Ref, mul, rewrite, walk
from signconv.lower.kernel_program import MomentPlan, Statement, local_name
from signconv.runtime.formats import named


def fused(s: Statement) -> Statement:
    """The statement with ``fma(a, b, c)`` for every a*b + c; of two products the first."""
    return replace(s, expr=rewrite(s.expr, _fused))


def _fused(e: Expr) -> Expr | None:
    if not isinstance(e, Op) or e.fn not in ("add", "sub"):
        return None
    a, b = e.args
    if _product(a):
        assert isinstance(a, Op)
        return Op("fma", (*a.args, b if e.fn == "add" else _negative(b)))
    if _product(b):
        assert isinstance(b, Op)
        first = b.args[0] if e.fn == "add" else _negative(b.args[0])
        return Op("fma", (first, b.args[1], a))
    return None


def _product(e: Expr) -> bool:
    return isinstance(e, Op) and e.fn == "mul"


def _negative(e: Expr) -> Expr:
    """-e; exact, and part of an instruction that reads it."""
    return Const(-e.value) if isinstance(e, Const) else Op("neg", (e,))


# ---------------------------------------------------------------- scales in coefficients


def scales_apart(
    moments: Sequence[MomentPlan],
    expressions: Iterable[Expr],
    scalars: Set[str],
    taken: Set[str] = frozenset(),
) -> tuple[MomentPlan, ...]:
    """The plans, those moments ``apart`` that are read beside a scalar coefficient alone.

    There (coefficient * scale) * code takes one product for a block where coefficient * (scale *
    code) takes one for each element.  A scale is a power of two: the result is the same wherever
    the coefficient's product is a normal number.

    expressions: everything elementwise; scalars: names of numbers that all elements share; taken:
    names that statements have, which nothing else may.
    """
    read: Counter[str] = Counter()
    beside: Counter[str] = Counter()
    names = {*taken, *scalars, *(m.name for m in moments)}
    for n in (n for e in expressions for n in walk(e)):
        if isinstance(n, Ref):
            names.add(local_name(n))
            read[n.name] += n.kind == "prev"
        elif found := _beside_scalar(n, scalars):
            beside[found[1].name] += 1
    return tuple(
        replace(m, apart=True)
        if named(m.format).scaled
        and named(m.format).order == 1
        and 0 < read[m.name] == beside[m.name]
        and not {m.code_name, m.scale_name} & names
        else m
        for m in moments
    )


def with_scales(e: Expr, moments: Iterable[MomentPlan], scalars: Set[str]) -> Expr:
    """``e`` with c * m.prev as (c * scale) * code for every moment that is ``apart``."""
    apart = {m.name: m for m in moments if m.apart}

    def moved(x: Expr) -> Expr | None:
        found = _beside_scalar(x, scalars)
        if found is None or found[1].name not in apart:
            return None
        assert isinstance(x, Op)
        plan = apart[found[1].name]
        scaled = mul(found[0], Ref("local", plan.scale_name))
        return Op(x.fn, (scaled, Ref("local", plan.code_name), *x.args[2:]))

    return rewrite(e, moved) if apart else e


def _beside_scalar(e: Expr, scalars: Set[str]) -> tuple[Expr, Ref] | None:
    """A scalar and the moment before the step that are multiplied here, and perhaps feed a sum."""
    if not isinstance(e, Op) or e.fn not in ("mul", "fma"):
        return None
    for c, m in (e.args[:2], e.args[1::-1]):
        number = isinstance(c, Const) or (isinstance(c, Ref) and local_name(c) in scalars)
        if number and isinstance(m, Ref) and m.kind == "prev":
            return c, m
    return None


__all__ = ["fused", "scales_apart", "with_scales"]
