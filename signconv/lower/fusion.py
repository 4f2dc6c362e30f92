"""Where a product feeds a sum, one operation that rounds once (docs/design.md#numerics)."""

from __future__ import annotations

from dataclasses import replace

from signconv.ir.nodes import Const, Expr, Op, rewrite
from signconv.lower.kernel_program import Statement


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


__all__ = ["fused"]
