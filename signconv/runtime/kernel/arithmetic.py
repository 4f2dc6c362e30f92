"""Elementwise fp32 arithmetic in Triton (docs/design.md#numerics)."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ptx
from signconv.runtime.kernel.constants import ARITHMETIC, FUSES


@triton.jit
def fma(a, b, c, CODEC: tl.constexpr):
    """a*b + c, rounded once.  One of them is a tensor, the others may be numbers."""
    if CODEC != ARITHMETIC:
        y = ptx.fma(a, b, c)
    elif FUSES:
        y = tl.fma(a, b, c)
    else:
        y = _emulated_fma(a, b, c)
    return y


@triton.jit
def _emulated_fma(a, b, c):
    """By way of float64, where the product is exact; the sum is rounded to odd, so that rounding
    it again to fp32 is right (Boldo and Melquiond 2008)."""
    one = tl.full((), 1.0, tl.float64)
    x, z = (a * one) * (b * one), c * one
    total = x + z
    part = total - x
    rest = (x - (total - part)) + (z - part)
    bits = total.to(tl.int64, bitcast=True)
    odd = (bits + tl.where((rest > 0) == (total > 0), 1, -1)).to(tl.float64, bitcast=True)
    inexact = (rest != 0) & (tl.abs(rest) < float("inf")) & ((bits & 1) == 0)
    return tl.where(inexact, odd, total).to(tl.float32)


@triton.jit
def sign(x):
    """-1, 0 or 1; a zero keeps its sign and NaN stays NaN, so that a poisoned weight shows."""
    bits = (x.to(tl.uint32, bitcast=True) & 0x80000000) | 0x3F800000
    return tl.where(tl.abs(x) > 0, bits.to(tl.float32, bitcast=True), x)


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
    """Maximum of values that are never negative nor -0, or one of which is never 0: there the
    ordering of zeros is idle."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def nonzero_minimum(a, b):
    """Minimum of values one of which is never 0: there the ordering of zeros is idle."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


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
def divisor_sqrt(x, CODEC: tl.constexpr):
    """The correctly rounded square root of x >= 2^-100; 2^100 of what is smaller, so that it moves
    nothing; NaN where x is Inf or NaN."""
    if CODEC != ARITHMETIC:
        y = ptx.sqrt(x)
    else:
        y = tl.sqrt_rn(x) + (x - x)
    return tl.where(x < 7.888609052210118e-31, 1.2676506002282294e30, y)


@triton.jit
def reciprocal(b, CODEC: tl.constexpr):
    """1 / b, correctly rounded, for 2^-126 <= b <= 2^126; 0 of larger numbers, NaN where b is Inf
    or NaN."""
    if CODEC != ARITHMETIC:
        y = ptx.reciprocal(b)
    else:
        y = tl.where(b <= 8.507059173023462e37, quotient(tl.where(b == b, 1.0, 1.0), b), b * 0.0)
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
def quotient(a, b):
    """a / b, correctly rounded, without a look at the whole tile.  ``b`` may be a number."""
    return tl.div_rn(a, tl.where(a == a, b, b))


@triton.jit
def divided(x, N: tl.constexpr):
    """x // N for int32 x >= 0 and a whole N > 0: unsigned, which takes fewer instructions."""
    return (x.to(tl.uint32, bitcast=True) // N).to(tl.int32, bitcast=True)


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
