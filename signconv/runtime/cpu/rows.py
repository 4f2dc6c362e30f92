"""A row of 32 elements in memory, and its random bits, as ``Lanes``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from llvmlite import ir

from signconv.runtime.cpu.lanes import LLVM, Lanes
from signconv.runtime.cpu.trace import Trace
from signconv.runtime.formats import BLOCK
from signconv.runtime.program import OptimizerProgram, lasting
from signconv.runtime.reference.random_bits import Word, lasting_word, signed32


class Stored(Lanes):
    """A row in memory: read where it is made, written by ``copy_``.

    share: how many elements share a number there.
    """

    def __init__(
        self, trace: Trace, dtype: torch.dtype, pointer: Any, wide: bool = True, share: int = 1
    ) -> None:
        self.pointer, self.share = pointer, share

        def load(part: int) -> Any:
            kind = LLVM[dtype]
            if wide:
                kind = ir.VectorType(kind, trace.width // share)
            made = trace.builder.load(self._place(part), typ=kind)
            made.align = dtype.itemsize
            return made

        super().__init__(trace, dtype, wide, load)

    def _place(self, part: int) -> Any:
        first = ir.Constant(LLVM[torch.int64], part * self.trace.width // self.share)
        return self.trace.builder.gep(self.pointer, [first], source_etype=LLVM[self.dtype])

    def view(self, *shape: Any) -> Lanes:
        return self if not isinstance(shape[0], torch.dtype) else super().view(*shape)

    def copy_(self, x: Lanes) -> None:
        """Write the row; the elements must have the dtype they are stored in."""
        if x.dtype != self.dtype:
            raise NotImplementedError(f"the CPU backend cannot store {x.dtype} as {self.dtype}")

        def store(part: int, value: Any) -> Any:
            b, place = self.trace.builder, self._place(part)
            if self.trace.inside and self.wide:  # behind a row's last element others' lie
                there = b.load(place, typ=value.type)
                there.align = self.dtype.itemsize
                value = b.select(self.trace.inside[self.share][part], value, there)
            return b.store(value, place, align=self.dtype.itemsize)

        if self.trace.storing:
            Lanes(self.trace, self.dtype, self.wide, store, x)


def random_words(
    trace: Trace, index: Any, keys: Sequence[Any], program: OptimizerProgram, anywhere: bool
) -> list[Word]:
    """A step's random bits of the row that starts at global element ``index`` (i64); the twin of
    ``reference.ops.draw_words``.  anywhere: the index may be no multiple of 32."""
    start = _anywhere if anywhere else _on_block
    element = start(trace, index)
    words = [_word(trace, *element, *keys[2 * w : 2 * w + 2]) for w in range(program.words)]
    if lasting(program.noise):
        rest: Any = [trace.uniform(torch.int32, k) for k in keys[2 * program.words :]]
        words[0] = lasting_word(words[0], program.noise, *rest)
    return words


def _on_block(trace: Trace, index: Any) -> tuple[Lanes, Lanes, Lanes]:
    """Of the elements from ``index`` on, a multiple of 32: lower and upper half of the index of
    their 32, and their place in it."""
    b, width, i32 = trace.builder, trace.width, LLVM[torch.int32]
    high = trace.uniform(torch.int32, b.trunc(b.lshr(index, ir.Constant(index.type, 32)), i32))
    low = trace.uniform(torch.int32, b.trunc(index, i32))

    def numbers(part: int) -> Any:
        return ir.Constant(ir.VectorType(i32, width), [part * width + i for i in range(width)])

    return low, high, Lanes(trace, torch.int32, True, numbers)


def _anywhere(trace: Trace, index: Any) -> tuple[Lanes, Lanes, Lanes]:
    """As ``_on_block``, from any index on: the elements may be of two blocks of 32 indices."""
    first, high, lane = _on_block(trace, index)
    low = first + lane
    # A sum below 32 in its upper bits' place has carried into the upper half
    carried = ((low >> 5) == 0) & ((first >> 5) != 0)
    return low & -BLOCK, high + carried.to(torch.int32), low & (BLOCK - 1)


def _word(trace: Trace, low: Lanes, high: Lanes, place: Lanes, key0: Any, key1: Any) -> Word:
    row = (low ^ trace.uniform(torch.int32, key0)) + high * signed32(0x9E3779B9)
    x = (row ^ row._bitwise(16, "lshr")) ^ place
    x = x * 0x7FEB352D
    hashed: Any = x ^ x._bitwise(15, "lshr") ^ trace.uniform(torch.int32, key1)
    return Word(hashed)
