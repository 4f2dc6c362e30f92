"""The scalar kernel's float64 functions on Python's numbers."""

from __future__ import annotations

import math
import struct

_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10


def divide64(a: float, b: float) -> float:
    """a / b in float64 as IEEE has it: no exception at zero."""
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def sqrt64(x: float) -> float:
    """The square root in float64, correctly rounded; NaN of a negative number."""
    return math.sqrt(x) if x >= 0 else math.nan


def power64(base: float, t: int) -> float:
    """base**t in float64 by binary powering, always the same products in the same order."""
    result, factor = 1.0, base
    while t > 0:
        if t & 1:
            result = result * factor
        factor = factor * factor
        t >>= 1
    return result


def exp64(x: float) -> float:
    """e**x in float64 within 2 ULP, by the same exact operations as the kernel's."""
    x = min(max(x, -745.0), 709.0)
    k = math.floor(x * 1.4426950408889634 + 0.5)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = 1.0
    for n in range(14, 0, -1):
        total = 1.0 + total * r / n
    return total * (power64(2.0, k) if k >= 0 else power64(0.5, -k))


def log64(x: float) -> float:
    """The natural logarithm of x > 0 in float64 within 2 ULP, by the kernel's operations."""
    if not x > 0:
        return -math.inf if x == 0 else math.nan
    bits = struct.unpack("<q", struct.pack("<d", x))[0]
    k = (bits >> 52) - 1023
    m = struct.unpack("<d", struct.pack("<q", bits & 0xFFFFFFFFFFFFF | 0x3FF0000000000000))[0]
    if m > 1.4142135623730951:
        m, k = m * 0.5, k + 1
    s = (m - 1.0) / (m + 1.0)
    square, total = s * s, 0.0
    for n in range(25, 0, -2):
        total = total * square + 1.0 / n
    return 2.0 * s * total + k * _LN2_LOW + k * _LN2_HIGH


def real_power64(base: float, exponent: float) -> float:
    """base**exponent in float64 for base > 0 and any exponent."""
    return exp64(exponent * log64(base))
