"""fp32 to bf16 and FP8 codes and back, in Triton (docs/design.md#codecs)."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import arithmetic, ptx, ptx4, roots
from signconv.runtime.kernel.constants import (
    ARITHMETIC,
    BF16,
    E2M1,
    E4M3,
    E4M3_RAW,
    E5M3,
    E6M2,
    FP32,
    HALVES,
    INT8,
    INTERPRETED,
    LEAST_SCALE,
    PTX_FP8,
    ROOT,
)


@triton.jit
def widen(x, CODEC: tl.constexpr):
    """A stored parameter or gradient, bf16 or fp32, as fp32, exactly."""
    if x.dtype == tl.bfloat16:
        if CODEC != ARITHMETIC:
            return ptx.decode_bf16(x)
        if INTERPRETED:
            return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def encode_bf16(x, field, CODEC: tl.constexpr, EIGHT: tl.constexpr = False):
    """Stochastic rounding to bf16 on the bits; past the largest bf16, and for Inf and NaN, the
    low bits are cut off instead, so that finite values never become Inf."""
    if CODEC != ARITHMETIC:
        if EIGHT:
            return ptx.encode_bf16_by_eight(x, field)
        return ptx.encode_bf16(x, field)
    bits = x.to(tl.uint32, bitcast=True)
    bits = tl.where(tl.abs(x) <= 3.3895313892515355e38, bits + (field >> 16), bits)
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def decode_fp8(code, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """uint8 codes as fp32, exactly, before the block scale."""
    if FORMAT == E5M3:  # the bits of an fp16 below its sign
        if CODEC != ARITHMETIC:
            return ptx.decode_e5m3(code)
        return (code.to(tl.uint16) << 7).to(tl.float16, bitcast=True).to(tl.float32)
    if FORMAT == E6M2:  # below the largest exponents of fp32, so that NaN is one
        if CODEC != ARITHMETIC:
            return ptx.decode_e6m2(code)
        x = ((code.to(tl.uint32) << 21) + 0x60000000).to(tl.float32, bitcast=True)
        return x * 2.350988701644575e-38 - 8.673617379884035e-19
    if CODEC == PTX_FP8:
        return ptx.decode_e4m3(code)
    # Sign and magnitude where fp32 has them; the exponent's bias is made up by 2^120
    wide = code.to(tl.int8, bitcast=True).to(tl.int32).to(tl.uint32, bitcast=True)
    field = (wide << 20) & 0x87F00000
    x = field.to(tl.float32, bitcast=True)
    nan = tl.abs(x) == 3.6111186478129074e-34  # code 0x7F: 1.875 * 2^-112
    return tl.where(nan, float("nan"), x * 1.329227995784916e36)


@triton.jit
def encode_fp8(x, scale, field, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """Finite fp32 to uint8 codes by unbiased stochastic rounding on the bits.

    ``scale`` is a power of two that gives fp32 the code's exponents, subnormals included, and no
    overflow; of E6M2 in a sum with 2^-63.  The upper 20 (E6M2: 21) bits of ``field`` decide the
    rounding.  Unsigned formats take x >= 0.
    """
    if CODEC != ARITHMETIC:
        if FORMAT == E5M3:
            return ptx.encode_e5m3(x, scale, field)
        if FORMAT == E6M2:
            return ptx.encode_e6m2(x, scale, field)
        return ptx.encode_e4m3(x, scale, field)
    x *= scale
    if FORMAT == E6M2:
        x += 1.0842021724855044e-19
    bits = x.to(tl.uint32, bitcast=True)
    if FORMAT == E5M3:
        code = (bits + (field >> 12)) >> 20
    elif FORMAT == E6M2:
        code = (bits + (field >> 11)) >> 21
    else:
        bits += field >> 12
        code = (bits >> 20) | ((bits >> 24) & 0x80)  # the byte's upper bit is 0 before the sign
    return code.to(tl.uint8)


@triton.jit
def decode_int8(code):
    """uint8 codes as fp32, exactly, before the block scale: bits of 2^23 + 128 + code."""
    x = ((code ^ 0x80).to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0
    return tl.where(code == 0x80, float("nan"), x)


@triton.jit
def encode_int8(x, scale, field):
    """fp32, no larger than the largest code, to uint8 codes by unbiased stochastic rounding on the
    bits: in a sum with 384 the scaled number has a spacing of 2^-15."""
    bits = (x * scale + 384.0).to(tl.uint32, bitcast=True)
    return ((bits + (field >> 17) + (0x80 << 15)) >> 15).to(tl.uint8)


@triton.jit
def unpack(stored):
    """Codes [ROWS, 32] of bytes [ROWS, 16], the lower half first."""
    return tl.interleave(stored & 0xF, stored >> 4)


@triton.jit
def pack(code):
    """Bytes [ROWS, 16] of codes [ROWS, 32], the first of two in the lower half."""
    first, second = _halves(code)
    return first | (second << 4)


@triton.jit
def decode_fp4(code, FORMAT: tl.constexpr):
    """4-bit codes as fp32, exactly, before the block scale: a code is bits of an fp16."""
    wide = code.to(tl.uint16)
    if FORMAT == E2M1:
        half = ((wide & 7) << 9) | ((wide & 8) << 12)
        nan = code == 8
    else:
        half = wide << 10
        nan = code == 15
    return tl.where(nan, float("nan"), half.to(tl.float16, bitcast=True).to(tl.float32))


@triton.jit
def decode_halves(stored, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """Bytes [ROWS, 16] of two codes as fp32 [ROWS, 32], before the block scale."""
    if CODEC == ARITHMETIC:
        return decode_fp4(unpack(stored), FORMAT)
    if FORMAT == E2M1:
        first, second = ptx4.decode_e2m1(stored)
    else:
        first, second = ptx4.decode_e4m0(stored)
    return tl.interleave(first, second)


@triton.jit
def encode_fp4(x, scale, field, FORMAT: tl.constexpr):
    """fp32, no larger than the largest code, to codes by unbiased stochastic rounding on the bits.

    ``scale`` is a power of two that gives fp32 the code's exponents, subnormals included.  A sign
    counts where the code is not 0 or NaN's.
    """
    bits = _magnitude(x * scale)
    if FORMAT == E2M1:
        code = (bits + (field >> 10)) >> 22
        code |= tl.where((x < 0) & ((code & 7) > 0), tl.full((), 8, tl.uint32), 0)
    else:
        code = (bits + (field >> 9)) >> 23
    return code.to(tl.uint8)


@triton.jit
def _halves(x):
    """The first and the second of each two neighbours, [ROWS, 16] each."""
    return tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))


@triton.jit
def encode_fp8_nearest(x):
    """fp32 to E4M3 codes, ties to even; Inf and NaN store NaN, the rest saturates.

    Below the smallest normal number one fp32 addition rounds to the code's spacing.
    """
    size = tl.abs(x)
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
def _highest(largest, x):
    """The largest of all rows' largest bits [ROWS]; ``x`` [ROWS, 32] is their tile."""
    return arithmetic.tile_maximum(tl.broadcast_to(largest[:, None], x.shape))


@triton.jit
def _byte(largest, FORMAT: tl.constexpr):
    """E8M0 byte [ROWS, 1] for the bits of a row's largest magnitude: one binade below overflow."""
    HEADROOM: tl.constexpr = 14 if FORMAT == E5M3 else (1 if FORMAT == E6M2 else 7)
    exponent = (largest >> 23).to(tl.int32)
    return tl.maximum(exponent - HEADROOM, LEAST_SCALE)[:, None]


@triton.jit
def _power_of_two(exponent):
    """2**exponent for -126 <= exponent <= 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def encode_blocks(x, field, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """Codes [ROWS, 32] and E8M0 bytes [ROWS, 1]: the scale of a row is that of its largest finite
    magnitude, one binade below overflow; Inf and NaN store NaN.

    Scaled by 2^(bias - byte) fp32 has the code's exponents.  Where that power of two is no normal
    fp32 number, where codes above the largest would overflow, and for Inf and NaN, a second branch
    takes over, with the scale in two factors.
    """
    UNSIGNED: tl.constexpr = FORMAT != E4M3
    BIAS: tl.constexpr = 15 if FORMAT == E5M3 else (124 if FORMAT == E6M2 else 7)
    # Bits that round to the code of NaN whatever the field; of E6M2 in that sum
    NAN: tl.constexpr = (0xFF if FORMAT == E5M3 else (0x3FE if FORMAT == E6M2 else 0x7F)) << 20
    # From here the scale is below 2^-126, or the code above LARGEST would be read as 2^128
    LIMIT: tl.constexpr = (156 if FORMAT == E5M3 else (252 if FORMAT == E6M2 else 141)) << 23
    LARGEST: tl.constexpr = 2.9774707105582116e38 if FORMAT == E6M2 else 3.190147189883798e38
    # Bits that are never negative are their magnitude, and unsigned a NaN with a sign is still the
    # largest
    if UNSIGNED:
        largest = tl.max(x.to(tl.uint32, bitcast=True), axis=1)
    elif CODEC == ARITHMETIC:
        largest = tl.max(_magnitude(x), axis=1)
    else:
        largest = tl.reduce(tl.abs(x), 1, _nan_maximum).to(tl.uint32, bitcast=True)
    if _highest(largest, x) < LIMIT:
        byte = _byte(largest, FORMAT)
        scale = _power_of_two(BIAS - byte)
        rest = x
    else:
        finite = _magnitude(x) < 0x7F800000
        byte = _byte(tl.max(tl.where(finite, _magnitude(x), 0), axis=1), FORMAT)
        first = tl.maximum(BIAS - byte, -126)
        scale = _power_of_two(byte * 0)
        rest = tl.minimum(x, LARGEST) if UNSIGNED else tl.maximum(tl.minimum(x, LARGEST), -LARGEST)
        rest = (rest * _power_of_two(first)) * _power_of_two(BIAS - byte - first)
        rest = tl.where(finite, rest, tl.full((), NAN, tl.uint32).to(tl.float32, bitcast=True))
    # One encoder behind both branches: bytes that leave a branch come unpacked
    code = encode_fp8(rest, scale, field, FORMAT, CODEC)
    return code, byte


@triton.jit
def encode_halves(x, field, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """Bytes [ROWS, 16] of two codes and E8M0 bytes [ROWS, 1]: the scale of a row is the least in
    which its largest finite magnitude is no larger than the largest code; Inf and NaN store NaN.

    Scaled by 2^(15 - byte) fp32 has the code's exponents; where that is no normal number, and for
    Inf and NaN, a second branch takes over.
    """
    OVER: tl.constexpr = 0x3FFFFF if FORMAT == E2M1 else 0x7FFFFF
    HEADROOM: tl.constexpr = 12 if FORMAT == E2M1 else 1
    LEAST: tl.constexpr = 16 if FORMAT == E2M1 else 15
    # The largest number with a scale, and the largest whose scale needs one factor
    LIMIT: tl.constexpr = 0x79400000 if FORMAT == E2M1 else 0x7E800000
    ONE: tl.constexpr = 0x40C00000 if FORMAT == E2M1 else 0x46000000
    # Bits that round to the code of NaN whatever the field
    NAN: tl.constexpr = 8 << 22 if FORMAT == E2M1 else 15 << 23
    largest = tl.max(_magnitude(x), axis=1)
    if _highest(largest, x) <= ONE:
        byte = _half_byte(largest, OVER, HEADROOM, LEAST)
        scale = _power_of_two(15 - byte)
        rest = x
    else:
        finite = _magnitude(x) < 0x7F800000
        size = tl.minimum(tl.where(finite, _magnitude(x), 0), LIMIT)
        byte = _half_byte(tl.max(size, axis=1), OVER, HEADROOM, LEAST)
        first = tl.maximum(15 - byte, -126)
        scale = _power_of_two(byte * 0)
        rest = (size | (x.to(tl.uint32, bitcast=True) & 0x80000000)).to(tl.float32, bitcast=True)
        rest = (rest * _power_of_two(first)) * _power_of_two(15 - byte - first)
        rest = tl.where(finite, rest, tl.full((), NAN, tl.uint32).to(tl.float32, bitcast=True))
    # One encoder behind both branches: bytes that leave a branch come unpacked
    if CODEC == ARITHMETIC:
        stored = pack(encode_fp4(rest, scale, field, FORMAT))
    else:
        x0, x1 = _halves(rest)
        f0, f1 = _halves(field)
        scale = tl.broadcast_to(scale, x0.shape)
        if FORMAT == E2M1:
            stored = ptx4.encode_e2m1(x0, x1, scale, f0, f1)
        else:
            stored = ptx4.encode_e4m0(x0, x1, scale, f0, f1)
    return stored, byte


@triton.jit
def encode_int8_blocks(x, field):
    """Codes [ROWS, 32] and E8M0 bytes [ROWS, 1]: the scale of a row is the least in which its
    largest finite magnitude is no larger than 127; Inf and NaN store NaN, and what has no scale
    saturates, in a second branch."""
    LIMIT: tl.constexpr = 0x7F7E0000  # 127 * 2^121
    largest = tl.max(_magnitude(x), axis=1)
    if _highest(largest, x) <= LIMIT:
        byte = _half_byte(largest, 0x1FFFF, -6, LEAST_SCALE)
        scale = _power_of_two(127 - byte)
        rest = x
    else:
        finite = _magnitude(x) < 0x7F800000
        size = tl.minimum(tl.where(finite, _magnitude(x), 0), LIMIT)
        byte = _half_byte(tl.max(size, axis=1), 0x1FFFF, -6, LEAST_SCALE)
        scale = _power_of_two(byte * 0)
        rest = (size | (x.to(tl.uint32, bitcast=True) & 0x80000000)).to(tl.float32, bitcast=True)
        rest = tl.where(finite, rest * _power_of_two(127 - byte), -128.0)
    # One encoder behind both branches: bytes that leave a branch come unpacked
    return encode_int8(rest, scale, field), byte


@triton.jit
def _half_byte(largest, OVER: tl.constexpr, HEADROOM: tl.constexpr, LEAST: tl.constexpr):
    exponent = ((largest + OVER) >> 23).to(tl.int32)
    return tl.maximum(exponent + HEADROOM, LEAST)[:, None]


@triton.jit
def encode_root_blocks(v, field, N: tl.constexpr):
    """As ``encode_blocks``, of N-th roots; moments above 2^124 saturate."""
    largest = tl.max(_magnitude(v), axis=1)
    if _highest(largest, v) < roots.LARGEST_ROOT_BITS:
        byte = roots.root_scale(largest, N)
        code = roots.encode_roots(v, field, byte, N)
    else:
        finite = _magnitude(v) < 0x7F800000
        v = tl.minimum(tl.where(finite, v, 0.0), 2.1267647932558654e37)  # 2^124
        byte = roots.root_scale(tl.max(_magnitude(v), axis=1), N)
        code = roots.encode_roots(v, field, byte, N)
        code = tl.where(finite, code, 0x7F).to(tl.uint8)
    return code, byte


# ---------------------------------------------------------------- by format


@triton.jit
def decode(code, byte, FORMAT: tl.constexpr, CODEC: tl.constexpr, APART: tl.constexpr = False):
    """Stored codes [ROWS, 32], packed ones [ROWS, 16], and, of scaled formats, E8M0 bytes [ROWS, 1]
    as fp32: their product or, APART, codes [ROWS, 32] and scales [ROWS, 1]."""
    if FORMAT == FP32:
        x = code
    elif FORMAT == BF16:
        x = widen(code, CODEC)
    elif FORMAT == E4M3_RAW:
        x = decode_fp8(code, FORMAT, CODEC)
    else:
        scale = (byte.to(tl.uint32) << 23).to(tl.float32, bitcast=True)
        if FORMAT >= HALVES and FORMAT < ROOT:
            x = decode_halves(code, FORMAT, CODEC)
        elif FORMAT == INT8:
            x = decode_int8(code)
        else:
            x = decode_fp8(code, E4M3 if FORMAT > ROOT else FORMAT, CODEC)
        if APART:
            x = (x, scale)
        else:
            x = x * scale
        if FORMAT > ROOT:
            x = roots.power(x, FORMAT - ROOT)
    return x


@triton.jit
def encode(x, field, FORMAT: tl.constexpr, CODEC: tl.constexpr):
    """What is stored of fp32 [ROWS, 32], and E8M0 bytes [ROWS, 1] (of other formats a number)."""
    byte = tl.full((), 0, tl.uint8)
    if FORMAT == FP32:
        code = x
    elif FORMAT == BF16:
        code = encode_bf16(x, field, CODEC)
    elif FORMAT == E4M3_RAW:
        if CODEC == PTX_FP8:
            code = ptx.encode_e4m3_nearest(x)
        else:
            code = encode_fp8_nearest(x)
    elif FORMAT > ROOT:
        code, byte = encode_root_blocks(x, field, FORMAT - ROOT)
    elif FORMAT >= HALVES and FORMAT < ROOT:
        code, byte = encode_halves(x, field, FORMAT, CODEC)
    elif FORMAT == INT8:
        code, byte = encode_int8_blocks(x, field)
    else:
        code, byte = encode_blocks(x, field, FORMAT, CODEC)
    return code, byte
