"""Sums over many tensors on a GPU, always by the same tree: what norms of all gradients need, and
those of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ops

#: Elements that a program of ``_square_pieces`` reads at once, and how often.
PIECE, LOOPS = 1024, 8


@triton.jit
def _combine(source, target, blocks, WIDTH: tl.constexpr, N: tl.constexpr, LEVELS: tl.constexpr):
    """Sum up to N neighbouring partial sums of one tensor; ``blocks`` holds (first, count)."""
    pid = tl.program_id(0)
    first = tl.load(blocks + 2 * pid)
    i = tl.arange(0, N)
    inside = i < tl.load(blocks + 2 * pid + 1)
    for which in tl.static_range(WIDTH):
        x = tl.load(source + (first + i) * WIDTH + which, mask=inside, other=0.0)
        total = ops.tree_sum(x, N, LEVELS)
        tl.store(target + pid * WIDTH + which + tl.arange(0, 1), total)


class Reducer:
    """Per-tensor sums: partial sums of chunks, then trees over 1,024 of them until one is left."""

    FAN_IN, LEVELS = 1024, 10

    def __init__(
        self,
        counts: list[int],
        width: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.width = width
        self.tables: list[Tensor] = []
        self.buffers = [torch.empty((sum(counts), width), dtype=dtype, device=device)]
        while not self.tables or max(counts) > 1:
            table, begin = [], 0
            for n in counts:
                table += [(begin + i, min(self.FAN_IN, n - i)) for i in range(0, n, self.FAN_IN)]
                begin += n
            counts = [-(-n // self.FAN_IN) for n in counts]
            self.tables.append(torch.tensor(table, dtype=torch.int64, device=device))
            shape = len(table), width
            self.buffers.append(torch.empty(shape, dtype=dtype, device=device))

    @property
    def partials(self) -> Tensor:
        """Where the reduce kernel puts one row per chunk."""
        return self.buffers[0]

    def run(self) -> Tensor:
        """Sums [tensors, width] from the partial sums."""
        for table, source, target in zip(self.tables, self.buffers, self.buffers[1:], strict=False):
            _combine[(len(table),)](
                source, target, table, self.width, self.FAN_IN, self.LEVELS, num_warps=4
            )
        return self.buffers[-1]


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


def matrix_squares(x: Tensor) -> Tensor:
    """Sums of squares, float64 [matrices], of fp32 [matrices, rows, columns], each contiguous."""
    count, size = len(x), x.shape[1] * x.shape[2]
    pieces = -(-size // (PIECE * LOOPS))
    partials = torch.empty((count, pieces), dtype=torch.float64, device=x.device)
    _square_pieces[(count * pieces,)](
        x, partials, size, x.stride(0), pieces, PIECE, LOOPS, num_warps=4
    )
    return partials.sum(dim=1)
