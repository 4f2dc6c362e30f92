"""Roots and powers in PyTorch: the same functions as ``kernel.roots``, on whole tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime.formats import BLOCK

LOG_BIAS = 0x3F7A3BEA
#: Blocks are encoded up to this; larger moments saturate, so that decoding never overflows.
LARGEST_ROOT = 2.0**124


def _float(bits: Tensor) -> Tensor:
    return bits.view(torch.float32)


def _divided(bits: Tensor, n: int) -> Tensor:
    return torch.div(bits, n, rounding_mode="floor")


def power(x: Tensor, n: int) -> Tensor:
    """x**n for a whole n >= 1: n - 1 products, from the left."""
    y = x
    for _ in range(n - 1):
        y = y * x
    return y


def root(x: Tensor, n: int) -> Tensor:
    """The n-th root of x >= 0, n = 5…16, within 1 ULP, by the kernel's operations."""
    w = (63 + n) // n
    tiny = x < 5.421010862427522e-20  # 2^-64
    huge = x > 1.8446744073709552e19
    y = torch.where(tiny, x * 2.0 ** (n * w), x)
    y = torch.where(huge, x * 2.0 ** (-n * w), y)
    guess = _float(_divided(y.contiguous().view(torch.int32), n) + (n - 1) * LOG_BIAS // n)
    for _ in range(3 if n < 8 else 4):
        slope = power(guess, n - 1)
        guess = guess - torch.div(slope * guess - y, slope * n)
    guess = torch.where(tiny, guess * 2.0**-w, guess)
    guess = torch.where(huge, guess * 2.0**w, guess)
    guess = torch.where((x > 0) & (x < torch.inf), guess, x)
    return torch.where(x < 0, torch.nan, guess)


def real_power(x: Tensor, high: float, low: float) -> Tensor:
    """x**e for x >= 0 and 0 < e = high + low <= 16, high of 12 bits, by the kernel's operations;
    within 4 ULP for e <= 2 and 20 ULP beyond."""
    tiny = x < 1.1754943508222875e-38
    y = torch.where(tiny, x * 16777216.0, x)  # 2^24
    bits = y.contiguous().view(torch.int32)
    m = _float((bits & 0x7FFFFF) | 0x3F800000)
    large = m > 1.4142135381698608
    m = torch.where(large, m * 0.5, m)
    k = ((bits >> 23) - torch.where(tiny, 151, 127) + large.to(torch.int32)).to(torch.float32)
    s = torch.div(m - 1.0, m + 1.0)
    square = s * s
    total = square * 0.1111111119389534 + 0.1428571492433548
    total = total * square + 0.20000000298023224
    total = total * square + 0.3333333432674408
    log2 = (s * (square * total) + s) * 2.885390043258667
    exact = k * high
    whole = torch.floor(exact + 0.5)
    rest = (exact - whole) + (k * low + log2 * (high + low))
    more = torch.floor(rest + 0.5)
    f = rest - more
    y = f * 1.5252733841654845e-05 + 0.00015403530444018543  # ln(2)^n / n!
    y = y * f + 0.0013333558561578393
    y = y * f + 0.009618129581213
    y = y * f + 0.05550410971045494
    y = y * f + 0.24022650718688965
    y = y * f + 0.6931471824645996
    y = y * f + 1.0
    scale = (whole + more).nan_to_num(0.0).to(torch.int32).clamp(-252, 254)
    half = scale >> 1
    first = _float((half + 127) << 23)
    second = _float((scale - half + 127) << 23)
    y = torch.where((x > 0) & (x < torch.inf), y * first * second, x)
    return torch.where(x < 0, torch.nan, y)


# ---------------------------------------------------------------- moments stored as E4M3 roots


def _code_value(code: Tensor) -> Tensor:
    """E4M3 codes 0…0x7E (int32) as fp32, exactly."""
    return _float(code << 20) * 2.0**120


def _root_below(x: Tensor, n: int) -> Tensor:
    """At most the n-th root of 0 <= x < 2^(8n) and less than 1/20 below it, for n = 3…8."""
    y = _float((n + 1) * LOG_BIAS // n - _divided(x.contiguous().view(torch.int32), n))
    unit = x
    for _ in range(n):
        unit = unit * y
    y = y * ((n + 1) / n * 0.9999990463256836 - unit * (1 / n))
    low = x
    for _ in range(n - 1):
        low = low * y
    return low


def encode_roots(v: Tensor, field: Tensor, byte: Tensor, n: int) -> Tensor:
    """Codes of v**(1/n) for v >= 0, rounded without bias in v (docs/design.md#roots).

    Between the codes' values lo and hi, v becomes hi**n with probability
    (v - lo**n) / (hi**n - lo**n).  ``byte`` holds the scale of each element's block; Inf and NaN
    store NaN, what is above 2^124 saturates.
    """
    finite = v.isfinite()
    v = torch.where(finite, v, 0.0).clamp(max=LARGEST_ROOT)
    shift = (127 - byte) * n  # v / scale**n by two exact products
    x = v * _float(((shift >> 1) + 127) << 23)
    x = x * _float((shift - (shift >> 1) + 127) << 23)
    code = (_root_below(x, n) * 2.0**-120).view(torch.int32) >> 20
    # The right code is this one or the next: one comparison of powers tells, exactly
    middle = power(_code_value(code + 1), n)
    above = (x >= middle).to(torch.int32)
    other = power(_code_value(code + 2 * above), n)
    low = torch.minimum(middle, other)
    u = _float(((field >> 9) & 0x7FFFFF) | 0x3F800001) - 1.0  # (2k + 1) / 2^23
    up = u * (middle - other).abs() < x - low
    return torch.where(finite, code + above + up.to(torch.int32), 0x7F).to(torch.uint8)


def root_scale(v: Tensor, n: int) -> Tensor:
    """E8M0 byte per row of 32 (int32 [numel/32]), from the exponent of the root of the largest
    finite moment, by integers."""
    magnitude = v.view(torch.int32).view(-1, BLOCK) & 0x7FFFFFFF
    finite = torch.where(magnitude < 0x7F800000, magnitude, 0)
    largest = torch.clamp(finite.amax(dim=1) >> 23, min=1, max=251)
    exponent = _divided(largest + (128 * n - 127), n) - 128
    return exponent.clamp(min=-(126 // n)) + 120
