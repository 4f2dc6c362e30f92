"""Passes over tensors before the step: what reductions sum, as partial results in a fixed order.

``targets`` holds for each tensor an address for each result's partials.
"""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ops
from signconv.runtime.kernel.constants import (
    BY_BLOCK,
    BY_ELEMENT,
    BY_NOTHING,
    CHUNK_ENTRY,
    COLUMN_ALIGNED,
    COLUMN_CLOCK,
    COLUMN_GRAD,
    COLUMN_NUMEL,
    COLUMN_PARAM,
    COLUMN_ROW_LENGTH,
    COLUMN_STATE,
)
from signconv.runtime.kernel.step import (
    chunk_start,
    decode_tile,
    extra_pointers,
    fetch_tile,
    load_scalars,
    state_pointers,
    table_entry,
)
from signconv.runtime.kernel.values import find_values, tile_values


@triton.jit
def _store(target, number, row, x, at, MODE: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr):
    """Partial results of a tile [ROWS, 32]: of all of it, number ``number`` of the tensor; of each
    block, number ``row``; the elements themselves; or, of what another pass finds, nothing."""
    _, offsets, mask, _, row_mask, _, _, _ = at
    ptr = target.to(tl.pointer_type(tl.float32))
    x = tl.broadcast_to(x, [ROWS, 32])
    if MODE == BY_ELEMENT:
        tl.store(ptr + at[0] + offsets, x, mask=mask)
    elif MODE != BY_NOTHING:
        x = tl.where(mask, x, ops.identity(KIND))
        sums = ops.tree_rows(x, ROWS, 32, KIND)
        if MODE == BY_BLOCK:
            tl.store(ptr + row, tl.reshape(sums, [ROWS, 1]), mask=row_mask)
        else:
            whole = ops.tree_rows(tl.reshape(sums, [1, ROWS]), 1, ROWS, KIND)
            tl.store(ptr + number + tl.arange(0, 1), whole)


@triton.jit
def reduce_kernel(
    table,
    chunks,
    scalar_table,
    values,
    maps,
    targets,
    SUMMANDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    VALUES: tl.constexpr,
    MAP_COUNT: tl.constexpr,
    READS: tl.constexpr,
    READ_MAPS: tl.constexpr,
    READ_KINDS: tl.constexpr,
    BLOCKS: tl.constexpr,
    MODES: tl.constexpr,
    REDUCTIONS: tl.constexpr,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    P_FORMAT: tl.constexpr,
    FORMATS: tl.constexpr,
    APART: tl.constexpr,
    EXTRAS: tl.constexpr,
    BY_ROW: tl.constexpr,
    CODEC: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """A chunk of TILES tiles, each for itself: MODES says of each result what is stored."""
    tensor = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0)).to(tl.int64)
    entry = table_entry(table, chunks, COLUMNS)
    start = chunk_start(chunks, TILES * ROWS * 32)
    aligned = tl.load(entry + COLUMN_ALIGNED) != 0
    clock = tl.load(entry + COLUMN_CLOCK)
    numel = tl.load(entry + COLUMN_NUMEL)
    p_ptr = tl.load(entry + COLUMN_PARAM)
    g_ptr = tl.load(entry + COLUMN_GRAD)
    pointers = state_pointers(entry, len(FORMATS))
    given = extra_pointers(entry, len(FORMATS), len(EXTRAS))
    masters = entry + (COLUMN_STATE + 2 * len(FORMATS))
    row = scalar_table + clock * (1 + OUTPUTS)
    factor = tl.load(row)
    scalars = load_scalars(row, OUTPUTS)
    found = find_values(
        values + tensor * VALUES, maps + tensor * (2 * MAP_COUNT), READS, READ_MAPS, READ_KINDS
    )
    target = targets + tensor * len(MODES)
    length = numel
    if BY_ROW:
        length = tl.load(entry + COLUMN_ROW_LENGTH)
    left = numel - start
    whole = aligned & (left >= TILES * ROWS * 32)
    if BY_ROW:
        left = ops.block_elements(numel, length) - start
        whole = False
    if whole:
        for tile in tl.static_range(TILES):
            first = start + tile * (ROWS * 32)
            at = ops.places(first, numel, length, length, ROWS, False, False)
            stored = fetch_tile(
                at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, True
            )
            p, g, moments = decode_tile(
                stored, at, masters, factor, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, True
            )
            read = tile_values(found, at, READ_KINDS, BLOCKS, True)
            sums = SUMMANDS(p, g, moments, scalars + read, CODEC)
            for i in tl.static_range(len(MODES)):
                _store(
                    tl.load(target + i), first // (ROWS * 32), first // 32 + at[3], sums[i], at,
                    MODES[i], REDUCTIONS[i], ROWS,
                )  # fmt: skip
    else:
        for within in range(0, ops.extent(left, TILES * ROWS * 32), ROWS * 32):
            first = start + within
            at = ops.places(first, numel, length, length, ROWS, BY_ROW, False)
            stored = fetch_tile(
                at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, False
            )
            p, g, moments = decode_tile(
                stored, at, masters, factor, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, False
            )
            read = tile_values(found, at, READ_KINDS, BLOCKS, False)
            sums = SUMMANDS(p, g, moments, scalars + read, CODEC)
            for i in tl.static_range(len(MODES)):
                _store(
                    tl.load(target + i), first // (ROWS * 32), first // 32 + at[3], sums[i], at,
                    MODES[i], REDUCTIONS[i], ROWS,
                )  # fmt: skip
