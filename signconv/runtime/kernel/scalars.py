"""The scalar kernel, and the float64 functions that generated modules call in it."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel.constants import FRESH
from signconv.runtime.kernel.random_bits import store_keys


@triton.jit
def double64(x):
    """``x`` in float64, be it a literal (which would be typed fp32), an integer or float64."""
    return tl.full((), 1.0, tl.float64) * x


@triton.jit
def mod64(a, b):
    """a % b with the sign of b, rounded once; NaN where b is 0 or a is infinite."""
    a = double64(a)
    b = double64(b)
    rest = tl.abs(a)
    size = tl.abs(b)
    fits = (rest < float("inf")) & (size > 0) & (size < float("inf"))
    part = tl.where(fits, size, float("nan"))
    while part <= rest * 0.5:  # exact long division
        part = part * 2.0
    part = tl.where(fits, part, 0.0)
    while (part >= size) & (part > 0):
        rest = tl.where(rest >= part, rest - part, rest)
        part = part * 0.5
    rest = tl.where(a < 0, rest * -1.0, rest)
    moved = tl.where(((rest < 0) != (b < 0)) & (rest != 0), rest + b, rest)
    zero = double64(0.0)  # times -1: before its pull request 11426 Triton reads a literal -0.0 as 0
    moved = tl.where(rest == 0, tl.where(b < 0, zero * -1.0, zero), moved)
    defined = (tl.abs(a) < float("inf")) & (size > 0)
    return tl.where(defined, moved, double64(float("nan")))


@triton.jit
def max64(a, b):
    """The larger; NaN if either is NaN; -0 < +0."""
    a = double64(a)
    b = double64(b)
    larger = tl.where((a != a) | (a > b), a, b)
    return tl.where((a == 0) & (b == 0), a + b, larger)


@triton.jit
def min64(a, b):
    """The smaller; NaN if either is NaN; -0 < +0."""
    a = double64(a)
    b = double64(b)
    smaller = tl.where((a != a) | (a < b), a, b)
    return tl.where((a == 0) & (b == 0), (a * -1.0 + b * -1.0) * -1.0, smaller)


@triton.jit
def sqrt64(x):
    """The square root in float64, correctly rounded; NaN of a negative number."""
    return tl.sqrt(double64(x))


@triton.jit
def where64(condition, a, b):
    """a where the condition holds, else b; either may be a literal."""
    return tl.where(condition, double64(a), double64(b))


@triton.jit
def power64(base, n):
    """base**n in float64 for whole n by binary powering, always the same products in the same
    order; 1 / base**-n below 0."""
    result = tl.full((), 1.0, tl.float64)
    factor = double64(base)
    n = double64(n)
    left = tl.where(tl.abs(n) < 8.98846567431158e307, tl.abs(n), double64(8.98846567431158e307))
    left = tl.where(n == n, left, 0.0)
    while left > 0:
        half = tl.floor(left * 0.5)
        if left != half * 2.0:
            result = result * factor
        factor = factor * factor
        left = half
    result = tl.where(n < 0, 1.0 / result, result)
    return tl.where((n == n) | (double64(base) == 1), result, n)


@triton.jit
def exp64(x):
    """e**x in float64 within 2 ULP, by a fixed sequence of exact operations."""
    x = double64(x)
    y = tl.where(x > -746.0, x, double64(-746.0))
    y = tl.where(y < 710.0, y, double64(710.0))
    k = tl.floor(y * 1.4426950408889634 + 0.5)
    r = (y - k * 0.6931471803691238) - k * 1.9082149292705877e-10
    total = tl.full((), 1.0, tl.float64)
    for i in tl.static_range(14):
        total = 1.0 + total * r / (14.0 - i)
    whole = k.to(tl.int64)
    half = whole >> 1  # 2**k in two factors: neither over- nor underflows
    first = ((half + 1023) << 52).to(tl.float64, bitcast=True)
    second = ((whole - half + 1023) << 52).to(tl.float64, bitcast=True)
    return tl.where(x == x, total * first * second, x)


@triton.jit
def log64(x):
    """The natural logarithm in float64 within 2 ULP."""
    x = double64(x)
    tiny = x < 2.2250738585072014e-308
    bits = tl.where(tiny, x * 18014398509481984.0, x).to(tl.int64, bitcast=True)
    k = (bits >> 52) - tl.where(tiny, 1077, 1023)
    m = ((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True)
    large = m > 1.4142135623730951
    m = tl.where(large, m * 0.5, m)
    k = tl.where(large, k + 1, k).to(tl.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    total = tl.full((), 0.0, tl.float64)
    for i in tl.static_range(13):
        # 1/n as a float64 quotient of this step: a literal would be rounded to fp32
        total = total * square + double64(1.0) / (25.0 - 2 * i)
    y = 2.0 * s * total + k * 1.9082149292705877e-10 + k * 0.6931471803691238
    y = tl.where(x > 0, y, float("nan"))
    y = tl.where(x == float("inf"), x, y)
    return tl.where(x == 0, float("-inf"), y)


@triton.jit
def tanh64(x):
    """The hyperbolic tangent in float64 within a few ULP."""
    x = double64(x)
    square = x * x
    near = tl.full((), 19.0, tl.float64)
    for i in tl.static_range(9):
        near = (17.0 - 2 * i) + square / near  # its continued fraction, from the end
    far = 1.0 - 2.0 / (exp64(2.0 * x) + 1.0)
    return tl.where(tl.abs(x) < 0.5, x / near, far)


@triton.jit
def real_power64(base, exponent):
    """base**exponent in float64 as e**(exponent log base), with C's special values: NaN for a
    negative base unless the exponent is whole."""
    base = double64(base)
    exponent = double64(exponent)
    size = tl.abs(base)
    made = exp64(exponent * log64(size))
    made = tl.where((size == 1) & (exponent == exponent), 1.0, made)
    whole = tl.floor(exponent) == exponent
    half = exponent * 0.5
    odd = whole & (tl.floor(half) != half)
    minus = (base < 0) | (1.0 / base < 0)
    defined = whole | (size == 0) | (size == float("inf"))
    turned = tl.where(defined, tl.where(odd, made * -1.0, made), double64(float("nan")))
    made = tl.where(minus, turned, made)
    return tl.where((exponent == 0) | (base == 1), 1.0, made)


@triton.jit
def scalar_kernel(
    lr_ptr,
    hypers,
    clock,
    states,
    seed_ptr,
    skip_ptr,
    scale_ptr,
    scalar_table,
    key_table,
    SCALARS: tl.constexpr,
    HYPERS: tl.constexpr,
    LR: tl.constexpr,
    STATES: tl.constexpr,
    OUTPUTS: tl.constexpr,
    NORM: tl.constexpr,
    EXTRAS: tl.constexpr,
    SETTLES: tl.constexpr,
    WORDS: tl.constexpr,
    NOISE: tl.constexpr,
):
    """One program per parameter; a skipped step does not advance t, nor one that does not settle.

    ``hypers`` holds HYPERS numbers, of which that at LR comes from ``lr_ptr`` instead, then the
    first lr, the sign of the gradients, with NORM their norm, scaled as they are, and EXTRAS
    numbers of extra inputs and totals; ``states`` STATES scalar states per row; SCALARS is the
    generated module's function.  A row of ``scalar_table`` is the gradients' factor and OUTPUTS
    numbers in fp32, one of ``key_table`` whether the step is taken and the random keys.
    """
    row = tl.program_id(0)
    active = tl.load(skip_ptr) == 0
    t = tl.load(clock + row) + 1
    if SETTLES:
        tl.store(clock + row, t, mask=active)
    values = ()
    for i in tl.static_range(HYPERS):
        if i == LR:
            values = values + (tl.load(lr_ptr).to(tl.float64),)
        else:
            values = values + (tl.load(hypers + i),)
    scale = tl.load(scale_ptr).to(tl.float64)
    if NORM:
        values = values + (tl.load(hypers + HYPERS + 2) / scale,)
    for i in tl.static_range(EXTRAS):
        values = values + (tl.load(hypers + HYPERS + (3 if NORM else 2) + i),)
    initial_lr = tl.load(hypers + HYPERS)
    remembered = ()
    for i in tl.static_range(STATES):
        remembered = remembered + (tl.load(states + row * STATES + i),)
    outputs, remembered = SCALARS(t, initial_lr, values, remembered)
    for i in tl.static_range(STATES if SETTLES else 0):
        tl.store(states + row * STATES + i, remembered[i], mask=active)
    out = scalar_table + row * (OUTPUTS + 1)
    factor = tl.load(hypers + HYPERS + 1) / scale
    tl.store(out, factor.to(tl.float32))
    for i in tl.static_range(OUTPUTS):
        tl.store(out + 1 + i, outputs[i].to(tl.float32))
    KEYS: tl.constexpr = 2 * WORDS + (0 if NOISE == FRESH else 3)
    store_keys(key_table + row * (1 + KEYS), tl.load(seed_ptr), t, active, WORDS, NOISE)
