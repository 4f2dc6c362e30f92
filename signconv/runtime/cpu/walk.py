"""Which rows of 32 elements a chunk has, and where they lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from llvmlite import ir

from signconv.runtime.cpu import pieces
from signconv.runtime.cpu.lanes import LLVM
from signconv.runtime.cpu.pieces import I32, I64
from signconv.runtime.formats import BLOCK


@dataclass(frozen=True)
class Walk:
    """Writes the calls that step a chunk.

    pointers: name, column, dtype and how many elements share a number, of everything stored;
    memory: where each begins; call(number of the first row in the chunk, places, first element,
    elements per row, rows); short(number, places, element, elements) for fewer than a row has.
    """

    b: Any
    pointers: Sequence[tuple[str, int, torch.dtype, int]]
    memory: Sequence[Any]
    scaled: bool
    call: Callable[..., None]
    short: Callable[..., None]

    def whole_rows(self, first: Any, most: Any, numel: Any) -> Any:
        """Step a chunk from row ``first`` on; returns how many rows it has.

        The last elements are no row where nothing has block scales.
        """
        b, call = self.b, self.call
        element = pieces.times(b, first, BLOCK)
        left, most = b.sub(numel, element), pieces.times(b, most, BLOCK)
        here = b.select(b.icmp_signed("<", left, most), left, most)
        whole, tail = b.sdiv(here, ir.Constant(I64, BLOCK)), b.srem(here, ir.Constant(I64, BLOCK))
        zero = ir.Constant(I64, 0)
        call(zero, self._places(element, first), element, ir.Constant(I32, BLOCK), whole)
        some = b.icmp_signed(">", tail, zero)
        if not self.scaled:
            with b.if_then(some, likely=False):
                end = b.add(element, pieces.times(b, whole, BLOCK))
                self.short(whole, self._places(end, zero), end, tail)
        return b.add(whole, b.zext(some, I64))

    def partial_rows(self, first: Any, most: Any, numel: Any, length: Any) -> Any:
        """Step a chunk from block ``first`` on, where each ``length`` elements end in a partial
        block; returns how many blocks it has."""
        b, call = self.b, self.call
        block, one = ir.Constant(I64, BLOCK), ir.Constant(I64, 1)
        whole, rest = b.sdiv(length, block), b.srem(length, block)
        per_row = b.add(whole, one)
        total = b.mul(b.sdiv(numel, length), per_row)
        end = b.add(first, most)
        end = b.select(b.icmp_signed("<", end, total), end, total)
        begin = b.sdiv(first, per_row)
        count = b.sub(b.sdiv(b.sub(end, one), per_row), b.sub(begin, one))
        with pieces.loop(b, count) as i:
            row = b.add(begin, i)
            left = b.mul(row, per_row)  # the row's first block
            low, high = b.sub(first, left), b.sub(end, left)
            low = b.select(b.icmp_signed(">", low, ir.Constant(I64, 0)), low, ir.Constant(I64, 0))
            full = b.select(b.icmp_signed("<", high, whole), high, whole)
            some = b.sub(full, low)

            def at(column: Any, row: Any = row, left: Any = left) -> tuple[Any, list[Any]]:
                element = b.add(b.mul(row, length), pieces.times(b, column, BLOCK))
                halves = b.mul(row, b.sdiv(b.add(length, one), ir.Constant(I64, 2)))
                halves = b.add(halves, pieces.times(b, column, BLOCK // 2))
                return element, self._places(element, b.add(left, column), halves)

            with b.if_then(b.icmp_signed(">", some, ir.Constant(I64, 0))):
                element, places = at(low)
                here = b.sub(b.add(left, low), first)
                call(here, places, element, ir.Constant(I32, BLOCK), some)
            with b.if_then(b.icmp_signed(">", high, whole)):
                element, places = at(whole)
                self.short(b.sub(b.add(left, whole), first), places, element, rest)
        return b.sub(end, first)

    def _places(self, element: Any, block: Any, halves: Any = None) -> list[Any]:
        """Where an element's row of 32 begins in everything that is stored; ``halves``: its byte
        among packed codes."""
        b = self.b
        if halves is None:
            halves = b.sdiv(element, ir.Constant(I64, 2))
        number = {1: element, 2: halves, BLOCK: block}
        return [
            pieces.at(b, base, number[share], LLVM[dtype])
            for base, (_, _, dtype, share) in zip(self.memory, self.pointers, strict=True)
        ]
