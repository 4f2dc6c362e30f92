"""A pass, and the step, that walk along a strided dimension: down some columns of a matrix.

What is summed along it stays in registers, and what is read once a column is read once a program.
"""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ops
from signconv.runtime.kernel.constants import (
    BY_COLUMN,
    BY_NOTHING,
    CHUNK_ENTRY,
    COLUMN_ALIGNED,
    COLUMN_CLOCK,
    COLUMN_GRAD,
    COLUMN_OFFSET,
    COLUMN_PARAM,
    COLUMN_STATE,
    FRESH,
    SEGMENT,
    STRIDE,
)
from signconv.runtime.kernel.step import (
    decode_tile,
    extra_pointers,
    fetch_tile,
    load_scalars,
    state_pointers,
    step_tile,
    table_entry,
)
from signconv.runtime.kernel.values import find_values, tile_values, walked_values


@triton.jit
def _find(chunks, maps, WALK: tl.constexpr, ACROSS: tl.constexpr):
    """Where a program walks, of the tensor seen as [before, reduced, behind]: its first block of
    32, how many blocks are behind each other, how many rows there are, the first of its segment,
    and where its columns are among values and among partial sums."""
    span = tl.load(maps + 2 * WALK)
    behind = tl.load(maps + 2 * WALK + 1)
    across = behind // 32
    reduced = span // behind
    segments = (reduced + SEGMENT - 1) // SEGMENT
    chunk = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0) + 1).to(tl.int64)
    columns = across // ACROSS
    line = chunk // columns
    before = line // segments
    column = chunk % columns * ACROSS
    base = before * reduced * across + column
    first = line % segments * SEGMENT
    return base, across, reduced, first, before * behind + column * 32, line * behind + column * 32


@triton.jit
def _places(first, base, reduced, across, ACROSS: tl.constexpr):
    """As ``ops.places``, of STRIDE rows of ACROSS blocks from row ``first`` on."""
    i = tl.arange(0, STRIDE * ACROSS)[:, None]
    lane = tl.arange(0, 32)[None, :]
    byte = tl.arange(0, 16)[None, :]
    k = first + i // ACROSS
    exists = k < reduced
    block = base + k * across + i % ACROSS
    start = base * 0
    mask = exists & (lane < 32)
    halves = block * 16 + byte
    return start, block * 32 + lane, mask, block, exists, halves, exists & (byte < 16), start


@triton.jit
def _sum(
    totals,
    first,
    base,
    reduced,
    across,
    p_ptr,
    g_ptr,
    pointers,
    given,
    masters,
    factor,
    scalars,
    found,
    SUMMANDS: tl.constexpr,
    READ_KINDS: tl.constexpr,
    MODES: tl.constexpr,
    REDUCTIONS: tl.constexpr,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    P_FORMAT: tl.constexpr,
    FORMATS: tl.constexpr,
    APART: tl.constexpr,
    EXTRAS: tl.constexpr,
    CODEC: tl.constexpr,
    SCALED: tl.constexpr,
    ACROSS: tl.constexpr,
    FULL: tl.constexpr,
):
    """Add STRIDE rows from ``first`` on to ``totals``; append sums of their blocks, ACROSS of each
    row together."""
    at = _places(first, base, reduced, across, ACROSS)
    mask = at[2]
    stored = fetch_tile(at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, FULL)
    p, g, moments = decode_tile(
        stored, at, masters, factor, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, FULL
    )
    sums = SUMMANDS(p, g, moments, scalars + tile_values(found, at, READ_KINDS, True, FULL), CODEC)
    made = ()
    for i in tl.static_range(len(MODES)):
        if MODES[i] == BY_NOTHING:
            made = made + (totals[i],)
        else:
            x = tl.broadcast_to(sums[i], [STRIDE * ACROSS, 32])
            if not FULL:
                x = tl.where(mask, x, ops.identity(REDUCTIONS[i]))
            if MODES[i] == BY_COLUMN:
                made = made + (ops.combined(totals[i], x, REDUCTIONS[i]),)
            else:
                x = tl.reshape(x, [STRIDE, ACROSS * 32])
                x = ops.tree_rows(x, STRIDE, ACROSS * 32, REDUCTIONS[i])
                made = made + (totals[i] + (x,),)
    return made


@triton.jit
def _joined(parts):
    """Eight [STRIDE], one for each tile of a segment, as [STRIDE, 8]."""
    x0 = tl.join(tl.join(parts[0], parts[4]), tl.join(parts[2], parts[6]))
    x1 = tl.join(tl.join(parts[1], parts[5]), tl.join(parts[3], parts[7]))
    return tl.reshape(tl.join(x0, x1), [STRIDE, 8])


@triton.jit
def column_kernel(
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
    WALK: tl.constexpr,
    MODES: tl.constexpr,
    REDUCTIONS: tl.constexpr,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    P_FORMAT: tl.constexpr,
    FORMATS: tl.constexpr,
    APART: tl.constexpr,
    EXTRAS: tl.constexpr,
    CODEC: tl.constexpr,
    SCALED: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """A pass: a segment of what is reduced, ACROSS blocks wide, STRIDE rows at a time.

    WALK: the map of the dimensions that are walked along.  A result is either summed over them, in
    STRIDE sums of their own, or of the blocks of a row.
    """
    tensor = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0)).to(tl.int64)
    entry = table_entry(table, chunks, COLUMNS)
    aligned = tl.load(entry + COLUMN_ALIGNED) != 0
    clock = tl.load(entry + COLUMN_CLOCK)
    p_ptr = tl.load(entry + COLUMN_PARAM)
    g_ptr = tl.load(entry + COLUMN_GRAD)
    pointers = state_pointers(entry, len(FORMATS))
    given = extra_pointers(entry, len(FORMATS), len(EXTRAS))
    masters = entry + (COLUMN_STATE + 2 * len(FORMATS))
    row = scalar_table + clock * (1 + OUTPUTS)
    factor = tl.load(row)
    scalars = load_scalars(row, OUTPUTS)
    maps += tensor * (2 * MAP_COUNT)
    found = find_values(values + tensor * VALUES, maps, READS, READ_MAPS, READ_KINDS)
    target = targets + tensor * len(MODES)
    base, across, reduced, first, place, partial = _find(chunks, maps, WALK, ACROSS)
    found = walked_values(found, place, READ_KINDS, STRIDE, ACROSS)
    totals = ()
    for i in tl.static_range(len(MODES)):
        if MODES[i] == BY_COLUMN:
            empty = tl.full([STRIDE * ACROSS, 32], ops.identity(REDUCTIONS[i]), tl.float32)
            totals = totals + (empty,)
        else:
            totals = totals + ((),)
    if aligned & (first + SEGMENT <= reduced):
        made = totals
        for rows in tl.static_range(0, SEGMENT, STRIDE):
            made = _sum(
                made, first + rows, base, reduced, across, p_ptr, g_ptr, pointers, given,
                masters, factor, scalars, found, SUMMANDS, READ_KINDS, MODES, REDUCTIONS,
                P_TYPE, G_TYPE, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, ACROSS, True,
            )  # fmt: skip
    else:
        made = totals
        for rows in tl.static_range(0, SEGMENT, STRIDE):
            made = _sum(
                made, first + rows, base, reduced, across, p_ptr, g_ptr, pointers, given,
                masters, factor, scalars, found, SUMMANDS, READ_KINDS, MODES, REDUCTIONS,
                P_TYPE, G_TYPE, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, ACROSS, False,
            )  # fmt: skip
    for i in tl.static_range(len(MODES)):
        if MODES[i] == BY_COLUMN:
            x = tl.trans(tl.reshape(made[i], [STRIDE, ACROSS * 32]))
            total = ops.tree_rows(x, ACROSS * 32, STRIDE, REDUCTIONS[i])
            ptr = tl.load(target + i).to(tl.pointer_type(tl.float32))
            tl.store(ptr + partial + tl.arange(0, ACROSS * 32), total)
        elif MODES[i] != BY_NOTHING:
            tile = tl.arange(0, 8)[None, :]
            k = first + STRIDE * tile + tl.arange(0, STRIDE)[:, None]
            ptr = tl.load(target + i).to(tl.pointer_type(tl.float32))
            place = (base + k * across) // ACROSS
            tl.store(ptr + place, _joined(made[i]), mask=k < reduced)


@triton.jit
def walk_kernel(
    table,
    chunks,
    scalar_table,
    key_table,
    values,
    maps,
    MATH: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    VALUES: tl.constexpr,
    MAP_COUNT: tl.constexpr,
    READS: tl.constexpr,
    READ_MAPS: tl.constexpr,
    READ_KINDS: tl.constexpr,
    WALK: tl.constexpr,
    WORDS: tl.constexpr,
    NOISE: tl.constexpr,
    FIELDS: tl.constexpr,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    P_FORMAT: tl.constexpr,
    FORMATS: tl.constexpr,
    APART: tl.constexpr,
    EXTRAS: tl.constexpr,
    CODEC: tl.constexpr,
    SCALED: tl.constexpr,
    EIGHT: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """The step (``step_kernel``) of a segment, each tile fetched while the one before is stepped;
    for programs that read values of columns."""
    tensor = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0)).to(tl.int64)
    entry = table_entry(table, chunks, COLUMNS)
    active = tl.load(key_table) != 0
    aligned = tl.load(entry + COLUMN_ALIGNED) != 0
    clock = tl.load(entry + COLUMN_CLOCK)
    offset = tl.load(entry + COLUMN_OFFSET)
    p_ptr = tl.load(entry + COLUMN_PARAM)
    g_ptr = tl.load(entry + COLUMN_GRAD)
    pointers = state_pointers(entry, len(FORMATS))
    given = extra_pointers(entry, len(FORMATS), len(EXTRAS))
    masters = entry + (COLUMN_STATE + 2 * len(FORMATS))
    row = scalar_table + clock * (1 + OUTPUTS)
    factor = tl.load(row)
    scalars = load_scalars(row, OUTPUTS)
    KEYS: tl.constexpr = 2 * WORDS + (0 if NOISE == FRESH else 3)
    keys = ()
    for i in tl.static_range(KEYS):
        keys = keys + (tl.load(key_table + clock * (1 + KEYS) + 1 + i),)
    maps += tensor * (2 * MAP_COUNT)
    found = find_values(values + tensor * VALUES, maps, READS, READ_MAPS, READ_KINDS)
    base, across, reduced, first, place, _ = _find(chunks, maps, WALK, ACROSS)
    found = walked_values(found, place, READ_KINDS, STRIDE, ACROSS)
    if not active:
        return
    if aligned & (first + SEGMENT <= reduced):
        next_at = _places(first, base, reduced, across, ACROSS)
        following = fetch_tile(
            next_at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, True
        )
        for rows in tl.static_range(0, SEGMENT, STRIDE):
            at = next_at
            stored = following
            if rows + STRIDE < SEGMENT:
                next_at = _places(first + rows + STRIDE, base, reduced, across, ACROSS)
                following = fetch_tile(
                    next_at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, True
                )
            step_tile(
                stored, at, offset, p_ptr, pointers, masters, factor, scalars, found, keys,
                MATH, WORDS, NOISE, FIELDS, P_TYPE, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED,
                EIGHT, True, False, False, READ_KINDS, True,
            )  # fmt: skip
    else:
        for rows in tl.static_range(0, SEGMENT, STRIDE):
            at = _places(first + rows, base, reduced, across, ACROSS)
            stored = fetch_tile(
                at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, False
            )
            step_tile(
                stored, at, offset, p_ptr, pointers, masters, factor, scalars, found, keys,
                MATH, WORDS, NOISE, FIELDS, P_TYPE, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED,
                EIGHT, False, False, False, READ_KINDS, True,
            )  # fmt: skip
