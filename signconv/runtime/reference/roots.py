"""Whole powers and moments stored as their roots, in PyTorch: the same as ``kernel.roots``."""

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
