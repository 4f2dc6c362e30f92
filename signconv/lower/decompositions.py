"""Functions of the language as statements over exact operations: written once, printed for every
backend, so that all of them compute the same bits (design.md 4).

A new one: a function here that takes a Body, x and the constants of its call, and its row in
DECOMPOSITIONS.  Its second row says how near the true value it is, for the docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from signconv.ir.nodes import Const, Expr, Op, Ref, walk
from signconv.lower.exact import (
    FLOAT,
    Value,
    bits,
    clamp,
    divided,
    floor,
    fma,
    of_bits,
    power,
    quotient,
    size,
    to_float,
    to_int,
    where,
)
from signconv.lower.kernel_program import Function, Statement, function_name
from signconv.lower.powers import joined, nearest

#: The bits of an fp32 number x > 0 are about 2^23 * (log2(x) + 127 - 0.045).
LOG_BIAS = 0x3F7A3BEA
NORMAL = 2.0**-126  # the smallest normal number


class Body:
    """The statements of one function, in order."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []

    def let(self, name: str, value: Value, comment: str = "") -> Value:
        """``name = value``; a name may be given again."""
        self.statements.append(Statement(name, value.expr, comment))
        return Value(Ref("local", name), value.kind)


def _cbrt(b: Body, x: Value) -> Value:
    tiny = b.let("tiny", x < 2.0**-64)
    z = b.let(
        "z",
        x * where(tiny, 2.0**72, 0.125),
        "moved by a power of two: no residual underflows, no cube overflows",
    )
    y = b.let(
        "y",
        of_bits(0x54A20000 - divided(bits(z), 3)),
        "z**(-1/3) from an exponent divided by three, then one step of third order",
    )
    e = b.let("e", 1.0 - z * y * y * y)
    y = b.let("y", y * (1.000000834465027 + e * (0.33469223976135254 + e * 0.2230465412139892)))
    square = b.let("square", y * y)
    pattern = b.let(
        "bits",
        (bits(z * square) + 0x800) & -0x1000,
        "the root in 12 bits, whose square is exact, then Newton's step with its second-order term",
    )
    root = b.let("root", of_bits(pattern))
    change = b.let("change", (z - root * root * root) * (square * 0.3333333432674408))
    root = b.let("root", root + (change + change * change * y))
    root = b.let("root", root * where(tiny, 2.0**-24, 2.0))
    return where((x > 0) & (x < math.inf), root, x)


def _exp(b: Body, x: Value) -> Value:
    y = b.let("y", where(x > -104.0, where(x < 89.0, x, 89.0), -104.0))
    k = b.let("k", floor(y * 1.4426950216293335 + 0.5), "e**y = 2**k * e**r")
    r = b.let(
        "r",
        (y - k * 0.693145751953125) - k * 1.428606765330187e-06,
        "ln(2) in two parts, k times the first is exact",
    )
    total = b.let("total", 1.0 + r * 0.1428571492433548, "the series, from its end")
    for n in (6, 5, 4, 3, 2):
        # Times 1/2 or 1/4 is the same number as divided by 2 or 4
        part = quotient(total * r, float(n)) if n & (n - 1) else total * r * (1 / n)
        total = b.let("total", 1.0 + part)
    total = b.let("total", 1.0 + total * r)
    return where(x != x, x, _times_two_to_the(b, total, to_int(k)))


def _times_two_to_the(b: Body, x: Value, exponent: Value) -> Value:
    whole = b.let("whole", exponent)
    half = b.let("half", whole >> 1, "2**whole in two factors, neither of which overflows")
    first = b.let("first", of_bits((half + 127) << 23))
    second = b.let("second", of_bits((whole - half + 127) << 23))
    return x * first * second


def _split(b: Body, x: Value, moved: int) -> tuple[Value, Value]:
    """m and k of x = 2**k * m, 1/sqrt(2) < m <= sqrt(2); subnormals by way of 2**moved."""
    tiny = b.let("tiny", x < NORMAL)
    y = b.let("y", where(tiny, x * 2.0**moved, x))
    pattern = b.let("bits", bits(y), "x = 2**k * mantissa, which is near 1")
    mantissa = b.let("mantissa", of_bits((pattern & 0x7FFFFF) | 0x3F800000))
    large = b.let("large", mantissa > 1.4142135381698608)
    mantissa = b.let("mantissa", where(large, mantissa * 0.5, mantissa))
    k = b.let("k", to_float((pattern >> 23) - where(tiny, 127 + moved, 127) + to_int(large)))
    return mantissa, k


def _log(b: Body, x: Value) -> Value:
    m, k = _split(b, x, 23)
    z = b.let("z", quotient(m - 1.0, m + 1.0), "log(mantissa) = 2 * (z + z**3 / 3 + z**5 / 5 ...)")
    square = b.let("square", z * z)
    total = b.let("total", 0.1111111119389534 * square + 0.1428571492433548)
    total = b.let("total", total * square + 0.20000000298023224)
    total = b.let("total", total * square + 0.3333333432674408)
    rest = b.let(
        "rest",
        2.0 * z * (total * square) + k * 1.428606765330187e-06,
        "ln(2) in two parts, k times the second is exact",
    )
    y = b.let("y", rest + 2.0 * z + k * 0.693145751953125)
    y = b.let("y", where(x == 0, -math.inf, where(x < 0, math.nan, y)))
    return where(x < math.inf, y, x)


def _tanh(b: Body, x: Value) -> Value:
    a = b.let("size", size(x))
    square = b.let("square", x * x, "near 0 a polynomial, elsewhere by the exponential")
    near = b.let("near", square * 0.0218694894015789 - 0.05396825447678566)
    near = b.let("near", near * square + 0.13333334028720856)
    near = b.let("near", x + x * ((near * square - 0.3333333432674408) * square))
    e = b.let("e", Value(Op("exp", ((-2.0 * a).expr,)), FLOAT))
    far = b.let("far", quotient(1.0 - e, 1.0 + e))
    far = b.let("far", where(x < 0, far * -1.0, far))
    return where(a < 0.25, near, far)


def _root(b: Body, x: Value, order: float) -> Value:
    n = int(order)
    w = (63 + n) // n
    tiny = b.let("tiny", x < 2.0**-64)
    huge = b.let("huge", x > 2.0**64)
    y = b.let(
        "y",
        where(tiny, x * 2.0 ** (n * w), x),
        "moved to about 2**-80 ... 2**80: neither powers nor residuals under- or overflow",
    )
    y = b.let("y", where(huge, x * 2.0 ** (-n * w), y))
    root = b.let(
        "root",
        of_bits(divided(bits(y), n) + (n - 1) * LOG_BIAS // n),
        f"an exponent divided by {n}, then Newton's steps",
    )
    for _ in range(3 if n < 8 else 4):
        slope = b.let("slope", power(root, n - 1))
        root = b.let("root", root - quotient(slope * root - y, slope * float(n)))
    root = b.let("root", where(tiny, root * 2.0**-w, root))
    root = b.let("root", where(huge, root * 2.0**w, root))
    root = b.let("root", where((x > 0) & (x < math.inf), root, x))
    return where(x < 0, math.nan, root)


def _inverse_root(b: Body, x: Value, order: float) -> Value:
    n = int(order)
    if n < 5:
        y = b.let("y", _inverse_root_of_normal(b, x, n), "what has underflowed moves nothing")
        return where(x < NORMAL, 0.0, y)
    w = (23 + n) // n
    tiny = b.let("tiny", x < NORMAL)
    moved = b.let("moved", where(tiny, x * 2.0 ** (n * w), x))
    y = b.let("y", _inverse_root_of_normal(b, moved, n), "what has underflowed moves nothing")
    return where(x == 0, 0.0, where(tiny, y * 2.0**w, y))


def _inverse_root_of_normal(b: Body, x: Value, n: int) -> Value:
    y = b.let(
        "y",
        of_bits((n + 1) * LOG_BIAS // n - divided(bits(x), n)),
        f"an exponent divided by -{n}, then steps of third order",
    )
    first, second = nearest(-1 / n), nearest((n + 1) / (2 * n * n))
    for _ in range(1 if n <= 8 else 2):
        e = b.let("e", fma(x * power(y, n - 1), y, -1.0))
        y = b.let("y", fma(y * e, fma(e, second, first), y))
    e = b.let("e", fma(x * power(y, n - 1), y, -1.0))
    change = b.let("change", y * e, "the last step is two sums: of an infinite x they are NaN")
    return fma(change * e, second, fma(change, first, y))


def _real_power(b: Body, x: Value, high: float, low: float) -> Value:
    m, k = _split(b, x, 24)
    z = b.let("z", quotient(m - 1.0, m + 1.0), "log(mantissa) = 2 * (z + z**3 / 3 + z**5 / 5 ...)")
    square = b.let("square", z * z)
    total = b.let("total", square * 0.1111111119389534 + 0.1428571492433548)
    total = b.let("total", total * square + 0.20000000298023224)
    total = b.let("total", total * square + 0.3333333432674408)
    log2 = b.let("log2", (z * (square * total) + z) * 2.885390043258667)
    exact = b.let(
        "exact",
        k * high,
        "the exponent's first 12 bits: exact times k, so that a large k costs no accuracy",
    )
    near = b.let("near", floor(exact + 0.5))
    scaled = log2 * (high + low)
    rest = b.let("rest", (exact - near) + (k * low + scaled if low else scaled))
    more = b.let("more", floor(rest + 0.5))
    f = b.let("f", rest - more)
    y = b.let("y", f * 1.5252733841654845e-05 + 0.00015403530444018543, "2**f by its series")
    for c in (
        0.0013333558561578393, 0.009618129581213, 0.05550410971045494, 0.24022650718688965,
        0.6931471824645996, 1.0,
    ):  # fmt: skip
        y = b.let("y", y * f + c)
    y = _times_two_to_the(b, y, clamp(to_int(near + more), -252, 254))
    y = b.let("y", where((x > 0) & (x < math.inf), y, x))
    return where(x < 0, math.nan, y)


Decomposition = Callable[..., Value]


def _root_doc(order: float) -> str:
    return f"The root of order {order:g} of x >= 0 within 1 ULP."


def _inverse_root_doc(order: float) -> str:
    none = "x < 2**-126" if order < 5 else "0"
    return f"x**(-1/{order:g}) of x >= 0 within 1.5 ULP; 0 of {none}, NaN of Inf and NaN."


def _power_doc(high: float, low: float) -> str:
    return f"x**{joined(high, low)} for x >= 0 within {4 if high + low <= 2 else 20} ULP."


#: Function of a lowered expression -> its statements and its docstring, both of the call's
#: constants.
DECOMPOSITIONS: dict[str, tuple[Decomposition, Callable[..., str]]] = {
    "cbrt": (_cbrt, lambda: "The cube root of x >= 0 within 1 ULP, without a division."),
    "exp": (_exp, lambda: "e**x within 2 ULP."),
    "log": (_log, lambda: "The natural logarithm within 2 ULP."),
    "tanh": (_tanh, lambda: "The hyperbolic tangent within 4 ULP."),
    "inverse_root": (_inverse_root, _inverse_root_doc),
    "newton_root": (_root, _root_doc),
    "real_power": (_real_power, _power_doc),
}


def decomposed(e: Op) -> Function:
    """The function that ``e``, a call of one of DECOMPOSITIONS, calls."""
    write, doc = DECOMPOSITIONS[e.fn]
    constants = [a.value for a in e.args[1:] if isinstance(a, Const)]
    body = Body()
    result = write(body, Value(Ref("local", "x"), FLOAT), *constants)
    name = function_name(e)
    return Function(name, ("x",), tuple(body.statements), result.expr, doc(*constants))


def functions(expressions: Iterable[Expr]) -> tuple[Function, ...]:
    """The functions that expressions call, each once and after those that it calls itself."""
    found: dict[str, Function] = {}

    def visit(e: Expr) -> None:
        for n in walk(e):
            if isinstance(n, Op) and n.fn in DECOMPOSITIONS and function_name(n) not in found:
                function = decomposed(n)
                for inner in (*(s.expr for s in function.statements), function.result):
                    visit(inner)
                found[function.name] = function

    for e in expressions:
        visit(e)
    return tuple(found.values())
