"""Whole powers in Triton, and moments stored as their roots.

Every function has a twin of the same name in ``reference.roots``, equal bit for bit; nothing
here is more than one IEEE binary32 or integer operation at a time.
"""

from __future__ import annotations

from signconv.runtime.compat import tl, triton

#: The bits of an fp32 number x > 0 are about 2^23 * (log2(x) + 127 - 0.045).
LOG_BIAS = tl.constexpr(0x3F7A3BEA)
#: A block whose largest moment is above 2^124 is one whose decoded codes could overflow.
LARGEST_ROOT_BITS = tl.constexpr(0x7D800000)


@triton.jit
def power(x, N: tl.constexpr):
    """x**N for a whole N >= 1: N - 1 products, from the left."""
    y = x
    for _ in tl.static_range(N - 1):
        y = y * x
    return y


# ---------------------------------------------------------------- moments stored as E4M3 roots


@triton.jit
def _code_value(code):
    """E4M3 codes 0…0x7E (int32) as fp32, exactly."""
    return (code << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120


@triton.jit
def _root_below(x, N: tl.constexpr):
    """At most the N-th root of 0 <= x < 2^(8N) and less than 1/20 below it, for N = 3…8.

    One step of Newton's method for x**(-1/N), which never comes out too large; no division.
    """
    bits = (N + 1) * LOG_BIAS // N - x.to(tl.int32, bitcast=True) // N
    y = bits.to(tl.float32, bitcast=True)
    unit = x
    for _ in tl.static_range(N):
        unit = unit * y
    y = y * ((N + 1) / N * 0.9999990463256836 - unit * (1 / N))
    low = x
    for _ in tl.static_range(N - 1):
        low = low * y
    return low


@triton.jit
def encode_roots(v, field, byte, N: tl.constexpr):
    """Codes of v**(1/N) for 0 <= v <= 2^124, rounded without bias in v (docs/design.md#roots).

    Between the codes' values lo and hi, v becomes hi**N with probability
    (v - lo**N) / (hi**N - lo**N).  ``byte`` is the block's scale.
    """
    shift = (127 - byte) * N  # v / scale**N by two exact products
    first = (((shift >> 1) + 127) << 23).to(tl.float32, bitcast=True)
    second = ((shift - (shift >> 1) + 127) << 23).to(tl.float32, bitcast=True)
    x = v * first * second
    code = (_root_below(x, N) * 7.52316384526264e-37).to(tl.int32, bitcast=True) >> 20
    # The right code is this one or the next: one comparison of powers tells, exactly
    middle = power(_code_value(code + 1), N)
    above = (x >= middle).to(tl.int32)
    other = power(_code_value(code + 2 * above), N)
    low = tl.minimum(middle, other)
    u = ((field >> 9) | 0x3F800001).to(tl.float32, bitcast=True) - 1.0  # (2k + 1) / 2^23
    up = u * tl.abs(middle - other) < x - low
    return (code + above + up.to(tl.int32)).to(tl.uint8)


@triton.jit
def root_scale(largest, N: tl.constexpr):
    """The scale's byte [ROWS, 1] from the bits of each row's largest moment: that of its root's
    exponent, one binade below overflow, by integers."""
    exponent = (tl.maximum((largest >> 23).to(tl.int32), 1) + (128 * N - 127)) // N - 128
    return tl.maximum(exponent, -(126 // N))[:, None] + 120
