"""The scalar kernel's float64 functions on Python's numbers (docs/design.md#scalars).

Each has a value for every argument, as IEEE 754 does: none raises.
"""

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


def mod64(a: float, b: float) -> float:
    """a % b with the sign of b, rounded once; NaN where b is 0 or a is infinite."""
    return math.nan if b == 0 else a % b


def max64(a: float, b: float) -> float:
    """The larger; NaN if either is NaN; -0 < +0."""
    if a != a or a > b:
        return a
    return a + b if a == b == 0 else b


def min64(a: float, b: float) -> float:
    """The smaller; NaN if either is NaN; -0 < +0."""
    if a != a or a < b:
        return a
    return -(-a + -b) if a == b == 0 else b


def sqrt64(x: float) -> float:
    """The square root in float64, correctly rounded; NaN of a negative number."""
    return math.sqrt(x) if x >= 0 else math.nan


def power64(base: float, n: float) -> float:
    """base**n in float64 for whole n by binary powering, always the same products in the same
    order; 1 / base**-n below 0."""
    if n != n:
        return 1.0 if base == 1 else n
    result, factor = 1.0, base
    left = int(min(abs(n), 2.0**1023))
    while left > 0:
        if left & 1:
            result = result * factor
        factor = factor * factor
        left >>= 1
    return divide64(1.0, result) if n < 0 else result


def exp64(x: float) -> float:
    """e**x in float64 within 2 ULP, by the same exact operations as the kernel's."""
    if x != x:
        return x
    x = min(max(x, -746.0), 710.0)
    k = math.floor(x * 1.4426950408889634 + 0.5)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = 1.0
    for n in range(14, 0, -1):
        total = 1.0 + total * r / n
    half = k >> 1  # 2**k in two factors: neither over- nor underflows
    return total * 2.0**half * 2.0 ** (k - half)


def log64(x: float) -> float:
    """The natural logarithm in float64 within 2 ULP, by the kernel's operations."""
    if not 0 < x < math.inf:
        return x if x > 0 else -math.inf if x == 0 else math.nan
    tiny = x < 2.0**-1022
    bits = struct.unpack("<q", struct.pack("<d", x * 2.0**54 if tiny else x))[0]
    k = (bits >> 52) - (1077 if tiny else 1023)
    m = struct.unpack("<d", struct.pack("<q", bits & 0xFFFFFFFFFFFFF | 0x3FF0000000000000))[0]
    if m > 1.4142135623730951:
        m, k = m * 0.5, k + 1
    s = (m - 1.0) / (m + 1.0)
    square, total = s * s, 0.0
    for n in range(25, 0, -2):
        total = total * square + 1.0 / n
    return 2.0 * s * total + k * _LN2_LOW + k * _LN2_HIGH


def tanh64(x: float) -> float:
    """The hyperbolic tangent in float64 within a few ULP, by the kernel's operations."""
    square, near = x * x, 19.0
    for n in range(17, 0, -2):
        near = n + square / near  # its continued fraction, from the end
    if abs(x) < 0.5:
        return x / near
    return 1.0 - 2.0 / (exp64(2.0 * x) + 1.0)


def real_power64(base: float, exponent: float) -> float:
    """base**exponent in float64 as e**(exponent log base), with C's special values: NaN for a
    negative base unless the exponent is whole."""
    if exponent == 0 or base == 1:
        return 1.0
    size = abs(base)
    made = 1.0 if size == 1 and exponent == exponent else exp64(exponent * log64(size))
    if math.copysign(1.0, base) > 0:
        return made
    if exponent % 2 == 1:
        return -made
    whole = exponent % 1 == 0 or abs(exponent) == math.inf
    return made if whole or size in (0.0, math.inf) else math.nan
