"""Sums in PyTorch, and what is made of a tensor's sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from signconv.runtime.formats import SQUARE_ROWS, SQUARE_WIDTH
from signconv.runtime.reference.arithmetic import sqrt
from signconv.runtime.settings import has_float64


def tree_sum(x: Tensor) -> Tensor:
    """Sum of a flat tensor, neighbours first, as a tree that depends on nothing but the length."""
    if has_torch_function_unary(x):
        return handle_torch_function(tree_sum, (x,), x)
    while x.numel() > 1:
        if x.numel() % 2:
            x = torch.cat((x, x.new_zeros(1)))
        x = x[0::2] + x[1::2]
    return x.reshape(())


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
    sums = [_squares(part, SQUARE_ROWS) for part in x[:whole].split(PIECES * size)] if whole else []
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


def norm_of_sum(total: Tensor, numel: int) -> Tensor:
    """The Euclidean norm from the sum of squares."""
    if has_torch_function_unary(total):
        return handle_torch_function(norm_of_sum, (total,), total, numel)
    return sqrt(total)


def mean_of_sum(total: Tensor, numel: int) -> Tensor:
    """The mean from the sum."""
    if has_torch_function_unary(total):
        return handle_torch_function(mean_of_sum, (total,), total, numel)
    return torch.div(total, torch.tensor(numel, dtype=torch.float32, device=total.device))
