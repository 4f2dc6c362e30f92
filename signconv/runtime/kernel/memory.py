"""Parameters, master weights and moments as they lie in memory: loads and stores in Triton.

A tile is [ROWS, 32] elements; a row of 32 is one scale block.  FULL tiles are consecutive elements,
loaded and stored without a mask, which is what makes the accesses 16 bytes wide.  BY_ROW, where the
tensor's own rows end in partial blocks, a row of the tile may have fewer than 32.
"""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import codecs
from signconv.runtime.kernel.constants import (
    BF16,
    FP32,
    HALVES,
    INTERPRETED,
    PLAIN,
    ROOT,
    SCALED,
    SPLIT,
    WHOLE,
)


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


@triton.jit
def load(ptr, offsets, mask, FULL: tl.constexpr):
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
def store_float(
    ptr,
    offsets,
    x,
    field,
    mask,
    FULL: tl.constexpr,
    CODEC: tl.constexpr,
    EIGHT: tl.constexpr = False,
):
    """From fp32: as it is, or rounded stochastically to bf16."""
    if ptr.dtype.element_ty == tl.bfloat16:
        x = codecs.encode_bf16(x, field, CODEC, EIGHT)
    _store(ptr, offsets, x, mask, FULL)


@triton.jit
def _master(masters, TYPE: tl.constexpr, FULL: tl.constexpr):
    ptr = tl.load(masters).to(tl.pointer_type(TYPE))
    if FULL:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def decode_param(
    p,
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
    """A stored parameter as fp32 [ROWS, 32], with a master weight that; ``start`` is the tile's.

    ``masters`` points at the table's pointers to remainders and checks (SPLIT) or to fp32 weights
    (WHOLE).  Where a bf16 weight is not the one that was stored, it was changed from outside and
    counts as it is: each element for itself (WHOLE), or its row of 32 (SPLIT).
    """
    p = codecs.widen(p, CODEC)
    if FORMAT == SPLIT:
        low = load(_master(masters, tl.int16, FULL) + start, offsets, mask, FULL)
        check = load(_master(masters + 1, tl.int32, FULL) + start // 32, row, row_mask, FULL)
        p = tl.where(row_check(p, offsets) == check, join_master(p, low), p)
    elif FORMAT == WHOLE:
        whole = load(_master(masters, tl.float32, FULL) + start, offsets, mask, FULL)
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
    EIGHT: tl.constexpr,
):
    """A parameter from fp32 [ROWS, 32], with a master weight that one too."""
    if FORMAT == PLAIN:
        store_float(ptr + start, offsets, x, field, mask, FULL, CODEC, EIGHT)
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
def _typed(ptr, FORMAT: tl.constexpr):
    """A pointer to what a format stores, from one to bytes."""
    if FORMAT == FP32:
        ptr = ptr.to(tl.pointer_type(tl.float32))
    elif FORMAT == BF16:
        ptr = ptr.to(tl.pointer_type(tl.bfloat16))
    return ptr


@triton.jit
def places(
    start, numel, length, pitch, ROWS: tl.constexpr, BY_ROW: tl.constexpr, CUT: tl.constexpr
):
    """Where the tile whose first block is number ``start`` / 32 lies: its first element; from there
    element numbers [ROWS, 32], which of them exist, the same of blocks [ROWS, 1], and of bytes
    of packed codes [ROWS, 16]; and how much further each block lies in the unsharded tensor.

    BY_ROW each ``length`` elements are blocks of their own, and numbers count from the tensor's
    beginning.  CUT as well in the unsharded tensor rows are ``pitch`` elements long.
    """
    row = tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, 32)[None, :]
    byte = tl.arange(0, 16)[None, :]
    if BY_ROW:
        block = start // 32 + row
        per = (length + 31) // 32
        line = block // per
        column = (block - line * per) * 32
        exists = line < numel // length
        left = length - column
        first = start * 0
        offsets = line * length + column + lane
        mask = exists & (lane < left)
        halves = line * ((length + 1) // 2) + column // 2 + byte
        half_mask = exists & (2 * byte < left)
        further = line * (pitch - length)
        made = first, offsets, mask, block, exists, halves, half_mask, further
    else:
        left = numel - start
        offsets = row * 32 + lane
        row_mask = row * 32 < left
        further = start * 0
        if CUT:  # blocks of a tensor are fewer than 2^31
            line = ((start // 32).to(tl.int32) + row) // (length // 32).to(tl.int32)
            further = line * (pitch - length)
        made = start, offsets, offsets < left, row, row_mask, row * 16 + byte, row_mask, further
    return made


@triton.jit
def fetch_moment(
    ptr,
    scale_ptr,
    start,
    offsets,
    mask,
    row,
    row_mask,
    halves,
    half_mask,
    FORMAT: tl.constexpr,
    FULL: tl.constexpr,
):
    """A moment as it is stored: codes [ROWS, 32] and, of the scaled formats, bytes [ROWS, 1].

    ``ptr`` points to bytes and is typed here; the rest is from ``places``.
    """
    if FORMAT >= HALVES and FORMAT < ROOT:
        code = load(ptr + start // 2, halves, half_mask, FULL)
    else:
        code = load(_typed(ptr, FORMAT) + start, offsets, mask, FULL)
    byte = tl.full((), 0, tl.uint8)
    if FORMAT >= SCALED:
        byte = load(scale_ptr + start // 32, row, row_mask, FULL)
    return code, byte


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
    halves,
    half_mask,
    FORMAT: tl.constexpr,
    FULL: tl.constexpr,
    CODEC: tl.constexpr,
    BY_ROW: tl.constexpr = False,
):
    """Encode fp32 [ROWS, 32] and store; the scale used to encode is the one that is stored."""
    if BY_ROW:
        x = tl.where(mask, x, 0.0)  # what is no element has no part in the scale
    code, byte = codecs.encode(x, field, FORMAT, CODEC)
    if FORMAT >= HALVES and FORMAT < ROOT:
        _store(ptr + start // 2, halves, code, half_mask, FULL)
    else:
        _store(_typed(ptr, FORMAT) + start, offsets, code, mask, FULL)
    if FORMAT >= SCALED:
        _store(scale_ptr + start // 32, row, byte.to(tl.uint8), row_mask, FULL)


@triton.jit
def block_elements(numel, length):
    """Elements with those that each row's last block lacks."""
    return numel // length * ((length + 31) // 32 * 32)


@triton.jit
def extent(left, MOST: tl.constexpr):
    """How many elements of a chunk there are; in the interpreter all, which masks then leave out:
    that of Triton 3.6 cannot take a bound from a tensor with NumPy 2.4."""
    if INTERPRETED:
        return MOST
    return tl.minimum(left, MOST).to(tl.int32)
