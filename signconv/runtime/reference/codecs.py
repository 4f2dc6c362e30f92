"""fp32 to bf16 and FP8 codes and back, in PyTorch (docs/design.md#codecs)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from signconv.runtime.formats import (
    BLOCK,
    E6M2,
    LEAST_SCALE,
    Fitted,
    Float4,
    Float8,
    Format,
    Int8,
    named,
)
from signconv.runtime.reference import roots
from signconv.runtime.reference.bits import shift_right


class Codec(ABC):
    """Encoder and decoder of one format: flat tensors, blocks of 32 where there are scales."""

    def __init__(self, fmt: Format) -> None:
        self.fmt = fmt

    @abstractmethod
    def codes(self, stored: Tensor) -> Tensor:
        """fp32 [numel] from what is stored [numel], exactly, before the block scale."""

    def decode(self, stored: Tensor, scale: Tensor | None) -> Tensor:
        """fp32 [numel] from what is stored [numel] and block scales (uint8 [numel/32]), exactly."""
        return self.codes(stored) if scale is None else self.codes(stored) * scales_of(scale)

    @abstractmethod
    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is stored, and block scales or None, from fp32 and random bits (int32 [numel])."""


class Float(Codec):
    """fp32 as it is."""

    def codes(self, stored: Tensor) -> Tensor:
        return stored.clone()

    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        return x, None


class Bf16(Codec):
    def codes(self, stored: Tensor) -> Tensor:
        return decode_bf16(stored)

    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        return encode_bf16(x, field), None


class Raw(Codec):
    """FP8 without scales, rounded to nearest."""

    def codes(self, stored: Tensor) -> Tensor:
        return decode_fp8(stored, self.fmt.name)

    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        return encode_fp8_nearest(x, self.fmt.name), None


class Blocks(Codec):
    """FP8 with a scale per block."""

    def codes(self, stored: Tensor) -> Tensor:
        return decode_fp8(stored, self.fmt.name)

    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        byte = block_scale(x, self.fmt.name)
        code = encode_fp8(x, byte.repeat_interleave(BLOCK), field, self.fmt.name)
        return code, byte.to(torch.uint8)


class Roots(Blocks):
    """FP8 with a scale per block, of the moment's root."""

    def decode(self, stored: Tensor, scale: Tensor | None) -> Tensor:
        return roots.power(super().decode(stored, scale), self.fmt.order)

    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        byte = roots.root_scale(x, self.fmt.order)
        code = roots.encode_roots(x, field, byte.repeat_interleave(BLOCK), self.fmt.order)
        return code, byte.to(torch.uint8)


class Halves(Codec):
    """Half a byte each, with a scale per block."""

    def codes(self, stored: Tensor) -> Tensor:
        assert self.fmt.float4 is not None
        return decode_fp4(unpack(stored), self.fmt.float4)

    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.fmt.float4 is not None
        byte = least_scale(x, self.fmt.float4)
        code = encode_fp4(x, byte.repeat_interleave(BLOCK), field, self.fmt.float4)
        return pack(code), byte.to(torch.uint8)


class Integers(Codec):
    """A byte each, equally far apart, with a scale per block."""

    def codes(self, stored: Tensor) -> Tensor:
        assert self.fmt.int8 is not None
        return decode_int8(stored, self.fmt.int8)

    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.fmt.int8 is not None
        byte = least_scale(x, self.fmt.int8)
        code = encode_int8(x, byte.repeat_interleave(BLOCK), field, self.fmt.int8)
        return code, byte.to(torch.uint8)


@cache
def codec_of(fmt: Format) -> Codec:
    """The encoder and decoder of a format."""
    if fmt.packed:
        return Halves(fmt)
    if fmt.int8 is not None:
        return Integers(fmt)
    if fmt.float8 is None:
        return {torch.float32: Float, torch.bfloat16: Bf16}[fmt.dtype](fmt)
    if not fmt.scaled:
        return Raw(fmt)
    return Roots(fmt) if fmt.order > 1 else Blocks(fmt)


def scales_of(scale: Tensor) -> Tensor:
    """E8M0 bytes (uint8 [numel/32]) as fp32 powers of two, one for each element."""
    return (scale.to(torch.int32) << 23).view(torch.float32).repeat_interleave(BLOCK)


def _float8(name: str) -> Float8:
    layout = named(name).float8
    assert layout is not None
    return layout


def decode_bf16(x: Tensor) -> Tensor:
    return (x.view(torch.int16).to(torch.int32) << 16).view(torch.float32)


def encode_bf16(x: Tensor, field: Tensor) -> Tensor:
    """Stochastic rounding to bf16 on the bits; past the largest bf16, and for Inf and NaN, the
    low bits are cut off instead, so that finite values never become Inf."""
    bits = x.view(torch.int32)
    rounded = bits + shift_right(field, 16)
    bits = torch.where(x.abs() <= 3.3895313892515355e38, rounded, bits)
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


def decode_fp8(code: Tensor, fmt: str) -> Tensor:
    """uint8 codes to fp32, exactly, before the block scale."""
    layout = _float8(fmt)
    drop = 23 - layout.mantissa
    wide = code.to(torch.int32)
    magnitude = wide & layout.magnitude
    bits = magnitude << drop
    if layout is E6M2:
        x = (bits + (64 << 23)).view(torch.float32) * 8.0 - 2.0**-60
    elif layout.signed:  # the sign goes to its place with the magnitude
        bits = ((wide << 24) >> (24 - drop)) & ((0x7F << drop) - (1 << 31))
        x = bits.view(torch.float32) * 2.0 ** (layout.smallest - 1)
    else:  # no number on the way is subnormal
        unit = 2.0 ** (layout.smallest - 127 - layout.mantissa)
        normal = (bits + ((layout.smallest - 1) << 23)).view(torch.float32)
        x = torch.where(
            magnitude < 1 << layout.mantissa, magnitude.to(torch.float32) * unit, normal
        )
    if fmt == "e5m2":
        x = torch.where(magnitude == 0x7C, x * torch.inf, x)
        return torch.where(magnitude > 0x7C, torch.nan, x)
    return torch.where(magnitude > layout.largest, torch.nan, x)


def encode_fp8(x: Tensor, byte: Tensor, field: Tensor, fmt: str) -> Tensor:
    """fp32 to uint8 codes of x * 2^(127 - byte) by unbiased stochastic rounding on the bits.

    Scaled by 2^-120 (E5M3: 2^-112) besides, fp32 has the code's exponents, subnormals included;
    both factors are one, or two where their product is no normal fp32 number.  E6M2: scaled by
    2^-3, in a sum with 2^-63, x has the code's exponents.  The upper 20 (E6M2: 21) bits of
    ``field`` (int32) are added below the kept mantissa.  Inf and NaN store NaN; what is too large
    saturates.  Unsigned formats take x >= 0.
    """
    layout = _float8(fmt)
    drop = 23 - layout.mantissa
    exponent = (124 if layout is E6M2 else 128 - layout.smallest) - byte
    first = exponent.clamp(min=-126)
    size = x.abs() * _power_of_two(first) * _power_of_two(exponent - first)
    if layout is E6M2:
        size = size + 2.0**-63
    code = (size.view(torch.int32) + shift_right(field, 32 - drop)) >> drop
    if layout is E6M2:
        code = code - (64 << layout.mantissa)
    largest = torch.where(byte < 254 - layout.headroom, layout.largest, layout.top)
    return _finish(x, torch.minimum(code, largest.to(torch.int32)), layout)


def encode_fp8_nearest(x: Tensor, fmt: str) -> Tensor:
    """fp32 to uint8 codes, ties to even, by integers; Inf and NaN store NaN, the rest saturates.

    For raw FP8 state, as S3GD ships it (nearest rounding stalls a slow EMA).  Below the smallest
    normal number one fp32 addition rounds to the code's spacing: scaling would round twice.
    """
    layout = _float8(fmt)
    drop = 23 - layout.mantissa
    field = _field(x, layout)
    normal = (field + (1 << (drop - 1)) - 1 + ((field >> drop) & 1)) >> drop
    magic = torch.tensor((layout.smallest + drop) << 23, dtype=torch.int32, device="cpu")
    magic = magic.view(torch.float32)
    tiny = x.abs().clamp(max=1.0) + magic.to(x.device)
    subnormal = tiny.view(torch.int32) - int(magic.view(torch.int32))
    code = torch.where(x.abs() < 2.0 ** (layout.smallest - 127), subnormal, normal)
    return _finish(x, code.clamp(max=layout.largest), layout)


def _field(x: Tensor, layout: Float8) -> Tensor:
    """Bits of abs(x) with the code's exponent bias; what is too large is one binade above."""
    clamped = torch.where(x.abs() < layout.overflow, x.abs(), layout.overflow)
    return (clamped * 2.0 ** (1 - layout.smallest)).view(torch.int32)


def _finish(x: Tensor, code: Tensor, layout: Float8) -> Tensor:
    """Codes of magnitudes with the sign of x; NaN where it is not finite."""
    if layout.signed:
        code = code | ((x.view(torch.int32) >> 24) & 0x80)
    return torch.where(x.isfinite(), code, layout.magnitude).to(torch.uint8)


def padded(x: Tensor, scale: Tensor, block: int = BLOCK) -> Tensor:
    """Flat, each row filled with zeros up to whole blocks of ``block`` numbers; ``scale`` has a
    number for each block, in as many rows."""
    if has_torch_function_unary(x):
        return handle_torch_function(padded, (x,), x, scale, block)
    rows = scale.shape[0] if scale.dim() > 1 else 1
    missing = scale.numel() * block - x.numel()
    if not missing:
        return x
    return torch.nn.functional.pad(x.reshape(rows, -1), (0, missing // rows)).view(-1)


def trimmed(x: Tensor, scale: Tensor, numel: int) -> Tensor:
    """The ``numel`` numbers of what ``padded`` gave."""
    if has_torch_function_unary(x):
        return handle_torch_function(trimmed, (x,), x, scale, numel)
    if x.numel() == numel:
        return x
    rows = scale.shape[0] if scale.dim() > 1 else 1
    return x.view(rows, -1)[:, : numel // rows].reshape(-1)


def unpack(stored: Tensor) -> Tensor:
    """Codes (int32 [2n]) of bytes [n], the lower half first."""
    if has_torch_function_unary(stored):
        return handle_torch_function(unpack, (stored,), stored)
    wide = stored.view(-1).to(torch.int32)
    return torch.stack((wide & 0xF, wide >> 4), dim=1).view(-1)


def pack(code: Tensor) -> Tensor:
    """Bytes (uint8 [n]) of codes (int32 [2n], 0 to 15), the first in the lower half."""
    if has_torch_function_unary(code):
        return handle_torch_function(pack, (code,), code)
    pairs = code.view(-1, 2)
    return (pairs[:, 0] | (pairs[:, 1] << 4)).to(torch.uint8)


def decode_fp4(code: Tensor, layout: Float4) -> Tensor:
    """Codes (int32) to fp32, exactly, before the block scale."""
    size = code & layout.magnitude
    # No number on the way is subnormal: below two codes the mantissa alone counts
    normal = ((size << (23 - layout.mantissa)) + (112 << 23)).view(torch.float32)
    small = size.to(torch.float32) * 2.0 ** (-14 - layout.mantissa)
    x = torch.where(size < 1 << layout.mantissa, small, normal)
    if layout.signed:
        x = torch.where(code >= 8, -x, x)
    return torch.where(code == layout.nan, torch.nan, x)


def encode_fp4(x: Tensor, byte: Tensor, field: Tensor, layout: Float4) -> Tensor:
    """fp32 to codes (int32) of x * 2^(127 - byte) by unbiased stochastic rounding on the bits.

    Scaled by 2^-112 besides, fp32 has the code's exponents, subnormals included.  Inf and NaN
    store NaN; what is too large saturates.  Unsigned formats take x >= 0.
    """
    drop = 23 - layout.mantissa
    exponent = 15 - byte
    first = exponent.clamp(min=-126)
    size = x.abs().clamp(max=layout.limit) * _power_of_two(first) * _power_of_two(exponent - first)
    code = (size.view(torch.int32) + shift_right(field, 32 - drop)) >> drop
    if layout.signed:  # but there is no -0
        code = torch.where((x < 0) & (code > 0), code + 8, code)
    return torch.where(x.isfinite(), code, layout.nan)


def decode_int8(code: Tensor, layout: Int8) -> Tensor:
    """uint8 codes to fp32, exactly, before the block scale."""
    wide = code.to(torch.int32)
    x = ((wide << 24) >> 24).to(torch.float32)
    return torch.where(wide == layout.nan, torch.nan, x)


def encode_int8(x: Tensor, byte: Tensor, field: Tensor, layout: Int8) -> Tensor:
    """fp32 to uint8 codes of x * 2^(127 - byte) by unbiased stochastic rounding on the bits.

    In a sum with 384 the scaled number has a spacing of 2^-15, to which it is rounded to nearest;
    the upper 15 bits of ``field`` are added below the whole number.  Inf and NaN store NaN; what is
    too large saturates.
    """
    scaled = x.clamp(min=-layout.limit, max=layout.limit) * _power_of_two(127 - byte)
    bits = (scaled + 384.0).view(torch.int32) + shift_right(field, 17)
    code = ((bits >> 15) + 128) & 0xFF
    return torch.where(x.isfinite(), code, layout.nan).to(torch.uint8)


def least_scale(x: Tensor, layout: Fitted) -> Tensor:
    """E8M0 byte per row of 32 (int32 [numel/32]): the least in which the largest finite magnitude
    is no larger than the largest code."""
    magnitude = x.view(torch.int32).view(-1, BLOCK) & 0x7FFFFFFF
    finite = torch.where(magnitude < 0x7F800000, magnitude, 0)
    largest = finite.amax(dim=1)
    limit = _bits_of(layout.limit)
    largest = torch.where(largest < limit, largest, limit)
    exponent = (largest + (0x7FFFFF - layout.over)) >> 23
    return (exponent + layout.headroom).clamp(min=layout.least)


def _bits_of(x: float) -> int:
    return int(torch.tensor(x, dtype=torch.float32, device="cpu").view(torch.int32))


def bf16_nearest(x: Tensor) -> Tensor:
    """The nearest bf16 as fp32, ties to even; Inf and NaN stay."""
    bits = x.contiguous().view(torch.int32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return torch.where(x.isfinite(), rounded.view(torch.float32), x)


def block_scale(x: Tensor, fmt: str) -> Tensor:
    """E8M0 byte per row of 32 (int32 [numel/32]), from the largest finite magnitude."""
    magnitude = x.view(torch.int32).view(-1, BLOCK) & 0x7FFFFFFF
    finite = torch.where(magnitude < 0x7F800000, magnitude, 0)
    return ((finite.amax(dim=1) >> 23) - _float8(fmt).headroom).clamp(min=LEAST_SCALE)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent for -126 <= exponent <= 127."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)
