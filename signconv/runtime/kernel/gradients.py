"""What is asked of gradients alone, before a step: their squares, and whether all are finite."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ops
from signconv.runtime.kernel.constants import (
    COLUMN_ALIGNED,
    COLUMN_GRAD,
    COLUMN_NUMEL,
)
from signconv.runtime.kernel.step import chunk_start, table_entry, typed_pointer


@triton.jit
def sum_squares(
    table,
    chunks,
    partials,
    COLUMNS: tl.constexpr,
    G_TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Sums of squares of gradients in float64 over pieces of ROWS rows of WIDTH = 2**LEVELS: of a
    piece row after row, then neighbours first; ``chunks`` are (tensor, piece)."""
    entry = table_entry(table, chunks, COLUMNS)
    start = chunk_start(chunks, ROWS * WIDTH)
    aligned = tl.load(entry + COLUMN_ALIGNED) != 0
    address = tl.load(entry + COLUMN_GRAD)
    left = tl.load(entry + COLUMN_NUMEL) - start
    i = tl.arange(0, WIDTH)
    total = tl.full([WIDTH], 0.0, tl.float64)
    if aligned & (left >= ROWS * WIDTH):
        for row in tl.static_range(ROWS):
            g = tl.load(typed_pointer(address, G_TYPE, True) + start + row * WIDTH + i)
            g = g.to(tl.float32).to(tl.float64)
            total += g * g
    else:
        for first in range(0, ops.extent(left, ROWS * WIDTH), WIDTH):
            g_ptr = typed_pointer(address, G_TYPE, False) + start + first
            g = tl.load(g_ptr + i, mask=i < left - first, other=0).to(tl.float32).to(tl.float64)
            total += g * g
    tl.store(partials + tl.program_id(0) + tl.arange(0, 1), ops.tree_sum(total, WIDTH, LEVELS))


@triton.jit
def find_nonfinite(
    table,
    chunks,
    flag,
    COLUMNS: tl.constexpr,
    G_TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Set ``flag`` to 1 if any gradient of the chunk is Inf or NaN."""
    entry = table_entry(table, chunks, COLUMNS)
    start = chunk_start(chunks, TILES * ROWS * 32)
    g_ptr = tl.load(entry + COLUMN_GRAD).to(tl.pointer_type(G_TYPE)) + start
    left = tl.load(entry + COLUMN_NUMEL) - start
    for tile in tl.static_range(TILES):
        offsets = tile * (ROWS * 32) + tl.arange(0, ROWS * 32)
        g = tl.load(g_ptr + offsets, mask=offsets < left, other=0)
        bad = (g.to(tl.float32).to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000
        if tl.max(bad.to(tl.int32), axis=0) > 0:
            tl.store(flag, 1.0)
