"""Elementwise fp32 arithmetic in Triton (docs/design.md#numerics)."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ptx
from signconv.runtime.kernel.constants import ARITHMETIC


@triton.jit
def sign(x):
    """-1, 0 or 1; a zero keeps its sign and NaN stays NaN, so that a poisoned weight shows."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def signed(step, x):
    """step * sign(x) without the multiply: a zero stays a zero of x's sign, NaN stays NaN."""
    flip = x.to(tl.uint32, bitcast=True) & 0x80000000
    moved = (step.to(tl.uint32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) > 0, moved, x)


@triton.jit
def maximum(a, b):
    """NaN if either is NaN; -0 < +0.  ``b`` may be a number."""
    b = tl.where(a == a, b, b)
    bits = a.to(tl.uint32, bitcast=True) & b.to(tl.uint32, bitcast=True)
    larger = tl.where(a > b, a, tl.where(b > a, b, bits.to(tl.float32, bitcast=True)))
    return tl.where(a != a, a, tl.where(b != b, b, larger))


@triton.jit
def minimum(a, b):
    """NaN if either is NaN; -0 < +0.  ``b`` may be a number."""
    b = tl.where(a == a, b, b)
    bits = a.to(tl.uint32, bitcast=True) | b.to(tl.uint32, bitcast=True)
    smaller = tl.where(a < b, a, tl.where(b < a, b, bits.to(tl.float32, bitcast=True)))
    return tl.where(a != a, a, tl.where(b != b, b, smaller))


@triton.jit
def nonneg_maximum(a, b):
    """Maximum of values that are never negative nor -0: there the ordering of zeros is idle."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def cbrt(x):
    """Cube root of x >= 0 within 1 ULP, without a division: y = x**(-1/3) from an exponent divided
    by three and one step of third order, then Newton's step from x*y*y in 12 bits, whose square is
    exact, with its second-order term.

    x is moved by a power of two first: no residual underflows, no cube overflows.
    """
    tiny = x < 5.421010862427522e-20  # 2^-64
    z = x * tl.where(tiny, 4.722366482869645e21, 0.125)  # 2^72, 2^-3
    y = (0x54A20000 - z.to(tl.uint32, bitcast=True) // 3).to(tl.float32, bitcast=True)
    e = 1.0 - z * y * y * y
    y = y * (1.000000834465027 + e * (0.33469223976135254 + e * 0.2230465412139892))
    square = y * y
    guess = ((z * square).to(tl.uint32, bitcast=True) + 0x800) & 0xFFFFF000
    guess = guess.to(tl.float32, bitcast=True)
    change = (z - guess * guess * guess) * (square * 0.3333333432674408)
    guess = guess + (change + change * change * y)
    guess = guess * tl.where(tiny, 5.960464477539063e-08, 2.0)  # 2^-24
    return tl.where((x > 0) & (x < float("inf")), guess, x)


@triton.jit
def tile_maximum(bits):
    """The largest of uint32 [ROWS, 32]: in one dimension, where the compiler has one instruction
    for a whole warp."""
    return tl.max(tl.reshape(bits, (bits.shape[0] * bits.shape[1],)), axis=0)


@triton.jit
def _largest(bits, LOW: tl.constexpr):
    """How far above LOW (bits below it wrap around) the numbers of a tile reach, as uint32."""
    return tile_maximum(bits - LOW)


@triton.jit
def sqrt(x, CODEC: tl.constexpr):
    """The correctly rounded square root.

    The compiler's own branches at every element for what is rare; here one branch is taken for a
    whole tile between 2^-100 and 2^100, where a few instructions are always right.
    """
    if CODEC == ARITHMETIC or len(x.shape) < 2:
        y = tl.sqrt_rn(x)
    elif _largest(x.to(tl.uint32, bitcast=True), 0x0D800000) <= 0x64000000:
        y = ptx.sqrt(x)
    else:
        y = tl.sqrt_rn(x)
    return y


@triton.jit
def _both(a, b):
    """Both as tensors of one shape; either may be a number."""
    same = a == b
    return tl.where(same, a, a), tl.where(same, b, b)


@triton.jit
def _plain_quotients(a, b):
    """Whether all of a tile's |a| and |b| lie between 2^-60 and 2^60, by bits without the sign."""
    far_a = _largest(a.to(tl.uint32, bitcast=True) * 2, 0x43000000)
    far_b = _largest(b.to(tl.uint32, bitcast=True) * 2, 0x43000000)
    return tl.maximum(far_a, far_b) <= 0x78000000


@triton.jit
def divide(a, b, CODEC: tl.constexpr):
    """a / b, correctly rounded."""
    a, b = _both(a, b)
    if CODEC == ARITHMETIC or len(a.shape) < 2:
        y = tl.div_rn(a, b)
    elif _plain_quotients(a, b):
        y = ptx.divide(a, b)
    else:
        y = tl.div_rn(a, b)
    return y


@triton.jit
def mean_ratio(a, b, CODEC: tl.constexpr):
    """a / b, correctly rounded, with 0/0 = 0: clipped afterwards, so it may be infinite."""
    a, b = _both(a, b)
    if CODEC == ARITHMETIC or len(a.shape) < 2:
        y = tl.where((a == 0) & (b == 0), 0.0, tl.div_rn(a, b))
    elif _plain_quotients(a, b):
        y = ptx.divide(a, b)
    else:
        y = tl.where((a == 0) & (b == 0), 0.0, tl.div_rn(a, b))
    return y


@triton.jit
def ratio(a, b, CODEC: tl.constexpr):
    """a / b, correctly rounded, with a/0 = 0 for finite a: what underflowed moves nothing."""
    a, b = _both(a, b)
    if CODEC == ARITHMETIC or len(a.shape) < 2:
        y = tl.where((b == 0) & (tl.abs(a) < float("inf")), 0.0, tl.div_rn(a, b))
    elif _plain_quotients(a, b):
        y = ptx.divide(a, b)
    else:
        y = tl.where((b == 0) & (tl.abs(a) < float("inf")), 0.0, tl.div_rn(a, b))
    return y


@triton.jit
def exp(x):
    """e**x within 2 ULP, by a fixed sequence of exact operations."""
    y = tl.where(x > -104.0, tl.where(x < 89.0, x, 89.0), -104.0)
    k = tl.floor(y * 1.4426950216293335 + 0.5)
    r = (y - k * 0.693145751953125) - k * 1.428606765330187e-06
    total = 1.0 + r * 0.1428571492433548
    for i in tl.static_range(6):
        total = 1.0 + tl.div_rn(total * r, r * 0.0 + (6.0 - i))
    whole = k.to(tl.int32)
    half = whole >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x != x, x, total * first * second)


@triton.jit
def log(x):
    """The natural logarithm within 2 ULP, by a fixed sequence of exact operations."""
    tiny = x < 1.1754943508222875e-38
    y = tl.where(tiny, x * 8388608.0, x)
    bits = y.to(tl.int32, bitcast=True)
    m = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    large = m > 1.4142135381698608
    m = tl.where(large, m * 0.5, m)
    k = ((bits >> 23) - tl.where(tiny, 150, 127) + large.to(tl.int32)).to(tl.float32)
    s = tl.div_rn(m - 1.0, m + 1.0)
    square = s * s
    total = 0.1111111119389534 * square + 0.1428571492433548
    total = total * square + 0.20000000298023224
    total = total * square + 0.3333333432674408
    y = (2.0 * s * (total * square) + k * 1.428606765330187e-06) + 2.0 * s + k * 0.693145751953125
    y = tl.where(x == 0, float("-inf"), tl.where(x < 0, float("nan"), y))
    return tl.where(x < float("inf"), y, x)


@triton.jit
def tanh(x):
    """The hyperbolic tangent within 4 ULP, by a fixed sequence of exact operations."""
    size = tl.abs(x)
    square = x * x
    near = square * 0.02186948940157890 - 0.053968254476785660
    near = near * square + 0.13333334028720856
    near = x + x * ((near * square - 0.3333333432674408) * square)
    e = exp(-2.0 * size)
    far = tl.div_rn(1.0 - e, 1.0 + e)
    far = tl.where(x < 0, far * -1.0, far)
    return tl.where(size < 0.25, near, far)
