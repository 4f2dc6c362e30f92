"""The table of tensors: what a kernel of any backend knows of a tensor, one row of int64 each.

Engines on the host write it, kernels read it; both take places and widths from here.  A second
table lists chunks: (tensor, chunk of it) for every program of a launch.

ROW_LENGTH and PITCH are read where rows end in partial blocks, or where a tensor is some columns of
an unsharded one: element numbers are those of the unsharded tensor, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from signconv.runtime.formats import CHECK, MASTER, PLAIN, SPLIT, WHOLE
from signconv.runtime.program import OptimizerProgram


class Column(IntEnum):
    """Places in a row of the table."""

    # Written when tensors or clocks change, read by every kernel
    CLOCK = 0  #: row of its step count, scalars and random keys
    ALIGNED = 1  #: 1 where every pointer is a multiple of 16; Triton's step reads it
    OFFSET = 2  #: index of its first element among all, where its random numbers start
    NUMEL = 3
    ROW_LENGTH = 4  #: elements of one of its rows …
    PITCH = 5  #: … and of the unsharded tensor's
    # Pointers, compared or written every step
    PARAM = 6
    GRAD = 7
    STATE = 8  #: two for each moment, to codes and scales (the same twice where there are none),
    #: then two for a master weight, one for each extra input per element, and one to the partial
    #: sums of totals


#: Pointers of a master weight: none, the rests of its bits and their checksums, or its fp32 values.
_MASTERS = {PLAIN: (), SPLIT: (MASTER, CHECK), WHOLE: (MASTER, MASTER)}


def width(moments: int, more: int = 0) -> int:
    """int64 numbers in a row for a program with so many stored moments, and ``more`` behind the
    master weight: a power of two, so that a kernel finds a row by a shift."""
    return 1 << (extra_column(moments) + more - 1).bit_length()


def extra_column(moments: int) -> int:
    """The column of the first extra input."""
    return Column.STATE + 2 * moments + 2


def totals_column(program: OptimizerProgram) -> int:
    """The column of the partial sums."""
    return extra_column(len(program.moments)) + len(program.tensors)


def columns(program: OptimizerProgram) -> int:
    """``width`` of a program."""
    return width(len(program.moments), len(program.tensors) + (program.totals is not None))


def state_names(program: OptimizerProgram, param_format: int = PLAIN) -> list[str]:
    """Which tensors of ``state[p]`` the columns from STATE point to, in order."""
    names: list[str] = []
    for m in program.moments:
        names += [m.name, f"{m.name}_scale" if m.stored.scaled else m.name]
    return [*names, *_MASTERS[param_format]]


def chunks(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """For tensors of so many chunks each: (tensor, chunk within it) of every chunk, int64 on the
    CPU."""
    n = torch.tensor(counts, dtype=torch.int64, device="cpu")
    tensor_of = torch.repeat_interleave(_numbers(len(counts)), n)
    starts = torch.repeat_interleave(n.cumsum(0) - n, n)
    return tensor_of, _numbers(len(tensor_of)) - starts


def _numbers(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64, device="cpu")
