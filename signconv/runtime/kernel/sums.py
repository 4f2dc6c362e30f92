"""Sums over many tensors on a GPU, always by the same tree: what norms of all gradients need."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ops


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
