"""The Triton half of the runtime: what generated kernels call.

Every function has a twin of the same name in ``torch_ops``, equal bit for bit.  A tile is
[ROWS, 32] consecutive elements; a row of 32 is one scale block.  FULL tiles load and store
without a mask, which is what makes the accesses 16 bytes wide.
"""

from __future__ import annotations

import os

from signconv.runtime import device_roots, ptx
from signconv.runtime.compat import tl, triton
from signconv.runtime.device_roots import power, real_power, root  # noqa: F401 - kernels' dev.root

# Triton's interpreter widens bf16 subnormals wrongly (measured, 3.9), so it does that on the bits;
# on a GPU one instruction does it.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")

# Format codes (formats.py).
FP32 = tl.constexpr(0)
BF16 = tl.constexpr(1)
E4M3 = tl.constexpr(2)
E5M2 = tl.constexpr(3)
E4M3_RAW = tl.constexpr(4)
ROOT = tl.constexpr(16)  # + p: the p-th root in E4M3

# How codes are made (a kernel's CODEC): by the arithmetic below, which runs everywhere; by the
# same arithmetic in PTX, for NVIDIA GPUs; by that and the FP8 conversions of compute capability 8.9
ARITHMETIC = tl.constexpr(0)
PTX = tl.constexpr(1)
PTX_FP8 = tl.constexpr(2)

# How a parameter is stored (formats.py).
PLAIN = tl.constexpr(0)
SPLIT = tl.constexpr(1)
WHOLE = tl.constexpr(2)


# ---------------------------------------------------------------- random numbers (design.md 5)


@triton.jit
def mix32(x):
    """A bijection of uint32 with full avalanche (two multiplies, Wellons' lowbias32)."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def draw_keys(seed, t, stream):
    """Two 32-bit keys (uint32) from (seed, t, stream); seed and t are int64, not literals."""
    seed_lo = seed.to(tl.uint32)
    seed_hi = (seed >> 32).to(tl.uint32)
    step = t.to(tl.uint32)
    word = tl.full((), stream, tl.uint32) * 0x9E3779B9
    first = mix32(mix32(mix32(seed_lo + 0x243F6A88) ^ seed_hi) ^ step) + word
    second = mix32(mix32(mix32(seed_lo + 0x85A308D3) ^ seed_hi) ^ step) + word
    return mix32(first), mix32(second)


@triton.jit
def random_bits(index, lane, key0, key1):
    """32 random bits per element: index is int64 [ROWS, 1] (first of the row), lane int32 [1, 32].

    The key enters twice: by xor alone every step would permute the same draws.  A lane changes
    only the low five bits, so the first xor-shift is done once per row.
    """
    key0 = key0.to(tl.uint32, bitcast=True)
    key1 = key1.to(tl.uint32, bitcast=True)
    high = (index >> 32).to(tl.uint32)
    x = index.to(tl.uint32) ^ (key0 ^ (high * 0x9E3779B9))
    x = (x ^ (x >> 16)) ^ lane.to(tl.uint32)  # index is a multiple of 32
    x *= 0x7FEB352D
    x ^= x >> 15
    return x * 0x846CA68B + (key1 + high * 0x85EBCA6B)


@triton.jit
def high_field(bits):
    """A 32-bit field for one use of ``bits``; its upper 16 bits are those of ``bits``."""
    return bits


@triton.jit
def low_field(bits):
    """A 32-bit field whose upper 16 bits are independent of those of ``high_field``."""
    return (bits << 16) ^ bits  # both halves, above the lower one


@triton.jit
def sign_noise(field):
    """Midpoints (2u + 1 - N) / N with N = 2^22: symmetric in (-1, 1), never 0, exact in fp32."""
    two_to_four = ((field >> 9) | 0x40000001).to(tl.float32, bitcast=True)
    return two_to_four - 3.0


# ---------------------------------------------------------------- arithmetic (design.md 4)


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
def mean_ratio(a, b):
    """a / b, correctly rounded, with 0/0 = 0: clipped afterwards, so it may be infinite."""
    return tl.where((a == 0) & (b == 0), 0.0, tl.div_rn(a, b))


@triton.jit
def ratio(a, b):
    """a / b, correctly rounded, with a/0 = 0 for finite a: what underflowed moves nothing."""
    return tl.where((b == 0) & (tl.abs(a) < float("inf")), 0.0, tl.div_rn(a, b))


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


@triton.jit
def tree_sum(x, N: tl.constexpr, LEVELS: tl.constexpr):
    """Sum of N = 2**LEVELS numbers, neighbours first: the tree does not depend on the launch."""
    for level in tl.static_range(LEVELS):
        left, right = tl.split(tl.reshape(x, [N >> (level + 1), 2]))
        x = left + right
    return x


@triton.jit
def store_partial(ptr, x, mask, ROWS: tl.constexpr, LEVELS: tl.constexpr):
    """Store the sum of a tile [ROWS, 32] of 2**LEVELS elements, without those outside the mask."""
    flat = tl.reshape(tl.where(mask, x, 0.0), [ROWS * 32])
    tl.store(ptr + tl.arange(0, 1), tree_sum(flat, ROWS * 32, LEVELS))


@triton.jit
def norm_of_sum(total, numel):
    """The Euclidean norm from the sum of squares."""
    return tl.sqrt_rn(total)


@triton.jit
def mean_of_sum(total, numel):
    """The mean from the sum."""
    return tl.div_rn(total, numel.to(tl.float32))


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


# ---------------------------------------------------------------- codes (algorithms.md D)


@triton.jit
def encode_bf16(x, field, CODEC: tl.constexpr):
    """Stochastic rounding to bf16 on the bits; past the largest bf16, and for Inf and NaN, the
    low bits are cut off instead, so that finite values never become Inf."""
    if CODEC != ARITHMETIC:
        return ptx.encode_bf16(x, field)
    bits = x.to(tl.uint32, bitcast=True)
    bits = tl.where(tl.abs(x) <= 3.3895313892515355e38, bits + (field >> 16), bits)
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def decode_fp8(code, scale, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """uint8 codes times ``scale`` (a power of two) as fp32, exactly."""
    if FORMAT == E5M2:  # the upper byte of an fp16
        if CODEC != ARITHMETIC:
            return ptx.decode_e5m2(code, scale)
        return (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32) * scale
    if CODEC == PTX_FP8:
        return ptx.decode_e4m3(code, scale)
    # Sign and magnitude where fp32 has them; the exponent's bias is made up by 2^120
    wide = code.to(tl.int8, bitcast=True).to(tl.int32).to(tl.uint32, bitcast=True)
    field = (wide << 20) & 0x87F00000
    x = field.to(tl.float32, bitcast=True)
    nan = tl.abs(x) == 3.6111186478129074e-34  # code 0x7F: 1.875 * 2^-112
    return tl.where(nan, float("nan"), x * 1.329227995784916e36) * scale


@triton.jit
def encode_fp8(x, scale, field, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """Finite fp32 to uint8 codes by unbiased stochastic rounding on the bits.

    ``scale`` is a power of two that gives fp32 the code's exponents, subnormals included, and no
    overflow (E5M2: x >= 0); the upper 20 (E5M2: 21) bits of ``field`` decide the rounding.
    """
    if CODEC != ARITHMETIC:
        if FORMAT == E5M2:
            return ptx.encode_e5m2(x, scale, field)
        return ptx.encode_e4m3(x, scale, field)
    bits = (x * scale).to(tl.uint32, bitcast=True)
    if FORMAT == E5M2:
        code = (bits + (field >> 11)) >> 21
    else:
        bits += field >> 12
        code = (bits >> 20) | ((bits >> 24) & 0x80)  # the byte's upper bit is 0 before the sign
    return code.to(tl.uint8)


@triton.jit
def encode_fp8_nearest(x, FORMAT: tl.constexpr):
    """fp32 to uint8 codes, ties to even; Inf and NaN store NaN, the rest saturates.

    Below the smallest normal number one fp32 addition rounds to the code's spacing.
    """
    size = tl.abs(x)
    if FORMAT == E5M2:
        size = tl.where(size < 65536.0, size, 65536.0)
        field = (size * 1.925929944387236e-34).to(tl.int32, bitcast=True)
        normal = (field + 0xFFFFF + ((field >> 21) & 1)) >> 21
        tiny = (size + 128.0).to(tl.int32, bitcast=True) - 0x43000000
        code = tl.minimum(tl.where(size < 6.103515625e-05, tiny, normal), 0x7B)
    else:
        size = tl.where(size < 512.0, size, 512.0)
        field = (size * 7.52316384526264e-37).to(tl.int32, bitcast=True)
        normal = (field + 0x7FFFF + ((field >> 20) & 1)) >> 20
        tiny = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.minimum(tl.where(size < 0.015625, tiny, normal), 0x7E)
    bits = x.to(tl.uint32, bitcast=True)
    code = code | ((bits >> 24) & 0x80).to(tl.int32)
    return tl.where(_magnitude(x) < 0x7F800000, code, 0x7F).to(tl.uint8)


@triton.jit
def bf16_nearest(x):
    """The nearest bf16 as fp32, ties to even; Inf and NaN stay."""
    if not INTERPRETED:
        return x.to(tl.bfloat16).to(tl.float32)
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(tl.abs(x) < float("inf"), rounded.to(tl.float32, bitcast=True), x)


@triton.jit
def _magnitude(x):
    return x.to(tl.uint32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _nan_maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _byte(largest, FORMAT: tl.constexpr):
    """E8M0 byte [ROWS, 1] for the bits of a row's largest magnitude: one binade below overflow."""
    exponent = (largest >> 23).to(tl.int32)
    return tl.maximum(exponent - (14 if FORMAT == E5M2 else 7), 1)[:, None]


@triton.jit
def _power_of_two(exponent):
    """2**exponent for -126 <= exponent <= 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def encode_blocks(x, field, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """Codes [ROWS, 32] and E8M0 bytes [ROWS, 1]: the scale of a row is that of its largest finite
    magnitude, one binade below overflow; Inf and NaN store NaN.

    Scaled by 2^(bias - byte) fp32 has the code's exponents.  Where that power of two is no normal
    fp32 number, and for Inf and NaN, a second branch takes over, with the scale in two factors.
    """
    BIAS: tl.constexpr = 15 if FORMAT == E5M2 else 7
    # The largest number of the first branch: its byte gives the scale 2^-126
    LIMIT: tl.constexpr = (156 if FORMAT == E5M2 else 141) << 23
    # E5M2 holds what is never negative: its bits are its magnitude, and unsigned a NaN with a
    # sign is still the largest
    if FORMAT == E5M2:
        largest = tl.max(x.to(tl.uint32, bitcast=True), axis=1)
    elif CODEC == ARITHMETIC:
        largest = tl.max(_magnitude(x), axis=1)
    else:
        largest = tl.reduce(tl.abs(x), 1, _nan_maximum).to(tl.uint32, bitcast=True)
    if tl.max(largest, axis=0) < LIMIT:
        byte = _byte(largest, FORMAT)
        code = encode_fp8(x, _power_of_two(BIAS - byte), field, FORMAT, CODEC)
    else:
        finite = _magnitude(x) < 0x7F800000
        byte = _byte(tl.max(tl.where(finite, _magnitude(x), 0), axis=1), FORMAT)
        first = tl.maximum(BIAS - byte, -126)
        scaled = x * _power_of_two(first)
        code = encode_fp8(scaled, _power_of_two(BIAS - byte - first), field, FORMAT, CODEC)
        code = tl.where(finite, code, 0x7F).to(tl.uint8)
    return code, byte


@triton.jit
def _encode_root_blocks(v, field, N: tl.constexpr):
    """As ``encode_blocks``, of N-th roots; moments above 2^124 saturate."""
    largest = tl.max(_magnitude(v), axis=1)
    if tl.max(largest, axis=0) < device_roots.LARGEST_ROOT_BITS:
        byte = device_roots.root_scale(largest, N)
        code = device_roots.encode_roots(v, field, byte, N)
    else:
        finite = _magnitude(v) < 0x7F800000
        v = tl.minimum(tl.where(finite, v, 0.0), 2.1267647932558654e37)  # 2^124
        byte = device_roots.root_scale(tl.max(_magnitude(v), axis=1), N)
        code = device_roots.encode_roots(v, field, byte, N)
        code = tl.where(finite, code, 0x7F).to(tl.uint8)
    return code, byte


# ---------------------------------------------------------------- master weights


@triton.jit
def split_master(x):
    """The nearest bf16 (as fp32), ties away from zero, and the signed 16-bit rest of the bits.

    Ties to even would leave 65,537 fp32 numbers to every even bf16, one too many.  NaN becomes
    the one NaN 0x7FC00000, whose rest is 0.
    """
    bits = tl.where(x == x, x.to(tl.uint32, bitcast=True), 0x7FC00000)
    low = bits.to(tl.uint16).to(tl.int16, bitcast=True)
    high = ((bits + 0x8000) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return high, low


@triton.jit
def join_master(high, low):
    """The fp32 number split_master took apart; a pair it never makes that spells NaN is ``high``.

    Such a pair is a weight set to 0 from outside beside a negative rest.
    """
    bits = high.to(tl.int32, bitcast=True) + low.to(tl.int32)
    x = bits.to(tl.float32, bitcast=True)
    return tl.where(x == x, x, high)


@triton.jit
def row_check(x, offsets):
    """int32 [ROWS, 1]: a checksum of a row of 32 bf16 numbers (as fp32).

    Any one changed element changes it for certain (every operation is a bijection of its bits).
    """
    lane = (offsets & 31).to(tl.uint32) << 16
    mixed = ((x.to(tl.uint32, bitcast=True) >> 16) | lane) * 0x7FEB352D
    mixed ^= mixed >> 15
    # By way of int64, since the interpreter's sum is one
    return tl.sum(mixed, axis=1, keep_dims=True).to(tl.int64).to(tl.int32)


# ---------------------------------------------------------------- loads and stores


@triton.jit
def _load(ptr, offsets, mask, FULL: tl.constexpr):
    if FULL:
        return tl.load(ptr + offsets)
    return tl.load(ptr + offsets, mask=mask, other=0)


@triton.jit
def _store(ptr, offsets, value, mask, FULL: tl.constexpr):
    if FULL:
        tl.store(ptr + offsets, value)
    else:
        tl.store(ptr + offsets, value, mask=mask)


@triton.jit
def _widen(x, CODEC: tl.constexpr):
    """bf16 or fp32 as fp32, exactly."""
    if x.dtype == tl.bfloat16:
        if CODEC != ARITHMETIC:
            return ptx.decode_bf16(x)
        if INTERPRETED:
            return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def load_float(ptr, offsets, mask, FULL: tl.constexpr, CODEC: tl.constexpr):
    """A parameter or a gradient as fp32."""
    return _widen(_load(ptr, offsets, mask, FULL), CODEC)


@triton.jit
def store_float(ptr, offsets, x, field, mask, FULL: tl.constexpr, CODEC: tl.constexpr):
    """From fp32: as it is, or rounded stochastically to bf16."""
    if ptr.dtype.element_ty == tl.bfloat16:
        x = encode_bf16(x, field, CODEC)
    _store(ptr, offsets, x, mask, FULL)


@triton.jit
def _master(masters, TYPE: tl.constexpr, FULL: tl.constexpr):
    ptr = tl.load(masters).to(tl.pointer_type(TYPE))
    if FULL:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def load_param(
    ptr,
    masters,
    start,
    offsets,
    mask,
    row,
    row_mask,
    FORMAT: tl.constexpr,
    FULL: tl.constexpr,
    CODEC: tl.constexpr,
):
    """A parameter as fp32 [ROWS, 32], with a master weight that one; ``start`` is the chunk's.

    ``masters`` points at the table's pointers to remainders and checks (SPLIT) or to fp32 weights
    (WHOLE).  Where a bf16 weight is not the one that was stored, it was changed from outside and
    counts as it is: each element for itself (WHOLE), or its row of 32 (SPLIT).
    """
    p = load_float(ptr + start, offsets, mask, FULL, CODEC)
    if FORMAT == SPLIT:
        low = _load(_master(masters, tl.int16, FULL) + start, offsets, mask, FULL)
        check = _load(_master(masters + 1, tl.int32, FULL) + start // 32, row, row_mask, FULL)
        p = tl.where(row_check(p, offsets) == check, join_master(p, low), p)
    elif FORMAT == WHOLE:
        whole = _load(_master(masters, tl.float32, FULL) + start, offsets, mask, FULL)
        high, low = split_master(whole)
        same = high.to(tl.uint32, bitcast=True) == p.to(tl.uint32, bitcast=True)
        p = tl.where(same, whole, p)
    return p


@triton.jit
def store_param(
    ptr,
    masters,
    start,
    offsets,
    x,
    field,
    mask,
    row,
    row_mask,
    FORMAT: tl.constexpr,
    FULL: tl.constexpr,
    CODEC: tl.constexpr,
):
    """A parameter from fp32 [ROWS, 32], with a master weight that one too."""
    if FORMAT == PLAIN:
        store_float(ptr + start, offsets, x, field, mask, FULL, CODEC)
    else:
        high, low = split_master(x)
        code = (high.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        _store(ptr + start, offsets, code, mask, FULL)
        if FORMAT == SPLIT:
            _store(_master(masters, tl.int16, FULL) + start, offsets, low, mask, FULL)
            check = row_check(high, offsets)
            _store(_master(masters + 1, tl.int32, FULL) + start // 32, row, check, row_mask, FULL)
        else:
            _store(_master(masters, tl.float32, FULL) + start, offsets, x, mask, FULL)


@triton.jit
def load_moment(
    ptr,
    scale_ptr,
    start,
    offsets,
    mask,
    row,
    row_mask,
    FORMAT: tl.constexpr,
    FULL: tl.constexpr,
    CODEC: tl.constexpr,
):
    """A stored moment as fp32 [ROWS, 32]; ``start`` is the chunk's first element.

    ``ptr`` is untyped (uint8) and typed here; ``scale_ptr`` is read only by the scaled formats.
    """
    if FORMAT == FP32:
        x = _load(ptr.to(tl.pointer_type(tl.float32)) + start, offsets, mask, FULL)
    elif FORMAT == BF16:
        x = _load(ptr.to(tl.pointer_type(tl.bfloat16)) + start, offsets, mask, FULL)
        x = _widen(x, CODEC)
    elif FORMAT == E4M3_RAW:
        x = decode_fp8(_load(ptr + start, offsets, mask, FULL), 1.0, FORMAT, CODEC)
    else:
        byte = _load(scale_ptr + start // 32, row, row_mask, FULL).to(tl.uint32)
        scale = (byte << 23).to(tl.float32, bitcast=True)
        code = _load(ptr + start, offsets, mask, FULL)
        x = decode_fp8(code, scale, E4M3 if FORMAT > ROOT else FORMAT, CODEC)
        if FORMAT > ROOT:
            x = power(x, FORMAT - ROOT)
    return x


@triton.jit
def store_moment(
    ptr,
    scale_ptr,
    start,
    offsets,
    x,
    field,
    mask,
    row,
    row_mask,
    FORMAT: tl.constexpr,
    FULL: tl.constexpr,
    CODEC: tl.constexpr,
):
    """Encode fp32 [ROWS, 32] and store; the scale used to encode is the one that is stored."""
    if FORMAT == FP32:
        _store(ptr.to(tl.pointer_type(tl.float32)) + start, offsets, x, mask, FULL)
    elif FORMAT == BF16:
        code = encode_bf16(x, field, CODEC)
        _store(ptr.to(tl.pointer_type(tl.bfloat16)) + start, offsets, code, mask, FULL)
    elif FORMAT == E4M3_RAW:
        if CODEC == PTX_FP8:
            code = ptx.encode_e4m3_nearest(x)
        else:
            code = encode_fp8_nearest(x, E4M3)
        _store(ptr + start, offsets, code, mask, FULL)
    else:
        if FORMAT > ROOT:
            code, byte = _encode_root_blocks(x, field, FORMAT - ROOT)
        else:
            code, byte = encode_blocks(x, field, FORMAT, CODEC)
        _store(ptr + start, offsets, code, mask, FULL)
        _store(scale_ptr + start // 32, row, byte.to(tl.uint8), row_mask, FULL)


@triton.jit
def store_keys(keys, seed, t, active, WORDS: tl.constexpr):
    """One row of keys: whether the step is taken, then two 32-bit keys per word of random bits."""
    tl.store(keys, active.to(tl.int32))
    for word in tl.static_range(WORDS):
        first, second = draw_keys(seed, t, word)
        tl.store(keys + 1 + 2 * word, first.to(tl.int32, bitcast=True))
        tl.store(keys + 2 + 2 * word, second.to(tl.int32, bitcast=True))
