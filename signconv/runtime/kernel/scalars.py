"""The scalar kernel, and the float64 functions that generated modules call in it."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel.random_bits import store_keys


@triton.jit
def power64(base, t):
    """base**t in float64 by binary powering, always the same products in the same order."""
    result = tl.full((), 1.0, tl.float64)
    factor = result * base  # a literal base would be typed fp32
    left = t
    while left > 0:
        if left & 1:
            result = result * factor
        factor = factor * factor
        left = left >> 1
    return result


@triton.jit
def exp64(x):
    """e**x in float64 within 2 ULP, by a fixed sequence of exact operations."""
    x = tl.minimum(tl.maximum(x, -745.0), 709.0)
    k = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10
    total = x * 0.0 + 1.0
    for i in tl.static_range(14):
        total = 1.0 + total * r / (14.0 - i)
    whole = k.to(tl.int64)
    if whole >= 0:
        scale = power64(x * 0.0 + 2.0, whole)
    else:
        scale = power64(x * 0.0 + 0.5, -whole)
    return total * scale


@triton.jit
def log64(x):
    """The natural logarithm of x > 0 in float64 within 2 ULP."""
    bits = x.to(tl.int64, bitcast=True)
    k = (bits >> 52) - 1023
    m = ((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True)
    large = m > 1.4142135623730951
    m = tl.where(large, m * 0.5, m)
    k = tl.where(large, k + 1, k).to(tl.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    total = x * 0.0
    for i in tl.static_range(13):
        # 1/n as a float64 quotient of this step: a literal would be rounded to fp32
        total = total * square + (x * 0.0 + 1.0) / (25.0 - 2 * i)
    y = 2.0 * s * total + k * 1.9082149292705877e-10 + k * 0.6931471803691238
    y = tl.where(x > 0, y, float("nan"))
    return tl.where(x == 0, float("-inf"), y)


@triton.jit
def real_power64(base, exponent):
    """base**exponent in float64 for base > 0 and any exponent; either may be a number."""
    zero = (base + exponent) * 0.0
    return exp64(exponent * log64(zero + base))


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
    WORDS: tl.constexpr,
):
    """One program per parameter; a skipped step does not advance t.

    ``hypers`` holds HYPERS numbers, of which that at LR comes from ``lr_ptr`` instead, then the
    first lr and the sign of the gradients; ``states`` STATES scalar states per row; SCALARS is the
    generated module's function.  A row of ``scalar_table`` is the gradients' factor and OUTPUTS
    numbers in fp32, one of ``key_table`` whether the step is taken and the random keys.
    """
    row = tl.program_id(0)
    active = tl.load(skip_ptr) == 0
    t = tl.load(clock + row) + 1
    tl.store(clock + row, t, mask=active)
    values = ()
    for i in tl.static_range(HYPERS):
        if i == LR:
            values = values + (tl.load(lr_ptr).to(tl.float64),)
        else:
            values = values + (tl.load(hypers + i),)
    initial_lr = tl.load(hypers + HYPERS)
    remembered = ()
    for i in tl.static_range(STATES):
        remembered = remembered + (tl.load(states + row * STATES + i),)
    outputs, remembered = SCALARS(t, initial_lr, values, remembered)
    for i in tl.static_range(STATES):
        tl.store(states + row * STATES + i, remembered[i], mask=active)
    out = scalar_table + row * (OUTPUTS + 1)
    factor = tl.load(hypers + HYPERS + 1) / tl.load(scale_ptr).to(tl.float64)
    tl.store(out, factor.to(tl.float32))
    for i in tl.static_range(OUTPUTS):
        tl.store(out + 1 + i, outputs[i].to(tl.float32))
    store_keys(key_table + row * (1 + 2 * WORDS), tl.load(seed_ptr), t, active, WORDS)
