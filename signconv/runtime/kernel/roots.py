"""Roots and powers in Triton: functions of a kernel's math, and moments stored as their roots.

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


@triton.jit
def root(x, N: tl.constexpr):
    """The N-th root of x >= 0, N = 5…16, within 1 ULP: Newton's steps from exponents divided by N.

    x is brought within about 2^-80…2^80 first, so that neither powers nor residuals under- or
    overflow.
    """
    W: tl.constexpr = (63 + N) // N
    tiny = x < 5.421010862427522e-20  # 2^-64
    huge = x > 1.8446744073709552e19
    y = tl.where(tiny, x * 2.0 ** (N * W), x)
    y = tl.where(huge, x * 2.0 ** (-N * W), y)
    bits = y.to(tl.int32, bitcast=True) // N + (N - 1) * LOG_BIAS // N
    guess = bits.to(tl.float32, bitcast=True)
    for _ in tl.static_range(3 if N < 8 else 4):
        slope = power(guess, N - 1)
        guess = guess - tl.div_rn(slope * guess - y, slope * N)
    guess = tl.where(tiny, guess * 2.0**-W, guess)
    guess = tl.where(huge, guess * 2.0**W, guess)
    guess = tl.where((x > 0) & (x < float("inf")), guess, x)
    return tl.where(x < 0, float("nan"), guess)


@triton.jit
def real_power(x, HIGH: tl.constexpr, LOW: tl.constexpr):
    """x**e for x >= 0 and 0 < e = HIGH + LOW <= 16, HIGH of 12 bits; within 4 ULP for e <= 2 and
    20 ULP beyond.

    With x = 2^k * m the exponent k*e is split so that its large part is exact: 2^(k*e) costs no
    accuracy, however large k is.
    """
    tiny = x < 1.1754943508222875e-38
    y = tl.where(tiny, x * 16777216.0, x)  # 2^24
    bits = y.to(tl.int32, bitcast=True)
    m = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    large = m > 1.4142135381698608
    m = tl.where(large, m * 0.5, m)
    k = ((bits >> 23) - tl.where(tiny, 151, 127) + large.to(tl.int32)).to(tl.float32)
    s = tl.div_rn(m - 1.0, m + 1.0)
    square = s * s
    total = square * 0.1111111119389534 + 0.1428571492433548
    total = total * square + 0.20000000298023224
    total = total * square + 0.3333333432674408
    log2 = (s * (square * total) + s) * 2.885390043258667
    exact = k * HIGH
    whole = tl.floor(exact + 0.5)
    rest = (exact - whole) + (k * LOW + log2 * (HIGH + LOW))
    more = tl.floor(rest + 0.5)
    f = rest - more
    y = f * 1.5252733841654845e-05 + 0.00015403530444018543  # ln(2)^n / n!
    y = y * f + 0.0013333558561578393
    y = y * f + 0.009618129581213
    y = y * f + 0.05550410971045494
    y = y * f + 0.24022650718688965
    y = y * f + 0.6931471824645996
    y = y * f + 1.0
    scale = tl.minimum(tl.maximum((whole + more).to(tl.int32), -252), 254)
    half = scale >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((scale - half + 127) << 23).to(tl.float32, bitcast=True)
    y = tl.where((x > 0) & (x < float("inf")), y * first * second, x)
    return tl.where(x < 0, float("nan"), y)


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
