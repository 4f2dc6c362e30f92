"""Powers and roots in terms of what the printers know (docs/design.md#numerics).

Whole powers are products; roots of order 2, 3 and 4 are chains of sqrt and cbrt, other whole orders
a Newton iteration of exact operations; any other exponent is one routine with a stated bound.
"""

from __future__ import annotations

import struct
from decimal import Decimal

from signconv.ir.nodes import Const, Expr, Op, mul, op

#: Whole orders that the Newton iteration serves (lower/decompositions.py).
NEWTON = range(5, 17)
#: Even orders up to here are square roots first.
LONGEST = 1024


def lowered_power(x: Expr, exponent: float) -> Expr:
    """``x`` (a name, or something cheap) to a power >= 1; x >= 0 unless the exponent is whole."""
    return integer_power(x, int(exponent)) if exponent == int(exponent) else _real(x, exponent)


def integer_power(x: Expr, n: int) -> Expr:
    """x**n by binary powering from the left: x*x, x*x*x, (x*x)*(x*x), …"""
    if n == 1:
        return x
    if n % 2 == 0:
        half = integer_power(x, n // 2)
        return mul(half, half)
    return mul(integer_power(x, n - 1), x)


def lowered_root(x: Expr, order: float) -> Expr:
    """The root of the given order >= 1 of ``x`` >= 0."""
    if order == 1:
        return x
    if order == 3:
        return op("cbrt", x)
    if order % 2 == 0 and order <= LONGEST:
        return lowered_root(op("sqrt", x), order / 2)
    if order in NEWTON:
        return Op("newton_root", (x, Const(order)))
    return _real(x, 1 / order)


def _real(x: Expr, exponent: float) -> Expr:
    """Any power, the exponent in two parts: the first has so few bits that k times it is exact."""
    high, low = split(exponent)
    return Op("real_power", (x, Const(high), Const(low)))


def split(exponent: float) -> tuple[float, float]:
    """``exponent`` > 0 as an fp32 number of 12 bits and the rest in fp32."""
    (bits,) = struct.unpack("<i", struct.pack("<f", exponent))
    (high,) = struct.unpack("<f", struct.pack("<i", bits & ~0xFFF))
    return high, nearest(exponent - high)


def nearest(x: float) -> float:
    """The fp32 number nearest to ``x``."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", x))
    return float(rounded)


def joined(high: float, low: float) -> str:
    """The exponent that ``split`` splits so, in its fewest decimal digits."""
    texts = (f"{high + low:.{digits}g}" for digits in range(1, 18))
    return f"{Decimal(next(x for x in texts if split(float(x)) == (high, low))):f}"
