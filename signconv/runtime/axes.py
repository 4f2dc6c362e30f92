"""Which elements of a tensor a reduction runs over, and the shape of what it leaves.

A tensor of fewer than two dimensions counts as a matrix of one row.  Reduced dimensions are kept
with one element, so that results broadcast against what they were made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: How messages and docs write them: all elements, the last dimension, the one before it, both, the
#: first, and all but the first.  "" is the whole tensor.
NOTATION = {
    "": "",
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
    """The dimensions that are reduced, of at least two."""
    spans = {
        ELEMENTS: range(0),
        "": range(dims),
        "last": range(dims - 1, dims),
        "second_last": range(dims - 2, dims - 1),
        "matrix": range(dims - 2, dims),
        "first": range(1),
        "rest": range(1, dims),
    }
    return spans[over]


def _padded(shape: Sequence[int]) -> list[int]:
    return [1] * (2 - len(shape)) + [*shape]


def kept(shape: Sequence[int], over: str) -> list[int]:
    """The shape of what a reduction of a tensor leaves, its dimensions kept."""
    full = _padded(shape)
    span = _span(over, len(full))
    made = [1 if i in span else n for i, n in enumerate(full)]
    return made[len(full) - len(shape) :]


def broadcast(shape: Sequence[int], over: str) -> list[int]:
    """``kept``, with at least two dimensions."""
    return kept(_padded(shape), over)


def view(shape: Sequence[int], source: str, over: str) -> tuple[int, int, int]:
    """(before, reduced, behind): as what the flat numbers of ``source`` are seen to reduce them
    over ``over``."""
    dims = broadcast(shape, source)
    span = _span(over, len(dims))
    behind = math.prod(dims[span.stop :])
    length = math.prod(dims[i] for i in span)
    return math.prod(dims[: span.start]), length, behind
