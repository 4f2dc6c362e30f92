"""Between passes: partial results become values, and values others."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ops
from signconv.runtime.kernel.constants import (
    CHUNK_ENTRY,
    COLUMN_CLOCK,
    FOLD_BEHIND,
    FOLD_COUNT,
    FOLD_ENTRY,
    FOLD_LENGTH,
    FOLD_REDUCED,
    FOLD_SOURCE,
    FOLD_TARGET,
    MEAN,
    NORM,
    SEGMENT,
    STRIDE,
)
from signconv.runtime.kernel.step import load_scalars, table_entry
from signconv.runtime.kernel.values import find_values, line_values


@triton.jit
def fold(
    folds,
    chunks,
    KIND: tl.constexpr,
    LAST: tl.constexpr,
    ALONG: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SHORT: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Reduce N neighbours of numbers seen as [before, reduced, behind], WIDTH results at a time.

    ALONG: they lie next to each other (behind is 1).  SEGMENTS: in the order of ``column_kernel``.
    LAST: nothing is left to reduce, and the value is made of the sum.  SHORT: there are fewer than
    2**31.
    """
    pid = tl.program_id(0)
    row = folds + tl.load(chunks + CHUNK_ENTRY * pid).to(tl.int64) * FOLD_ENTRY
    source = tl.load(row + FOLD_SOURCE).to(tl.pointer_type(tl.float32))
    target = tl.load(row + FOLD_TARGET).to(tl.pointer_type(tl.float32))
    reduced = tl.load(row + FOLD_REDUCED)
    behind = tl.load(row + FOLD_BEHIND)
    count = tl.load(row + FOLD_COUNT)
    i = tl.load(chunks + CHUNK_ENTRY * pid + 1).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    if SHORT:  # divisions of 64 bits take most of the time
        reduced = reduced.to(tl.int32)
        behind = behind.to(tl.int32)
        count = count.to(tl.int32)
        i = i.to(tl.int32)
    groups = (reduced + N - 1) // N
    exists = i < count
    line = i // behind
    first = line % groups * N
    base = line // groups * reduced * behind + i % behind
    if SEGMENTS:
        n = tl.arange(0, STRIDE)[:, None]
        total = tl.full([STRIDE, WIDTH], ops.identity(KIND), tl.float32)
        for step in tl.static_range(0, SEGMENT, STRIDE):
            k = first[None, :] + (step + n)
            mask = exists[None, :] & (k < reduced)
            x = tl.load(source + base[None, :] + k * behind, mask=mask, other=ops.identity(KIND))
            total = ops.combined(total, x, KIND)
        made = ops.tree_rows(tl.trans(total), WIDTH, STRIDE, KIND)
    elif ALONG:
        k = first[:, None] + tl.arange(0, N)[None, :]
        mask = exists[:, None] & (k < reduced)
        x = tl.load(source + base[:, None] + k, mask=mask, other=ops.identity(KIND))
        made = ops.tree_rows(x, WIDTH, N, KIND)
    else:
        k = first[None, :] + tl.arange(0, N)[:, None]
        mask = exists[None, :] & (k < reduced)
        x = tl.load(source + base[None, :] + k * behind, mask=mask, other=ops.identity(KIND))
        made = ops.tree_rows(tl.trans(x), WIDTH, N, KIND)
    if LAST:
        length = tl.load(row + FOLD_LENGTH)
        if KIND == NORM:
            made = ops.norm_of_sum(made, length)
        elif KIND == MEAN:
            made = ops.mean_of_sum(made, length)
        else:
            made = ops.sum_of_sum(made, length)
    tl.store(target + i, made, mask=exists)


@triton.jit
def derive(
    table,
    chunks,
    scalar_table,
    values,
    maps,
    targets,
    FUNCTION: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    VALUES: tl.constexpr,
    MAP_COUNT: tl.constexpr,
    READS: tl.constexpr,
    READ_MAPS: tl.constexpr,
    READ_KINDS: tl.constexpr,
    RESULTS: tl.constexpr,
    CODEC: tl.constexpr,
    N: tl.constexpr,
):
    """N numbers of one kind of place: FUNCTION of the scalars and of what they read; ``targets``:
    how many numbers a tensor has, and the addresses of the results."""
    tensor = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0)).to(tl.int64)
    entry = table_entry(table, chunks, COLUMNS)
    clock = tl.load(entry + COLUMN_CLOCK)
    scalars = load_scalars(scalar_table + clock * (1 + OUTPUTS), OUTPUTS)
    number = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0) + 1).to(tl.int64) * N
    number += tl.arange(0, N)
    targets += tensor * (1 + RESULTS)
    mask = number < tl.load(targets)
    found = find_values(
        values + tensor * VALUES, maps + tensor * (2 * MAP_COUNT), READS, READ_MAPS, READ_KINDS
    )
    made = FUNCTION(scalars + line_values(found, number, mask, READ_KINDS), CODEC)
    for i in tl.static_range(RESULTS):
        ptr = tl.load(targets + 1 + i).to(tl.pointer_type(tl.float32))
        tl.store(ptr + number, tl.broadcast_to(made[i], [N]), mask=mask)


@triton.jit
def commit(
    chunks,
    key_table,
    values,
    counts,
    VALUES: tl.constexpr,
    SOURCES: tl.constexpr,
    N: tl.constexpr,
):
    """Copy new states from where stages put them to where they are kept, unless no step was taken;
    kept states are the first of ``values``, SOURCES the places of the new ones."""
    if tl.load(key_table) == 0:
        return
    tensor = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0)).to(tl.int64)
    number = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0) + 1).to(tl.int64) * N
    number += tl.arange(0, N)
    row = values + tensor * VALUES
    for i in tl.static_range(len(SOURCES)):
        mask = number < tl.load(counts + tensor * len(SOURCES) + i)
        source = tl.load(row + SOURCES[i]).to(tl.pointer_type(tl.float32))
        target = tl.load(row + i).to(tl.pointer_type(tl.float32))
        tl.store(target + number, tl.load(source + number, mask=mask, other=0.0), mask=mask)
