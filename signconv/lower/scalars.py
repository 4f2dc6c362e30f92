"""Scalar expressions in the functions that their printers know (docs/design.md#scalars)."""

from __future__ import annotations

import operator
from collections.abc import Callable

import signconv.runtime.reference.scalars as number
from signconv.ir.nodes import Const, Expr, Op, div, op

#: What each function computes from numbers: what the generated code would compute of them.
_VALUES: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": number.divide64,
    "neg": operator.neg,
    "mod": number.mod64,
    "max": number.max64,
    "min": number.min64,
    "abs": abs,
    "sqrt": number.sqrt64,
    "exp": number.exp64,
    "log": number.log64,
    "tanh": number.tanh64,
}
_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    fn: getattr(operator, fn) for fn in ("lt", "le", "gt", "ge", "eq", "ne")
}


def scalar_form(e: Expr) -> Expr | None:
    """A rule for ``rewrite``: fewer functions, and none of plain numbers."""
    made = _fewer(e)
    folded = _folded(e if made is None else made)
    return made if folded is None else folded


def _fewer(e: Expr) -> Expr | None:
    if not isinstance(e, Op):
        return None
    if e.fn == "clip":
        return op("min", op("max", e.args[0], e.args[1]), e.args[2])
    if e.fn == "sign":
        x = e.args[0]
        return op("where", op("gt", x, 0), 1, op("where", op("lt", x, 0), -1, x))
    if e.fn == "root":
        return op("pow", e.args[0], div(1, e.args[1]))
    if e.fn == "pow" and isinstance(e.args[1], Const) and e.args[1].value < 0:
        return div(1, op("pow", e.args[0], -e.args[1].value))
    return None


def _folded(e: Expr) -> Expr | None:
    """The value of an operation on numbers, by the operations that would compute it at run time:
    a kernel would type such numbers fp32."""
    if not isinstance(e, Op):
        return None
    args = tuple(_folded(a) or a for a in e.args)
    if e.fn == "where" and isinstance(e.args[0], Op) and e.args[0].fn in _RELATIONS:
        sides = [a.value for a in e.args[0].args if isinstance(a, Const)]
        if len(sides) == 2:
            return args[1] if _RELATIONS[e.args[0].fn](*sides) else args[2]
    values = [a.value for a in args if isinstance(a, Const)]
    if len(values) < len(args):
        return None
    if e.fn == "pow":
        whole = values[1].is_integer()
        return Const((number.power64 if whole else number.real_power64)(*values))
    return Const(_VALUES[e.fn](*values)) if e.fn in _VALUES else None


__all__ = ["scalar_form"]
