"""The language that functions are decomposed into: operations with one right answer for every bit.

fp32 sums, products and quotients rounded once, comparisons, choices, floor, and int32 arithmetic on
the bits of floats.  Any backend that has these computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from signconv.errors import LoweringError
from signconv.ir.nodes import RELATIONS, Const, Expr, Op, Ref

FLOAT, INT, BOOL = "float", "int", "bool"
Signatures = Mapping[tuple[str, ...], str]

_SAME: Signatures = {(FLOAT, FLOAT): FLOAT, (INT, INT): INT}
_ONE: Signatures = {(FLOAT,): FLOAT}
_TWO: Signatures = {(FLOAT, FLOAT): FLOAT}
_LOGIC: Signatures = {(INT, INT): INT, (BOOL, BOOL): BOOL}
_SHIFT: Signatures = {(INT, INT): INT}
#: Operation -> its result's type for each choice of its arguments' types.
OPERATIONS: dict[str, Signatures] = {
    "add": _SAME,
    "sub": _SAME,
    "mul": _TWO,
    "quotient": _TWO,  # correctly rounded
    "fma": {(FLOAT, FLOAT, FLOAT): FLOAT},  # a*b + c, rounded once
    "power": {(FLOAT, INT): FLOAT},  # products from the left; the exponent is a number
    "abs": _ONE,
    "floor": _ONE,
    "where": {(BOOL, FLOAT, FLOAT): FLOAT, (BOOL, INT, INT): INT},
    **{fn: {(FLOAT, FLOAT): BOOL, (INT, INT): BOOL} for fn in RELATIONS},
    "and": _LOGIC,
    "or": _LOGIC,
    "left": _SHIFT,
    "right": _SHIFT,  # keeps the sign
    "divided": {(INT, INT): INT},  # of an int >= 0 by a number > 0, rounded down
    "clamp": {(INT, INT, INT): INT},
    "bits": {(FLOAT,): INT},  # reinterpreted
    "of_bits": {(INT,): FLOAT},
    "to_int": {(FLOAT,): INT, (BOOL,): INT},  # converted; the float is whole and fits
    "to_float": {(INT,): FLOAT},
}


@dataclass(frozen=True)
class Integer(Expr):
    """An int32 number; Const is a float."""

    value: int


def kind(e: Expr, names: Mapping[str, str], functions: frozenset[str], where: str) -> str:
    """The type of ``e``, names and called functions being known; LoweringError if it has none."""
    if isinstance(e, Const):
        return FLOAT
    if isinstance(e, Integer):
        return INT
    if isinstance(e, Ref):
        if e.name not in names:
            raise LoweringError("SC390", f"{where} reads {e.name!r} before it is computed")
        return names[e.name]
    if not isinstance(e, Op):
        raise LoweringError("SC390", f"{where}: unknown node {e!r}")
    signatures = _ONE if e.fn in functions else OPERATIONS.get(e.fn)
    if signatures is None:
        raise LoweringError("SC306", f"{where}: no backend can print {e.fn!r} here")
    given = tuple(kind(a, names, functions, where) for a in e.args)
    if given not in signatures:
        raise LoweringError("SC390", f"{where}: {e.fn} does not take {', '.join(given)}")
    return signatures[given]


class Value:
    """An expression of known type, so that decompositions are written as arithmetic."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expr: Expr, kind: str) -> None:
        self.expr, self.kind = expr, kind

    def __add__(self, other: Operand) -> Value:
        return apply("add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return apply("add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return apply("sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return apply("mul", other, self)

    def __and__(self, other: Operand) -> Value:
        return apply("and", self, other)

    def __or__(self, other: Operand) -> Value:
        return apply("or", self, other)

    def __lshift__(self, other: int) -> Value:
        return apply("left", self, other)

    def __rshift__(self, other: int) -> Value:
        return apply("right", self, other)

    def __lt__(self, other: Operand) -> Value:
        return apply("lt", self, other)

    def __gt__(self, other: Operand) -> Value:
        return apply("gt", self, other)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]
        assert isinstance(other, Value | float | int)
        return apply("eq", self, other)

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        assert isinstance(other, Value | float | int)
        return apply("ne", self, other)


Operand = Value | float


def apply(fn: str, *operands: Operand) -> Value:
    """An operation; a number beside an int is an int, elsewhere as it is written."""
    typed = [x.kind for x in operands if isinstance(x, Value) and x.kind != BOOL]
    made = [x if isinstance(x, Value) else _number(x, typed) for x in operands]
    result = OPERATIONS[fn][tuple(x.kind for x in made)]
    return Value(Op(fn, tuple(x.expr for x in made)), result)


def _number(x: float, beside: list[str]) -> Value:
    whole = isinstance(x, int) and FLOAT not in beside
    return Value(Integer(int(x)), INT) if whole else Value(Const(float(x)), FLOAT)


def where(condition: Value, a: Operand, b: Operand) -> Value:
    return apply("where", condition, a, b)


def quotient(a: Operand, b: Operand) -> Value:
    return apply("quotient", a, b)


def fma(a: Operand, b: Operand, c: Operand) -> Value:
    return apply("fma", a, b, c)


def power(x: Value, n: int) -> Value:
    """x**n by n - 1 products from the left."""
    return Value(Op("power", (x.expr, Integer(n))), FLOAT)


def size(x: Value) -> Value:
    return apply("abs", x)


def floor(x: Value) -> Value:
    return apply("floor", x)


def divided(x: Value, n: int) -> Value:
    return apply("divided", x, n)


def clamp(x: Value, low: int, high: int) -> Value:
    return apply("clamp", x, low, high)


def bits(x: Value) -> Value:
    return apply("bits", x)


def of_bits(x: Value) -> Value:
    return apply("of_bits", x)


def to_int(x: Value) -> Value:
    return apply("to_int", x)


def to_float(x: Value) -> Value:
    return apply("to_float", x)
