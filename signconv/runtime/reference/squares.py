"""Sums of squares of gradients in float64: for the norm of all of them (``runtime/totals.py``)."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime.formats import SQUARE_ROWS, SQUARE_WIDTH
from signconv.runtime.reference.reduce import tree_sum
from signconv.runtime.settings import has_float64

#: Pieces whose squares are there at once in float64: 16 MiB.
PIECES = 64


def square_sum(x: Tensor) -> Tensor:
    """Sum of the squares of a tensor, 0-dim float64, in the order that every backend has.

    Of a piece of SQUARE_ROWS rows the rows are added up one after the other, then the numbers of
    their sum neighbours first, as the pieces' sums are.  On the host where the tensor's device has
    no float64.
    """
    x = (x if has_float64(x.device) else x.to("cpu")).reshape(-1)
    size = SQUARE_ROWS * SQUARE_WIDTH
    whole = x.numel() // size * size
    sums = [_squares(part, SQUARE_ROWS) for part in x[:whole].split(PIECES * size) if whole]
    if whole < x.numel() or not whole:
        rest = x[whole:]
        rows = max(1, -(-rest.numel() // SQUARE_WIDTH))
        missing = rows * SQUARE_WIDTH - rest.numel()
        sums.append(_squares(torch.nn.functional.pad(rest, (0, missing)), rows))
    return tree_sum(torch.cat(sums))


def _squares(x: Tensor, rows: int) -> Tensor:
    """Sums of squares of pieces of so many rows."""
    squares = x.double().square().view(-1, rows, SQUARE_WIDTH)
    total = squares[:, 0]
    for row in range(1, rows):
        total = total + squares[:, row]
    while total.shape[1] > 1:
        total = total[:, 0::2] + total[:, 1::2]
    return total[:, 0]
