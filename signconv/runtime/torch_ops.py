"""The PyTorch half of the runtime: the same functions as ``device_ops``, on whole tensors.

Written for truth, not for speed: every operation is one IEEE binary32 or integer operation, so
that the results equal the kernel's bit for bit.  Tensors are flat; ``numel`` is a multiple of 32
wherever a block scale is involved.

The CPU backend compiles these functions by calling them on ``cpu_lanes.Lanes``, which answers
torch's functions; those few that cannot be read off row by row ask it first, by torch's own
protocol (``torch.overrides``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from signconv.runtime import torch_roots
from signconv.runtime.formats import BLOCK, CHECK, MASTER, Format
from signconv.runtime.torch_roots import power, real_power, root  # noqa: F401 - modules' ref.root

_MASK = 0xFFFFFFFF


# ---------------------------------------------------------------- random numbers (design.md 5)


def mix32(x: int) -> int:
    """A bijection of 32-bit integers with full avalanche (two multiplies, lowbias32)."""
    x ^= x >> 16
    x = x * 0x7FEB352D & _MASK
    x ^= x >> 15
    x = x * 0x846CA68B & _MASK
    return x ^ x >> 16


def draw_keys(seed: int, t: int, stream: int) -> tuple[int, int]:
    """Two 32-bit keys from (seed, t, stream)."""
    word = stream * 0x9E3779B9
    keys = []
    for start in (0x243F6A88, 0x85A308D3):
        x = mix32((seed + start) & _MASK)
        x = mix32(mix32(x ^ (seed >> 32 & _MASK)) ^ (t & _MASK))
        keys.append(mix32((x + word) & _MASK))
    return keys[0], keys[1]


def _signed32(x: int) -> int:
    x &= _MASK
    return x - (x >> 31 << 32)


def _shift_right(x: Tensor, n: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (x >> n) & (_MASK >> n)


def random_bits(base: int, numel: int, key0: int, key1: int, device: torch.device) -> Tensor:
    """32 random bits per element as int32 [numel], for global element indices base, base+1, …"""
    i = torch.arange(numel, device=device, dtype=torch.int64)
    high = (base + (i & -BLOCK)) >> 32
    low = (base + i) & _MASK
    low = torch.where(low > 0x7FFFFFFF, low - (1 << 32), low)
    high = high.to(torch.int32)
    x = low.to(torch.int32) ^ (high * _signed32(0x9E3779B9) ^ _signed32(key0))
    x = x ^ _shift_right(x, 16)
    x = x * 0x7FEB352D
    x = x ^ _shift_right(x, 15)
    return x * _signed32(0x846CA68B) + (high * _signed32(0x85EBCA6B) + _signed32(key1))


def high_field(bits: Tensor) -> Tensor:
    """A 32-bit field for one use of ``bits``; its upper 16 bits are those of ``bits``."""
    return bits


def low_field(bits: Tensor) -> Tensor:
    """A 32-bit field whose upper 16 bits are independent of those of ``high_field``."""
    return (bits << 16) ^ bits


def sign_noise(field: Tensor) -> Tensor:
    """Midpoints (2u + 1 - N) / N with N = 2^22: symmetric in (-1, 1), never 0, exact in fp32."""
    return (_shift_right(field, 9) | 0x40000001).view(torch.float32) - 3.0


# ---------------------------------------------------------------- arithmetic (design.md 4)


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; a zero keeps its sign and NaN stays NaN."""
    one = torch.ones_like(x)
    return torch.where(x > 0, one, torch.where(x < 0, -one, x))


def signed(step: Tensor, x: Tensor) -> Tensor:
    """step * sign(x); a zero stays a zero of x's sign, NaN stays NaN."""
    return torch.where(x.abs() > 0, torch.where(x < 0, -step, step), x)


def _pair(a: Tensor, b: Tensor | float) -> tuple[Tensor, Tensor]:
    b = torch.tensor(b, dtype=a.dtype, device=a.device) if isinstance(b, float) else b
    wide, other = torch.broadcast_tensors(a, b)
    return wide, other


def maximum(a: Tensor, b: Tensor | float) -> Tensor:
    """NaN if either is NaN; -0 < +0."""
    a, b = _pair(a, b)
    same = (a.contiguous().view(torch.int32) & b.contiguous().view(torch.int32)).view(torch.float32)
    larger = torch.where(a > b, a, torch.where(b > a, b, same))
    return torch.where(a.isnan(), a, torch.where(b.isnan(), b, larger))


def minimum(a: Tensor, b: Tensor | float) -> Tensor:
    """NaN if either is NaN; -0 < +0."""
    a, b = _pair(a, b)
    same = (a.contiguous().view(torch.int32) | b.contiguous().view(torch.int32)).view(torch.float32)
    smaller = torch.where(a < b, a, torch.where(b < a, b, same))
    return torch.where(a.isnan(), a, torch.where(b.isnan(), b, smaller))


def nonneg_maximum(a: Tensor, b: Tensor | float) -> Tensor:
    """Maximum of values that are never negative nor -0; NaN propagates."""
    return torch.maximum(*_pair(a, b))


def sqrt(x: Tensor) -> Tensor:
    """Square root, correctly rounded.

    torch.sqrt is not, on the CPU: 17 % of random fp32 inputs come out one ULP off (torch 2.13,
    AMD EPYC, measured).  The detour over float64 is: its 53 bits are more than 2*24 + 2.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(sqrt, (x,), x)
    return x.to(torch.float64).sqrt().to(torch.float32)


def cbrt(x: Tensor) -> Tensor:
    """Cube root of x >= 0 within 1 ULP, without a division, by the kernel's operations."""
    tiny = x < 5.421010862427522e-20  # 2^-64
    z = x * torch.where(tiny, 4.722366482869645e21, 0.125)  # 2^72, 2^-3
    thirds = torch.div(z.contiguous().view(torch.int32), 3, rounding_mode="floor")
    y = (0x54A20000 - thirds).view(torch.float32)
    e = 1.0 - z * y * y * y
    y = y * (1.000000834465027 + e * (0.33469223976135254 + e * 0.2230465412139892))
    square = y * y
    bits = (z * square).view(torch.int32) + 0x800
    guess = (bits & -0x1000).view(torch.float32)
    change = (z - guess * guess * guess) * (square * 0.3333333432674408)
    guess = guess + (change + change * change * y)
    guess = guess * torch.where(tiny, 5.960464477539063e-08, 2.0)  # 2^-24
    return torch.where((x > 0) & (x < torch.inf), guess, x)


def mean_ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b with 0/0 = 0: clipped afterwards, so it may be infinite."""
    return torch.where((a == 0) & (b == 0), 0.0, torch.div(a, b))


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b with a/0 = 0 for finite a: what underflowed moves nothing."""
    return torch.where((b == 0) & (a.abs() < torch.inf), 0.0, torch.div(a, b))


def divide64(a: float, b: float) -> float:
    """a / b in float64 as IEEE has it: no exception at zero."""
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def power64(base: float, t: int) -> float:
    """base**t in float64 by binary powering, always the same products in the same order."""
    result, factor = 1.0, base
    while t > 0:
        if t & 1:
            result = result * factor
        factor = factor * factor
        t >>= 1
    return result


def exp(x: Tensor) -> Tensor:
    """e**x within 2 ULP, by the same exact operations as the kernel's."""
    y = torch.where(x > -104.0, torch.where(x < 89.0, x, 89.0), -104.0)
    k = torch.floor(y * 1.4426950216293335 + 0.5)
    r = (y - k * 0.693145751953125) - k * 1.428606765330187e-06
    total = 1.0 + r * 0.1428571492433548
    for n in (6.0, 5.0, 4.0, 3.0, 2.0, 1.0):
        total = 1.0 + torch.div(total * r, torch.full_like(r, n))
    whole = k.to(torch.int32)
    half = whole >> 1
    first = ((half + 127) << 23).view(torch.float32)
    second = ((whole - half + 127) << 23).view(torch.float32)
    return torch.where(x.isnan(), x, total * first * second)


def log(x: Tensor) -> Tensor:
    """The natural logarithm within 2 ULP, by the same exact operations as the kernel's."""
    tiny = x < 1.1754943508222875e-38
    y = torch.where(tiny, x * 8388608.0, x)
    bits = y.contiguous().view(torch.int32)
    m = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    large = m > 1.4142135381698608
    m = torch.where(large, m * 0.5, m)
    k = (bits >> 23) - torch.where(tiny, 150, 127) + large.to(torch.int32)
    k = k.to(torch.float32)
    s = torch.div(m - 1.0, m + 1.0)
    square = s * s
    total = 0.1111111119389534 * square + 0.1428571492433548
    total = total * square + 0.20000000298023224
    total = total * square + 0.3333333432674408
    y = (2.0 * s * (total * square) + k * 1.428606765330187e-06) + 2.0 * s + k * 0.693145751953125
    y = torch.where(x == 0, -torch.inf, torch.where(x < 0, torch.nan, y))
    return torch.where((x < torch.inf) | x.isnan(), torch.where(x.isnan(), x, y), x)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent within 4 ULP, by the same exact operations as the kernel's."""
    size = x.abs()
    square = x * x
    near = square * 0.02186948940157890 - 0.053968254476785660
    near = near * square + 0.13333334028720856
    near = x + x * ((near * square - 0.3333333432674408) * square)
    e = exp(-2.0 * size)
    far = torch.div(1.0 - e, 1.0 + e)
    far = torch.where(x < 0, far * -1.0, far)
    return torch.where(size < 0.25, near, far)


def tree_sum(x: Tensor) -> Tensor:
    """Sum of a flat tensor, neighbours first, as a tree that depends on nothing but the length."""
    if has_torch_function_unary(x):
        return handle_torch_function(tree_sum, (x,), x)
    while x.numel() > 1:
        if x.numel() % 2:
            x = torch.cat((x, x.new_zeros(1)))
        x = x[0::2] + x[1::2]
    return x.reshape(())


def norm_of_sum(total: Tensor, numel: int) -> Tensor:
    """The Euclidean norm from the sum of squares."""
    if has_torch_function_unary(total):
        return handle_torch_function(norm_of_sum, (total,), total, numel)
    return sqrt(total)


def mean_of_sum(total: Tensor, numel: int) -> Tensor:
    """The mean from the sum."""
    if has_torch_function_unary(total):
        return handle_torch_function(mean_of_sum, (total,), total, numel)
    return torch.div(total, torch.tensor(numel, dtype=torch.float32, device=total.device))


_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10


def exp64(x: float) -> float:
    """e**x in float64 within 2 ULP, by the same exact operations as the kernel's."""
    x = min(max(x, -745.0), 709.0)
    k = math.floor(x * 1.4426950408889634 + 0.5)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = 1.0
    for n in range(14, 0, -1):
        total = 1.0 + total * r / n
    return total * (power64(2.0, k) if k >= 0 else power64(0.5, -k))


def log64(x: float) -> float:
    """The natural logarithm of x > 0 in float64 within 2 ULP, by the kernel's operations."""
    if not x > 0:
        return -math.inf if x == 0 else math.nan
    bits = struct.unpack("<q", struct.pack("<d", x))[0]
    k = (bits >> 52) - 1023
    m = struct.unpack("<d", struct.pack("<q", bits & 0xFFFFFFFFFFFFF | 0x3FF0000000000000))[0]
    if m > 1.4142135623730951:
        m, k = m * 0.5, k + 1
    s = (m - 1.0) / (m + 1.0)
    square, total = s * s, 0.0
    for n in range(25, 0, -2):
        total = total * square + 1.0 / n
    return 2.0 * s * total + k * _LN2_LOW + k * _LN2_HIGH


def real_power64(base: float, exponent: float) -> float:
    """base**exponent in float64 for base > 0 and any exponent."""
    return exp64(exponent * log64(base))


# ---------------------------------------------------------------- codes (algorithms.md D)


def decode_bf16(x: Tensor) -> Tensor:
    return (x.view(torch.int16).to(torch.int32) << 16).view(torch.float32)


def encode_bf16(x: Tensor, field: Tensor) -> Tensor:
    """Stochastic rounding to bf16 on the bits; past the largest bf16, and for Inf and NaN, the
    low bits are cut off instead, so that finite values never become Inf."""
    bits = x.view(torch.int32)
    rounded = bits + _shift_right(field, 16)
    bits = torch.where(x.abs() <= 3.3895313892515355e38, rounded, bits)
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


@dataclass(frozen=True)
class _Layout:
    """An FP8 format: mantissa bits, fp32 exponent field of its smallest normal number, largest
    finite code, the power of two above it, and by how much the exponent of a block's scale lies
    below that of its maximum."""

    mantissa: int
    smallest: int
    largest: int
    overflow: float
    headroom: int


_FP8 = {"e4m3": _Layout(3, 121, 0x7E, 512.0, 7), "e5m2": _Layout(2, 113, 0x7B, 65536.0, 14)}
_FP8["e4m3-raw"] = _FP8["e4m3"]


def decode_fp8(code: Tensor, fmt: str) -> Tensor:
    """uint8 codes to fp32, exactly, before the block scale."""
    layout = _FP8[fmt]
    wide = code.to(torch.int32)
    magnitude = wide & 0x7F
    field = (magnitude << (23 - layout.mantissa)).view(torch.float32)
    x = field * 2.0 ** (layout.smallest - 1)
    x = torch.where(magnitude > layout.largest, torch.nan, x)
    if fmt == "e5m2":
        x = torch.where(magnitude == 0x7C, torch.inf, x)
    return torch.where(wide >= 0x80, -x, x)


def encode_fp8(x: Tensor, byte: Tensor, field: Tensor, fmt: str) -> Tensor:
    """fp32 to uint8 codes of x * 2^(127 - byte) by unbiased stochastic rounding on the bits.

    Scaled by 2^-120 (E5M2: 2^-112) besides, fp32 has the code's exponents, subnormals included;
    both factors are one, or two where their product is no normal fp32 number.  The upper 20
    (E5M2: 21) bits of ``field`` (int32) are added below the kept mantissa.  Inf and NaN store NaN;
    what is too large saturates.
    """
    layout = _FP8[fmt]
    drop = 23 - layout.mantissa
    exponent = (128 - layout.smallest) - byte
    first = exponent.clamp(min=-126)
    size = x.abs() * _power_of_two(first) * _power_of_two(exponent - first)
    limit = layout.overflow * 2.0 ** (1 - layout.smallest)
    bits = torch.where(size < limit, size, limit).view(torch.int32)
    return _finish(x, (bits + _shift_right(field, 32 - drop)) >> drop, layout)


def encode_fp8_nearest(x: Tensor, fmt: str) -> Tensor:
    """fp32 to uint8 codes, ties to even, by integers; Inf and NaN store NaN, the rest saturates.

    For raw FP8 state, as S3GD ships it (nearest rounding stalls a slow EMA).  Below the smallest
    normal number one fp32 addition rounds to the code's spacing: scaling would round twice.
    """
    layout = _FP8[fmt]
    drop = 23 - layout.mantissa
    field = _field(x, layout)
    normal = (field + (1 << (drop - 1)) - 1 + ((field >> drop) & 1)) >> drop
    magic = torch.tensor((layout.smallest + drop) << 23, dtype=torch.int32).view(torch.float32)
    tiny = x.abs().clamp(max=1.0) + magic.to(x.device)
    subnormal = tiny.view(torch.int32) - int(magic.view(torch.int32))
    code = torch.where(x.abs() < 2.0 ** (layout.smallest - 127), subnormal, normal)
    return _finish(x, code, layout)


def _field(x: Tensor, layout: _Layout) -> Tensor:
    """Bits of abs(x) with the code's exponent bias; what is too large is one binade above."""
    clamped = torch.where(x.abs() < layout.overflow, x.abs(), layout.overflow)
    return (clamped * 2.0 ** (1 - layout.smallest)).view(torch.int32)


def _finish(x: Tensor, code: Tensor, layout: _Layout) -> Tensor:
    code = code.clamp(max=layout.largest)
    code = torch.where(x.isfinite(), code, 0x7F)
    negative = (x.view(torch.int32) < 0) & x.isfinite()
    return torch.where(negative, code + 0x80, code).to(torch.uint8)


def bf16_nearest(x: Tensor) -> Tensor:
    """The nearest bf16 as fp32, ties to even; Inf and NaN stay."""
    bits = x.contiguous().view(torch.int32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return torch.where(x.isfinite(), rounded.view(torch.float32), x)


def block_scale(x: Tensor, fmt: str) -> Tensor:
    """E8M0 byte per row of 32 (int32 [numel/32]), from the largest finite magnitude."""
    magnitude = x.view(torch.int32).view(-1, BLOCK) & 0x7FFFFFFF
    finite = torch.where(magnitude < 0x7F800000, magnitude, 0)
    return ((finite.amax(dim=1) >> 23) - _FP8[fmt].headroom).clamp(min=1)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent for -126 <= exponent <= 127."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def split_master(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bf16 (as fp32), ties away from zero, and the signed 16-bit rest of the bits.

    Ties to even would leave 65,537 fp32 numbers to every even bf16, one too many.  NaN becomes
    the one NaN 0x7FC00000, whose rest is 0.
    """
    bits = torch.where(x.isnan(), 0x7FC00000, x.view(torch.int32))
    return ((bits + 0x8000) & -0x10000).view(torch.float32), bits.to(torch.int16)


def join_master(high: Tensor, low: Tensor) -> Tensor:
    """The fp32 number split_master took apart; a pair it never makes that spells NaN is ``high``.

    Such a pair is a weight set to 0 from outside beside a negative rest.
    """
    x = (high.view(torch.int32) + low.to(torch.int32)).view(torch.float32)
    return torch.where(x.isnan(), high, x)


def row_check(x: Tensor) -> Tensor:
    """int32 [numel/32]: a checksum of each row of 32 bf16 numbers (as fp32).

    Any one changed element changes it for certain (every operation is a bijection of its bits).
    """
    lane = torch.arange(BLOCK, dtype=torch.int32, device=x.device) << 16
    mixed = (_shift_right(x.view(torch.int32), 16).view(-1, BLOCK) | lane) * 0x7FEB352D
    mixed = mixed ^ _shift_right(mixed, 15)
    return mixed.sum(dim=1, dtype=torch.int64).to(torch.int32)


def load_float(x: Tensor) -> Tensor:
    """A parameter or a gradient as flat fp32, never a view: the step writes in place."""
    return decode_bf16(x.view(-1)) if x.dtype == torch.bfloat16 else x.view(-1).clone()


def store_float(target: Tensor, x: Tensor, field: Tensor) -> None:
    """From fp32: as it is, or rounded stochastically to bf16."""
    target.view(-1).copy_(encode_bf16(x, field) if target.dtype == torch.bfloat16 else x)


def load_param(param: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """A parameter as flat fp32, with a master weight that one.

    The master weight in ``state`` is the rests of the bits, two bytes each, beside checksums, or
    whole fp32 weights without.  Where a bf16 weight is not the one that was stored, it was changed
    from outside and counts as it is: each element for itself, or its row of 32 where there are
    checks.
    """
    p = load_float(param)
    master, check = state.get(MASTER), state.get(CHECK)
    if master is None:
        return p
    if check is None:
        whole = master.view(-1)
        high, _ = split_master(whole)
        return torch.where(high.view(torch.int32) == p.view(torch.int32), whole, p)
    same = (row_check(p) == check.view(-1)).repeat_interleave(BLOCK)
    return torch.where(same, join_master(p, master.view(torch.int16).view(-1)), p)


def store_param(param: Tensor, x: Tensor, field: Tensor, state: Mapping[str, Tensor]) -> None:
    """A parameter from flat fp32, with a master weight that one too."""
    master, check = state.get(MASTER), state.get(CHECK)
    if master is None:
        store_float(param, x, field)
        return
    high, low = split_master(x)
    param.view(-1).copy_((high.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16))
    if check is None:
        master.view(-1).copy_(x)
    else:
        master.view(torch.int16).view(-1).copy_(low)
        check.view(-1).copy_(row_check(high))


def load_moment(stored: Tensor, scale: Tensor | None, fmt: Format) -> Tensor:
    """A stored moment as flat fp32, never a view: the step writes in place."""
    if fmt.name == "fp32":
        return stored.view(-1).clone()
    if fmt.name == "bf16":
        return decode_bf16(stored.view(-1))
    x = decode_fp8(stored.view(-1), fmt.codes)
    if scale is not None:
        bits = scale.view(-1).to(torch.int32) << 23
        x = x * bits.view(torch.float32).repeat_interleave(BLOCK)
    return power(x, fmt.order)


def store_moment(
    stored: Tensor, scale: Tensor | None, x: Tensor, field: Tensor, fmt: Format
) -> None:
    """Encode flat fp32 and store; the scale used to encode is the one that is stored."""
    if fmt.name == "fp32":
        stored.view(-1).copy_(x)
    elif fmt.name == "bf16":
        stored.view(-1).copy_(encode_bf16(x, field))
    elif scale is None:
        stored.view(-1).copy_(encode_fp8_nearest(x, fmt.name))
    elif fmt.order > 1:
        byte = torch_roots.root_scale(x, fmt.order)
        each = byte.repeat_interleave(BLOCK)
        stored.view(-1).copy_(torch_roots.encode_roots(x, field, each, fmt.order))
        scale.view(-1).copy_(byte.to(torch.uint8))
    else:
        byte = block_scale(x, fmt.name)
        stored.view(-1).copy_(encode_fp8(x, byte.repeat_interleave(BLOCK), field, fmt.name))
        scale.view(-1).copy_(byte.to(torch.uint8))
