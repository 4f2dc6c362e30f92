"""What goes before the products of a matrix sign on a GPU: norms of matrices, and their start."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton

#: Elements that a program reads at once, and how often.
PIECE, LOOPS = 1024, 8


@triton.jit
def _square_pieces(x, partials, size, apart, pieces, N: tl.constexpr, LOOPS: tl.constexpr):
    """Sums of squares, float64, of LOOPS * N elements of a matrix each."""
    pid = tl.program_id(0).to(tl.int64)
    matrix, piece = pid // pieces, pid % pieces
    total = tl.zeros([N], tl.float64)
    for i in range(LOOPS):
        place = (piece * LOOPS + i) * N + tl.arange(0, N)
        value = tl.load(x + matrix * apart + place, mask=place < size, other=0.0).to(tl.float64)
        total += value * value
    tl.store(partials + pid, tl.sum(total))


@triton.jit
def _start(x, factors, result, size, apart, pieces, N: tl.constexpr, LOOPS: tl.constexpr):
    """bf16 of each matrix times its factor."""
    pid = tl.program_id(0).to(tl.int64)
    matrix, piece = pid // pieces, pid % pieces
    factor = tl.load(factors + matrix)
    for i in range(LOOPS):
        place = (piece * LOOPS + i) * N + tl.arange(0, N)
        value = tl.load(x + matrix * apart + place, mask=place < size, other=0.0)
        tl.store(result + matrix * size + place, (value * factor).to(tl.bfloat16), place < size)


def _pieces(x: Tensor) -> tuple[int, int]:
    """Elements of each of [matrices, rows, columns], and programs that they take."""
    size = x.shape[1] * x.shape[2]
    return size, -(-size // (PIECE * LOOPS))


def squares(x: Tensor) -> Tensor:
    """Sums of squares, float64 [matrices], of fp32 [matrices, rows, columns], each contiguous."""
    size, pieces = _pieces(x)
    partials = torch.empty((len(x), pieces), dtype=torch.float64, device=x.device)
    grid = (len(x) * pieces,)
    _square_pieces[grid](x, partials, size, x.stride(0), pieces, PIECE, LOOPS, num_warps=4)
    return partials.sum(dim=1)


def started(x: Tensor, factors: Tensor) -> Tensor:
    """bf16 of fp32 [matrices, rows, columns], each contiguous, times fp32 [matrices]."""
    size, pieces = _pieces(x)
    made = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    grid = (len(x) * pieces,)
    _start[grid](x, factors, made, size, x.stride(0), pieces, PIECE, LOOPS, num_warps=4)
    return made
