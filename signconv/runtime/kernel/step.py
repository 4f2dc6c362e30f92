"""The kernels of every optimizer: one element's arithmetic comes from the generated module.

A generated module brings three functions, which a kernel gets as constants (``program.Step``):

    MATH(p, g, moments, scalars, noise, CODEC) -> new parameter, tuple of new moments
    a function for each pass (``passes.py``): (p, g, moments, scalars, CODEC) -> what it sums
    SCALARS(t, initial_lr, hypers, states) -> outputs and new scalar states (``scalars.py``)

Values of a tile are [ROWS, 32]: a row of 32 consecutive elements is one scale block.  ``scalars``
are the program's outputs, then the values of stages that are read; ``moments`` as they come in
have the extra inputs per element behind them.
"""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ops
from signconv.runtime.kernel.constants import (
    ANTITHETIC,
    CHUNK_ENTRY,
    COLUMN_ALIGNED,
    COLUMN_CLOCK,
    COLUMN_GRAD,
    COLUMN_NUMEL,
    COLUMN_OFFSET,
    COLUMN_PARAM,
    COLUMN_PITCH,
    COLUMN_ROW_LENGTH,
    COLUMN_STATE,
    FRESH,
    GIVEN_BF16,
    GIVEN_FP32,
    GOLDEN,
    STEPS,
    SUM,
    SUMS_ALONE,
)
from signconv.runtime.kernel.values import find_values, tile_values


@triton.jit
def typed_pointer(address, TYPE: tl.constexpr, FULL: tl.constexpr):
    """An address of the table.  Only here do 16-byte accesses come from: the hint belongs to the
    cast, passed through another function it is lost."""
    ptr = address.to(tl.pointer_type(TYPE))
    if FULL:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def table_entry(table, chunks, COLUMNS: tl.constexpr):
    """The table's row for this program's chunk."""
    tensor = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0)).to(tl.int64)
    return table + tensor * COLUMNS


@triton.jit
def chunk_start(chunks, ELEMENTS: tl.constexpr):
    """The first element of this program's chunk."""
    return tl.load(chunks + CHUNK_ENTRY * tl.program_id(0) + 1).to(tl.int64) * ELEMENTS


@triton.jit
def state_pointers(entry, MOMENTS: tl.constexpr):
    """Two for each moment, untyped: codes and scales."""
    pointers = ()
    for i in tl.static_range(2 * MOMENTS):
        pointers = pointers + (tl.load(entry + COLUMN_STATE + i),)
    return pointers


@triton.jit
def extra_pointers(entry, MOMENTS: tl.constexpr, EXTRAS: tl.constexpr):
    """One for each extra input, untyped; of one that was not passed it points nowhere."""
    pointers = ()
    for i in tl.static_range(EXTRAS):
        pointers = pointers + (tl.load(entry + COLUMN_STATE + 2 * MOMENTS + 2 + i),)
    return pointers


@triton.jit
def load_scalars(row, OUTPUTS: tl.constexpr):
    """The outputs of the scalar kernel; the gradient's factor comes before them."""
    values = ()
    for i in tl.static_range(OUTPUTS):
        values = values + (tl.load(row + 1 + i),)
    return values


@triton.jit
def fetch_tile(
    at,
    p_ptr,
    g_ptr,
    pointers,
    given,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    FORMATS: tl.constexpr,
    EXTRAS: tl.constexpr,
    FULL: tl.constexpr,
):
    """A tile as it is stored: parameter, gradient, (codes, scales) of each moment, and each extra
    input, 0 where one was not passed; ``at`` is where it lies (``ops.places``)."""
    start, offsets, mask, row, row_mask, halves, half_mask, _ = at
    p = ops.load(typed_pointer(p_ptr, P_TYPE, FULL) + start, offsets, mask, FULL)
    g = ops.load(typed_pointer(g_ptr, G_TYPE, FULL) + start, offsets, mask, FULL)
    stored = (p, g)
    for i in tl.static_range(len(FORMATS)):
        ptr = typed_pointer(pointers[2 * i], tl.uint8, FULL)
        scale_ptr = typed_pointer(pointers[2 * i + 1], tl.uint8, FULL)
        moment = ops.fetch_moment(
            ptr, scale_ptr, start, offsets, mask, row, row_mask, halves, half_mask,
            FORMATS[i], FULL,
        )  # fmt: skip
        stored = stored + (moment,)
    for i in tl.static_range(len(EXTRAS)):
        if EXTRAS[i] == GIVEN_FP32:
            ptr = typed_pointer(given[i], tl.float32, FULL)
            stored = stored + (ops.load(ptr + start, offsets, mask, FULL),)
        elif EXTRAS[i] == GIVEN_BF16:
            ptr = typed_pointer(given[i], tl.bfloat16, FULL)
            stored = stored + (ops.load(ptr + start, offsets, mask, FULL),)
        else:
            stored = stored + (tl.zeros(offsets.shape, tl.float32),)
    return stored


@triton.jit
def decode_tile(
    stored,
    at,
    masters,
    factor,
    P_FORMAT: tl.constexpr,
    FORMATS: tl.constexpr,
    APART: tl.constexpr,
    EXTRAS: tl.constexpr,
    CODEC: tl.constexpr,
    SCALED: tl.constexpr,
    FULL: tl.constexpr,
):
    """What ``fetch_tile`` found, in fp32: parameter, gradient, and moments with the extra inputs
    behind them; of a moment APART its codes and its scales."""
    start, offsets, mask, row, row_mask, _, _, _ = at
    p = ops.decode_param(
        stored[0], masters, start, offsets, mask, row, row_mask, P_FORMAT, FULL, CODEC
    )
    g = ops.widen(stored[1], CODEC)
    if SCALED:
        g = g * factor
    moments = ()
    for i in tl.static_range(len(FORMATS)):
        code, byte = stored[2 + i]
        moments = moments + (ops.decode(code, byte, FORMATS[i], CODEC, APART[i]),)
    for i in tl.static_range(len(EXTRAS)):
        moments = moments + (ops.widen(stored[2 + len(FORMATS) + i], CODEC),)
    return p, g, moments


@triton.jit
def step_tile(
    stored,
    at,
    offset,
    p_ptr,
    pointers,
    masters,
    factor,
    scalars,
    found,
    keys,
    MATH: tl.constexpr,
    WORDS: tl.constexpr,
    NOISE: tl.constexpr,
    FIELDS: tl.constexpr,
    P_TYPE: tl.constexpr,
    P_FORMAT: tl.constexpr,
    FORMATS: tl.constexpr,
    APART: tl.constexpr,
    EXTRAS: tl.constexpr,
    CODEC: tl.constexpr,
    SCALED: tl.constexpr,
    EIGHT: tl.constexpr,
    FULL: tl.constexpr,
    BY_ROW: tl.constexpr,
    CUT: tl.constexpr,
    READ_KINDS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Decode a tile, step it, encode and store it."""
    start, offsets, mask, row, row_mask, halves, half_mask, further = at
    p, g, moments = decode_tile(
        stored, at, masters, factor, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, FULL
    )
    if BY_ROW:
        element = offset + offsets + further
        index, lane = element & -32, (element & 31).to(tl.int32)
    else:
        index = offset + start + row * 32
        if CUT:
            index += further
        lane = tl.arange(0, 32)[None, :]
    first = ops.hash_elements(index, lane, keys[0], keys[1])
    sign = ops.field(first, 0)
    if NOISE != FRESH:
        sign = ops.turned(sign, keys[2 * WORDS], NOISE)
    if NOISE == GOLDEN:
        first = ops.rehash(first, keys[2 * WORDS + 1], keys[2 * WORDS + 2])
    hashed = (first,)
    for w in tl.static_range(1, WORDS):
        hashed = hashed + (ops.hash_elements(index, lane, keys[2 * w], keys[2 * w + 1]),)
    if NOISE == ANTITHETIC:
        of_param = ops.multiplied(first, keys[2 * WORDS + 1])
    else:
        of_param = ops.field(first, 1)
    noise = ops.sign_noise(sign, CODEC)
    if len(READ_KINDS) > 0:
        scalars = scalars + tile_values(found, at, READ_KINDS, BLOCKS, FULL)
    p, moments = MATH(p, g, moments, scalars, noise, CODEC)
    ops.store_param(
        typed_pointer(p_ptr, P_TYPE, FULL),
        masters,
        start,
        offsets,
        p,
        of_param,
        mask,
        row,
        row_mask,
        P_FORMAT,
        FULL,
        CODEC,
        EIGHT,
    )
    for i in tl.static_range(len(FORMATS)):
        if NOISE == ANTITHETIC and FIELDS[i] < 3:
            field = ops.multiplied(first, keys[2 * WORDS + FIELDS[i]])
        else:
            field = ops.field(hashed[FIELDS[i] // 3], FIELDS[i] % 3)
        ops.store_moment(
            typed_pointer(pointers[2 * i], tl.uint8, FULL),
            typed_pointer(pointers[2 * i + 1], tl.uint8, FULL),
            start,
            offsets,
            moments[i],
            field,
            mask,
            row,
            row_mask,
            halves,
            half_mask,
            FORMATS[i],
            FULL,
            CODEC,
            BY_ROW,
        )


@triton.jit
def total_tile(
    stored,
    at,
    first,
    end,
    target,
    masters,
    factor,
    scalars,
    found,
    TOTALS: tl.constexpr,
    COUNT: tl.constexpr,
    P_FORMAT: tl.constexpr,
    FORMATS: tl.constexpr,
    APART: tl.constexpr,
    EXTRAS: tl.constexpr,
    CODEC: tl.constexpr,
    SCALED: tl.constexpr,
    FULL: tl.constexpr,
    READ_KINDS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """What a tile adds to COUNT totals: sums of blocks in fp32, and of PIECE blocks, which are
    stored, in float64, neighbours first; ``first``: its first element, ``end``: behind the last
    block's."""
    p, g, moments = decode_tile(
        stored, at, masters, factor, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, FULL
    )
    if len(READ_KINDS) > 0:
        scalars = scalars + tile_values(found, at, READ_KINDS, BLOCKS, FULL)
    sums = TOTALS(p, g, moments, scalars, CODEC)
    PIECES: tl.constexpr = ROWS // PIECE
    piece = first // (32 * PIECE) + tl.arange(0, PIECES)
    for i in tl.static_range(COUNT):
        x = tl.where(at[2], sums[i], 0.0)
        blocks = ops.tree_rows(x, ROWS, 32, SUM).to(tl.float64)
        made = ops.tree_rows(tl.reshape(blocks, [PIECES, PIECE]), PIECES, PIECE, SUM)
        ptr = target.to(tl.pointer_type(tl.float64)) + piece * COUNT + i
        tl.store(ptr, made, mask=piece * (32 * PIECE) < end)


@triton.jit
def step_kernel(
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
    BLOCKS: tl.constexpr,
    WORDS: tl.constexpr,
    NOISE: tl.constexpr,
    FIELDS: tl.constexpr,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    P_FORMAT: tl.constexpr,
    FORMATS: tl.constexpr,
    APART: tl.constexpr,
    EXTRAS: tl.constexpr,
    BY_ROW: tl.constexpr,
    CUT: tl.constexpr,
    CODEC: tl.constexpr,
    SCALED: tl.constexpr,
    EIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    TAIL: tl.constexpr,
    TILES: tl.constexpr,
    MODE: tl.constexpr,
    TOTALS: tl.constexpr,
    COUNT: tl.constexpr,
):
    """One program per chunk of TILES tiles, each fetched while the two before are stepped; a chunk
    that is not full or not aligned, or goes BY_ROW, is stepped TAIL rows at a time, with masks.

    COLUMNS: in a row of the table; OUTPUTS: how many scalars; READS, READ_MAPS and READ_KINDS:
    which values of stages it reads and how, BLOCKS by block (``values.py``); WORDS: words of random
    bits per element; NOISE: the sign's kind; FIELDS: which field of the words rounds each moment;
    EXTRAS: how extra inputs per element come; EIGHT: whether bf16 parameters are rounded eight at a
    time (``ptx.py``); BY_ROW and CUT: how rows lie (``ops.places``); MODE: whether it sums what
    TOTALS makes of an element as well (``total_tile``), or does that alone.
    """
    entry = table_entry(table, chunks, COLUMNS)
    start = chunk_start(chunks, TILES * ROWS * 32)
    active = tl.load(key_table) != 0  # one answer for the whole launch
    # What the table says about the tensor: all of it at once, before anything depends on it
    aligned = tl.load(entry + COLUMN_ALIGNED) != 0
    clock = tl.load(entry + COLUMN_CLOCK)
    offset = tl.load(entry + COLUMN_OFFSET)
    numel = tl.load(entry + COLUMN_NUMEL)
    p_ptr = tl.load(entry + COLUMN_PARAM)
    g_ptr = tl.load(entry + COLUMN_GRAD)
    pointers = state_pointers(entry, len(FORMATS))
    given = extra_pointers(entry, len(FORMATS), len(EXTRAS))
    masters = entry + (COLUMN_STATE + 2 * len(FORMATS))
    row = scalar_table + clock * (1 + OUTPUTS)
    factor = tl.load(row)
    scalars = load_scalars(row, OUTPUTS)
    found = ()
    if len(READS) > 0:
        tensor = tl.load(chunks + CHUNK_ENTRY * tl.program_id(0)).to(tl.int64)
        found = find_values(
            values + tensor * VALUES, maps + tensor * (2 * MAP_COUNT), READS, READ_MAPS, READ_KINDS
        )
    KEYS: tl.constexpr = 2 * WORDS + (0 if NOISE == FRESH else 3)
    keys = ()
    for i in tl.static_range(KEYS):
        keys = keys + (tl.load(key_table + clock * (1 + KEYS) + 1 + i),)
    length = numel
    pitch = numel
    if BY_ROW or CUT:
        length = tl.load(entry + COLUMN_ROW_LENGTH)
        pitch = tl.load(entry + COLUMN_PITCH)
    end = numel
    if BY_ROW:
        end = ops.block_elements(numel, length)
    left = end - start
    whole = aligned & (left >= TILES * ROWS * 32)
    if BY_ROW:
        whole = False
    target = start
    if MODE != STEPS:
        target = tl.load(entry + (COLUMN_STATE + 2 * len(FORMATS) + 2 + len(EXTRAS)))
    if not active:
        return
    if whole:
        at = ops.places(start, numel, length, pitch, ROWS, False, CUT)
        stored = fetch_tile(
            at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, True
        )
        next_at = at
        following = stored
        if TILES > 1:
            next_at = ops.places(start + ROWS * 32, numel, length, pitch, ROWS, False, CUT)
            following = fetch_tile(
                next_at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, True
            )
        for tile in tl.static_range(TILES):
            far_at = next_at
            far = following
            if tile + 2 < TILES:
                ahead = start + (tile + 2) * (ROWS * 32)
                far_at = ops.places(ahead, numel, length, pitch, ROWS, False, CUT)
                far = fetch_tile(
                    far_at, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, True
                )
            if MODE != STEPS:
                total_tile(
                    stored, at, start + tile * (ROWS * 32), end, target, masters, factor, scalars,
                    found, TOTALS, COUNT, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, True,
                    READ_KINDS, BLOCKS, ROWS, ROWS,
                )  # fmt: skip
            if MODE != SUMS_ALONE:
                step_tile(
                    stored, at, offset, p_ptr, pointers, masters, factor, scalars, found, keys,
                    MATH, WORDS, NOISE, FIELDS, P_TYPE, P_FORMAT, FORMATS, APART, EXTRAS, CODEC,
                    SCALED, EIGHT, True, False, CUT, READ_KINDS, BLOCKS,
                )  # fmt: skip
            at = next_at
            stored = following
            next_at = far_at
            following = far
    else:
        for first in range(0, ops.extent(left, TILES * ROWS * 32), TAIL * 32):
            place = ops.places(start + first, numel, length, pitch, TAIL, BY_ROW, CUT)
            tail = fetch_tile(
                place, p_ptr, g_ptr, pointers, given, P_TYPE, G_TYPE, FORMATS, EXTRAS, False
            )
            if MODE != STEPS:
                total_tile(
                    tail, place, start + first, end, target, masters, factor, scalars, found,
                    TOTALS, COUNT, P_FORMAT, FORMATS, APART, EXTRAS, CODEC, SCALED, False,
                    READ_KINDS, BLOCKS, TAIL, ROWS,
                )  # fmt: skip
            if MODE != SUMS_ALONE:
                step_tile(
                    tail, place, offset, p_ptr, pointers, masters, factor, scalars, found, keys,
                    MATH, WORDS, NOISE, FIELDS, P_TYPE, P_FORMAT, FORMATS, APART, EXTRAS, CODEC,
                    SCALED, EIGHT, False, BY_ROW, CUT, READ_KINDS, BLOCKS,
                )  # fmt: skip
