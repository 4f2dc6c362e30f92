"""Scalar expressions in the functions that their printers know, and the program of them that runs
once per step (docs/design.md#scalars)."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from dataclasses import replace

import signconv.runtime.reference.scalars as number
from signconv.ir.nodes import (
    STEP,
    Const,
    Expr,
    Op,
    Program,
    Ref,
    div,
    op,
    references,
    rewrite,
    sub,
)
from signconv.ir.show import text
from signconv.lower.kernel_program import GIVEN, Statement, local_name

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


#: Operations whose result is rounded to bf16 under --math bf16; the others are exact.
ROUNDED = frozenset({
    "add", "sub", "mul", "div", "ratio", "mean_ratio", "sqrt", "cbrt", "newton_root",
    "real_power",
})  # fmt: skip


class ScalarCode:
    """Collects the statements of the scalar program; ``outputs`` are what elementwise code reads.

    With ``bf16`` each operation on hyperparameters is left to elementwise code, which rounds it.
    """

    def __init__(self, p: Program, bf16: bool) -> None:
        self.p = p
        self.bf16 = bf16
        self.scalars: list[Statement] = []
        self.outputs: list[str] = []
        self._known: dict[Expr, str] = {}
        self._names = set(p.names) | {f"{m.name}_prev" for m in p.moments}
        self._names |= {f"{x.name}{GIVEN}" for x in p.extras}

    def scalar(self, e: Expr, hint: str) -> Expr:
        """A scalar expression as the elementwise code reads it: a literal or an output's name."""
        e = rewrite(e, scalar_form)
        if isinstance(e, Const) and _exact_fp32(e.value):
            return e
        if self.bf16:
            if isinstance(e, Op) and e.fn in ROUNDED and not references(e, "t"):
                return replace(e, args=tuple(self.scalar(a, hint) for a in e.args))
            name = self._scalar_name(e, hint)
            self.outputs += [] if name in self.outputs else [name]
            return Ref("scalar", name)
        name = self._scalar_name(e, hint)
        if name not in self.outputs:
            self.outputs.append(name)
        return Ref("scalar", name)

    def _scalar_name(self, e: Expr, hint: str) -> str:
        if isinstance(e, Ref) and e.kind in ("hyper", "number", "given", "total"):
            return local_name(e)
        if isinstance(e, Ref) and e.kind in ("scalar", "value"):
            return e.name
        if e in self._known:
            return self._known[e]
        for name in sorted(references(e, "temp"), key=lambda n: index(self.p, n)):
            self._scalar_temp(name)
        if isinstance(e, Ref) and e.kind == "temp":
            return e.name
        return self._define(self._fresh(_suggest(e) or hint), e)

    def remember(self, name: str) -> None:
        """The recurrence of a scalar state."""
        expr = self.p.moment(name).next
        assert expr is not None
        for inner in sorted(references(expr, "temp"), key=lambda n: index(self.p, n)):
            self._scalar_temp(inner)
        self.scalars.append(Statement(name, rewrite(expr, scalar_form), text(expr)))

    def _scalar_temp(self, name: str) -> None:
        done = {s.target for s in self.scalars}
        pending = [name]
        while pending:
            expr = self.p.temp(pending[-1]).expr
            missing = references(expr, "temp") - done
            if missing and pending[-1] not in done:
                pending += sorted(missing, reverse=True)
                continue
            target = pending.pop()
            if target not in done:
                done.add(target)
                self.scalars.append(Statement(target, rewrite(expr, scalar_form), text(expr)))

    def _define(self, name: str, e: Expr) -> str:
        self._known[e] = name
        self.scalars.append(Statement(name, e, text(e)))
        return name

    def _fresh(self, name: str) -> str:
        """A name that is free, with ``_prev`` after it too: it may become a state's."""
        n, made = 2, name
        while made in self._names or f"{made}_prev" in self._names:
            made, n = f"{name}{n}", n + 1
        self._names.add(made)
        return made


def bias(p: Program, name: str) -> Expr:
    """The sum of the weights of an EMA from zero: 1 - beta**t."""
    beta = p.moment(name).beta
    assert beta is not None
    return sub(1, op("pow", beta, STEP))


def _exact_fp32(x: float) -> bool:
    return bool(struct.unpack("f", struct.pack("f", x))[0] == x) if abs(x) < 3e38 else False


def index(p: Program, name: str) -> int:
    """The place of a temporary among the program's."""
    return [x.name for x in p.temps].index(name)


def _suggest(e: Expr) -> str | None:
    """A readable name for the usual scalars."""
    if isinstance(e, Op) and all(isinstance(a, Ref) or a == Const(1.0) for a in e.args):
        names = [a.name for a in e.args if isinstance(a, Ref)]
        if e.fn == "sub" and e.args[0] == Const(1.0) and names:
            return f"one_minus_{names[0]}"
        if e.fn == "mul" and len(names) == 2:
            return "_".join(names)
    return None


__all__ = ["ROUNDED", "ScalarCode", "bias", "index", "scalar_form"]
