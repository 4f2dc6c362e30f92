"""Which elements of a tensor a reduction runs over, and the shape of what it leaves.

A tensor of fewer than two dimensions counts as a matrix of one row.  Reduced dimensions are kept
with one element, so that results broadcast against what they were made of.  The last dimension is
cut into blocks of 32; where that does not come out even, all of a row is one block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Elements of one row that share a block scale (OCP MX block size).
BLOCK = 32
#: How messages and docs write them: all elements, blocks of the last dimension, all of it, the one
#: before it, both, the first, and all but the first.  "" is the whole tensor.
NOTATION = {
    "": "",
    "block": '"block"',
    "last": "-1",
    "second_last": "-2",
    "matrix": "(-2, -1)",
    "first": "0",
    "rest": "(1, ...)",
}
#: What is not reduced at all.
ELEMENTS = "elements"
#: Of elements these are reduced in steps, not from neighbour to neighbour.
STRIDED = frozenset({"second_last", "first"})
#: Names in the order of the codes by which kernels know them.
AXES = (ELEMENTS, *NOTATION)
#: For each the others that reduce all of its dimensions and more, whatever the number of those.
_ABOVE = {
    ELEMENTS: frozenset(NOTATION),
    "block": frozenset({"", "last", "matrix", "rest"}),
    "last": frozenset({"", "matrix", "rest"}),
    "second_last": frozenset({"", "matrix"}),
    "matrix": frozenset({""}),
    "first": frozenset({""}),
    "rest": frozenset({""}),
    "": frozenset[str](),
}
#: What is left of what was reduced once already.
_TWICE = {
    frozenset({"last", "second_last"}): "matrix",
    frozenset({"first", "rest"}): "",
}


def joined(a: str, b: str) -> str:
    """Of what numbers of two kinds make together: one number for how much of a tensor."""
    if a == b or a in _ABOVE[b]:
        return b
    return a if b in _ABOVE[a] else ELEMENTS


def reduced(source: str, over: str) -> str | None:
    """What a reduction of ``source`` over ``over`` leaves; None where nothing is left to reduce, or
    it is of a kind that has no name."""
    if source == ELEMENTS or over in _ABOVE[source]:
        return over
    return _TWICE.get(frozenset({source, over}))


def _span(over: str, dims: int) -> range:
    """The dimensions that are reduced, of at least three, of which blocks and what is in each are
    the last two."""
    spans = {
        ELEMENTS: range(0),
        "": range(dims),
        "block": range(dims - 1, dims),
        "last": range(dims - 2, dims),
        "second_last": range(dims - 3, dims - 2),
        "matrix": range(dims - 3, dims),
        "first": range(1),
        "rest": range(1, dims),
    }
    return spans[over]


def broadcast(shape: Sequence[int], over: str) -> list[int]:
    """The shape of what a reduction leaves of a tensor of at least two dimensions whose last is
    seen as [blocks, elements of each]."""
    full = [1] * (2 - len(shape)) + [*shape]
    width = full[-1] if full[-1] % BLOCK else BLOCK
    full[-1:] = [full[-1] // width, width]
    span = _span(over, len(full))
    return [1 if i in span else n for i, n in enumerate(full)]


def kept(shape: Sequence[int], over: str) -> list[int]:
    """The shape of what a reduction of a tensor leaves, its dimensions kept: of a row as many
    numbers as it has blocks, where these are reduced."""
    *before, blocks, width = broadcast(shape, over)
    return [*before, blocks * width][max(0, 2 - len(shape)) :]


def bytes_of_kept(over: str) -> float:
    """Bytes an element of a state that is one fp32 number ``over`` some dimensions, where rows are
    multiples of 32: rows and what is longer count for nothing."""
    return 4 / BLOCK if over == "block" else 0.0


def view(shape: Sequence[int], source: str, over: str) -> tuple[int, int, int]:
    """(before, reduced, behind): as what the flat numbers of ``source`` are seen to reduce them
    over ``over``."""
    dims = broadcast(shape, source)
    span = _span(over, len(dims))
    behind = math.prod(dims[span.stop :])
    length = math.prod(dims[i] for i in span)
    return math.prod(dims[: span.start]), length, behind


def matrices(shape: Sequence[int], over: str) -> tuple[int, int, int]:
    """(matrices, rows, columns) that a tensor is: "": one, its first dimension against all others,
    a vector being one row; "matrix": its last two dimensions are one each."""
    full = [1] * (2 - len(shape)) + [*shape]
    if over == "matrix":
        return math.prod(full[:-2]), full[-2], full[-1]
    return 1, full[0], math.prod(full[1:])
