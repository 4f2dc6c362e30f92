"""Values of stages inside kernels: one number for a row, a column, … of a tensor, read where an
element needs it.

``values`` holds an address for each value of each tensor, ``maps`` two numbers for each kind of
place: ``span``, ``behind``, such that element e reads number e // span * behind + e % behind
(``axes.view``: span is reduced * behind).
"""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel.constants import CONTIGUOUS, ONE, SAME, SIGN, WALKED


@triton.jit
def find_values(values, maps, COLUMNS: tl.constexpr, MAPS: tl.constexpr, KINDS: tl.constexpr):
    """What the tables say of the values that a kernel reads, for one tensor."""
    found = ()
    for i in tl.static_range(len(COLUMNS)):
        address = tl.load(values + COLUMNS[i])
        span = address * 0
        behind = span
        if KINDS[i] != ONE and KINDS[i] != SAME and KINDS[i] != SIGN:
            span = tl.load(maps + 2 * MAPS[i])
            behind = tl.load(maps + 2 * MAPS[i] + 1)
        found = found + ((address, span, behind),)
    return found


@triton.jit
def tile_values(found, at, KINDS: tl.constexpr, BLOCKS: tl.constexpr, FULL: tl.constexpr):
    """The values of a tile (``ops.places``): one number, [ROWS, 1] or [ROWS, 32].

    BLOCKS: spans are whole blocks of 32 elements, and a block reads one number or 32 neighbours.
    """
    start, offsets, mask, row, row_mask, _, _, _ = at
    made = ()
    for i in tl.static_range(len(KINDS)):
        address, span, behind = found[i]
        ptr = address.to(tl.pointer_type(tl.float32))
        if KINDS[i] == ONE:
            made = made + (tl.load(ptr),)
        elif KINDS[i] == WALKED:
            made = made + (span,)  # ``walked_values``
        elif KINDS[i] == SIGN:
            signs = tl.multiple_of(address.to(tl.pointer_type(tl.bfloat16)), 16) + start
            if FULL:
                made = made + (tl.load(signs + offsets).to(tl.float32),)
            else:
                made = made + (tl.load(signs + offsets, mask=mask, other=0.0).to(tl.float32),)
        elif BLOCKS:
            block = (start // 32).to(tl.int32) + row.to(tl.int32)
            line = block // (span // 32).to(tl.int32)
            if KINDS[i] == CONTIGUOUS:
                if FULL:
                    x = tl.load(ptr + line)
                else:
                    x = tl.load(ptr + line, mask=row_mask, other=0.0)
            else:
                ptr = tl.multiple_of(ptr, 16)
                across = (behind // 32).to(tl.int32)
                place = (line * across + block % across) * 32 + tl.arange(0, 32)[None, :]
                if FULL:
                    x = tl.load(ptr + place)
                else:
                    x = tl.load(ptr + place, mask=row_mask, other=0.0)
            made = made + (x,)
        else:
            element = start + offsets
            place = element // span * behind + element % behind
            made = made + (tl.load(ptr + place, mask=mask, other=0.0),)
    return made


@triton.jit
def walked_values(found, place, KINDS: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr):
    """``found``, with those values loaded that stay the same along a walk: ROWS rows of 32 * ACROSS
    neighbours from ``place`` on, as a tile of blocks [ROWS * ACROSS, 32]."""
    made = ()
    for i in tl.static_range(len(KINDS)):
        address, span, behind = found[i]
        if KINDS[i] == WALKED:
            ptr = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)
            block = (tl.arange(0, ROWS * ACROSS) % ACROSS)[:, None]
            span = tl.load(ptr + place + (block * 32 + tl.arange(0, 32)[None, :]))
        made = made + ((address, span, behind),)
    return made


@triton.jit
def line_values(found, number, mask, KINDS: tl.constexpr):
    """The values that numbers [N] of one kind of place read, by their ``number``."""
    made = ()
    for i in tl.static_range(len(KINDS)):
        address, span, behind = found[i]
        ptr = address.to(tl.pointer_type(tl.float32))
        if KINDS[i] == ONE:
            made = made + (tl.load(ptr),)
        elif KINDS[i] == SAME:
            made = made + (tl.load(ptr + number, mask=mask, other=0.0),)
        else:
            place = number // span * behind + number % behind
            made = made + (tl.load(ptr + place, mask=mask, other=0.0),)
    return made
