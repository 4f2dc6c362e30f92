"""How a moment is stored: one object a format, which everything that stores or proves asks.

To add a format: a row here, a class in ``reference/codecs.py`` (the CPU backend compiles that), and
a branch of ``encode`` and ``decode`` in ``kernel/codecs.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from signconv.runtime.axes import BLOCK as BLOCK

if TYPE_CHECKING:
    from signconv.runtime.reference.codecs import Codec

#: Of gradients whose squares are added up: rows of so many elements, so many rows to a piece.
SQUARE_WIDTH, SQUARE_ROWS = 2048, 16
#: Of what is summed over dimensions that do not lie next to each other: SEGMENT numbers are added
#: up in STRIDE sums, one after the other, and those neighbours first.
SEGMENT, STRIDE = 64, 8
#: How an element finds a value of a stage: there is one; it is of the same place; a run of elements
#: shares one; neighbours have neighbours; these, and a program walks along what is reduced.
ONE, SAME, READ_CONTIGUOUS, READ_STRIDED, READ_WALKED, READ_SIGN = range(6)
#: What a pass stores of a result: sums of tiles, of blocks or of columns, the elements, or nothing.
BY_TILE, BY_BLOCK, BY_COLUMN, BY_ELEMENT, BY_NOTHING = range(5)
#: The least byte of a block's scale in FP8, 2^-120: codes still reach fp32's smallest normal
#: number, and a coefficient from 2^-6 times a scale is one (``lower.fusion.scales_apart``).
LEAST_SCALE = 7


@dataclass(frozen=True)
class Float8:
    """A byte of exponent and mantissa, below a sign if it has one.

    mantissa: its bits; smallest: fp32 exponent field of the smallest normal number; largest: code
    of the largest finite number; overflow: the power of two above it; headroom: by how much the
    exponent of a block's scale lies below that of its maximum, so that nothing overflows; top: code
    of the largest number below 2^128 where the scale is the largest there is.
    """

    mantissa: int
    smallest: int
    largest: int
    overflow: float
    headroom: int
    top: int
    signed: bool = True

    @property
    def magnitude(self) -> int:
        """The bits that are no sign; all of them set are NaN."""
        return 0x7F if self.signed else 0xFF


E4M3 = Float8(3, 121, 0x7E, 2.0**9, 7, 0x77)
E5M2 = Float8(2, 113, 0x7B, 2.0**16, 14, 0x77)
#: The upper bits of an fp16 that is not negative.
E5M3 = Float8(3, 113, 0xF7, 2.0**16, 14, 0xEF, signed=False)
#: ((1 + m/4) * 2^e - 1) * 2^-60: without subnormal numbers, 0 is a code like others.  Of e = 63
#: there is NaN alone.  A block's scale has the exponent of half its maximum, however small that is.
E6M2 = Float8(2, 67, 0xFB, 2.0**3, 1, 0xF7, signed=False)


@dataclass(frozen=True)
class Fitted:
    """Codes whose block has the least scale in which its maximum is no larger than the largest.

    largest: code of the largest number; nan: that of NaN; over: bits of a maximum's mantissa above
    which its block takes the next scale; headroom: by how much the byte of a scale lies above the
    exponent of its block's maximum; least: the least byte; limit: the largest fp32 number that has
    a scale.
    """

    largest: int
    nan: int
    over: int
    headroom: int
    least: int
    limit: float


@dataclass(frozen=True)
class Float4(Fitted):
    """Half a byte of exponent and mantissa, below a sign if it has one, two to a byte.

    A code is a few upper bits of an fp16 (docs/design.md#codecs), and below ``least`` decoding
    would meet subnormal numbers.  mantissa: its bits.
    """

    mantissa: int
    signed: bool = True

    @property
    def magnitude(self) -> int:
        """The bits that are no sign."""
        return 0x7 if self.signed else 0xF


#: 0, 1/2, 1, 3/2, 2, 3, 4, 6 times 2^-14 and a sign (OCP MXFP4's); what would be -0 is NaN.
E2M1 = Float4(7, 8, 0x400000, 12, 16, 1.5 * 2.0**115, mantissa=1)
#: 0, the powers of two from 2^-14 to 2^-1, and NaN.
E4M0 = Float4(14, 15, 0, 1, 15, 2.0**126, mantissa=0, signed=False)


@dataclass(frozen=True)
class Int8(Fitted):
    """A byte in two's complement, equally far apart.  most: the largest byte of a scale."""

    most: int


#: -127 to 127; what would be -128 is NaN.
INT8 = Int8(127, 0x80, 0x7E0000, -6, LEAST_SCALE, 127 * 2.0**121, most=248)


@dataclass(frozen=True)
class Format:
    """One way to store a moment.

    name: as in checkpoints and reports; code: its number inside kernels; dtype: of the stored
    tensor; words: what a generated file's docstring says of it; mantissa: stored bits of it, and
    rounding "exact", "nearest" or "stochastic", what an error estimate needs; random_bits: the
    upper bits of its field of random bits that encoding reads; float8: layout of a byte of codes;
    float4: of half a byte; int8: of a byte of whole numbers; scaled: whether every 32 elements
    carry a power-of-two scale (E8M0, one byte); order: codes hold the root of that order (1: the
    moment itself).
    """

    name: str
    code: int
    dtype: torch.dtype
    words: str
    mantissa: int
    rounding: str
    random_bits: int = 0
    float8: Float8 | None = None
    scaled: bool = False
    order: int = 1
    float4: Float4 | None = None
    int8: Int8 | None = None

    @property
    def bytes_per_element(self) -> float:
        """Bytes one element takes, its share of the block scale included."""
        size = self.dtype.itemsize / (2 if self.packed else 1)
        return size + (1 / BLOCK if self.scaled else 0)

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte, the first in its lower half."""
        return self.float4 is not None

    @property
    def signed(self) -> bool:
        """Whether negative numbers have codes."""
        layout = self.float8 or self.float4
        return self.order == 1 and (layout is None or layout.signed)

    @property
    def codec(self) -> Codec:
        """Its encoder and decoder in PyTorch."""
        from signconv.runtime.reference.codecs import codec_of

        return codec_of(self)

    def decode(self, stored: Tensor, scale: Tensor | None) -> Tensor:
        """A stored moment as flat fp32 [numel], never a view: the step writes in place.

        ``stored`` has numel/2 bytes where codes are packed."""
        return self.codec.decode(stored.view(-1), None if scale is None else scale.view(-1))

    def encode(self, x: Tensor, field: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes [numel], or [numel/2] bytes of them, and block scales (uint8 [numel/32]; None where
        there are none) of flat fp32; ``field``: random bits, int32 [numel]."""
        return self.codec.encode(x, field)


#: Formats with block scales have this code or a larger one.
SCALED = 3
#: Formats with two codes to a byte have this code or a larger one, below ROOT.
HALVES = 7
#: A moment of order p > 4 is stored as its p-th root; inside a kernel its code is ROOT + p.
ROOT = 16
ROOT_ORDERS = range(5, 9)
_SCALED = "codes with a power-of-two scale per 32 elements, rounded stochastically"


def _root(p: int) -> Format:
    words = (
        f"E4M3 codes of the root of order {p} with a power-of-two scale per 32 elements, "
        "rounded stochastically without bias in the moment itself"
    )
    return Format(f"e4m3-root{p}", ROOT + p, torch.uint8, words, 3, "stochastic", 23, E4M3, True, p)


FORMATS = {
    f.name: f
    for f in (
        Format("fp32", 0, torch.float32, "fp32", 23, "exact"),
        Format("bf16", 1, torch.bfloat16, "bf16, rounded stochastically", 7, "stochastic", 16),
        Format(
            "e4m3-raw", 2, torch.uint8, "E4M3 codes without scales, rounded to nearest",
            3, "nearest", 0, E4M3,
        ),
        Format("e4m3", 3, torch.uint8, f"E4M3 {_SCALED}", 3, "stochastic", 20, E4M3, True),
        Format(
            "e5m3", 4, torch.uint8, f"Unsigned E5M3 {_SCALED}", 3, "stochastic", 20, E5M3, True,
        ),
        Format(
            "e6m2", 5, torch.uint8, f"Unsigned E6M2 {_SCALED}", 2, "stochastic", 21, E6M2, True,
        ),
        Format(
            "int8", 6, torch.uint8, f"Whole numbers from -127 to 127 as {_SCALED}",
            6, "stochastic", 15, scaled=True, int8=INT8,
        ),
        Format(
            "e2m1", 7, torch.uint8, f"E2M1 {_SCALED}, two to a byte", 1, "stochastic", 22,
            scaled=True, float4=E2M1,
        ),
        Format(
            "e4m0", 8, torch.uint8, f"Powers of two as {_SCALED}, two to a byte",
            0, "stochastic", 23, scaled=True, float4=E4M0,
        ),
        *map(_root, ROOT_ORDERS),
    )
}  # fmt: skip
#: What checkpoints of earlier releases hold; it is read, and no step stores it.
FORMER = {
    f.name: f
    for f in (
        Format("e5m2", -1, torch.uint8, f"E5M2 {_SCALED}", 2, "stochastic", 21, E5M2, True),
        _root(3),
        _root(4),
    )
}


def named(name: str) -> Format:
    """A format of today or of a checkpoint."""
    return FORMATS[name] if name in FORMATS else FORMER[name]


#: How a parameter is stored, as kernels know it: fp32, or bf16 rounded stochastically; bf16 beside
#: the other 16 bits of its fp32 master weight; bf16 beside the whole of it.
PLAIN, SPLIT, WHOLE = range(3)
#: How an extra input per element comes to a step: it was not passed, or in one of its dtypes.
ABSENT, GIVEN_FP32, GIVEN_BF16 = range(3)
#: Keys of ``state[p]``: rests of the bits or whole weights, and the checksums beside rests.
MASTER, CHECK = "master", "master_check"

#: What the step kernel does: step, sum for totals alone, or both.
STEPS, SUMS_ALONE, SUMS_TOO = range(3)
