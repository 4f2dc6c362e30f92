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
    memory: where each begins; call(number of the first row in the chunk, places, the first
    element's number among all, elements per row, rows, how far those lie apart); short(number,
    places, element, elements) for fewer than a row has.
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

    def partial_rows(self, first: Any, most: Any, numel: Any, length: Any, pitch: Any) -> Any:
        """Step a chunk from block ``first`` on, where each ``length`` elements may end in a partial
        block and are numbered ``pitch`` apart; returns how many blocks it has.

        A partial block is read and written as a whole one, with what lies behind it as it is: up to
        the chunk's end, behind which another thread may be at work.
        """
        b = self.b
        zero, one, block = (ir.Constant(I64, n) for n in (0, 1, BLOCK))
        half = b.sdiv(b.add(length, one), ir.Constant(I64, 2))  # bytes of a row of two codes each
        whole, rest = b.sdiv(length, block), b.srem(length, block)
        partial = b.icmp_signed(">", rest, zero)
        per_row = b.add(whole, b.zext(partial, I64))
        total = b.mul(b.sdiv(numel, length), per_row)
        end = self._least(b.add(first, most), total)

        def at(row: Any, column: Any) -> tuple[Any, Any]:
            element = b.add(b.mul(row, length), pieces.times(b, column, BLOCK))
            return element, b.add(b.mul(row, half), pieces.times(b, column, BLOCK // 2))

        def places(row: Any, column: Any) -> tuple[Any, list[Any]]:
            element, byte = at(row, column)
            number = b.add(b.mul(row, per_row), column)
            among = b.add(b.mul(row, pitch), pieces.times(b, column, BLOCK))
            return among, self._places(element, number, byte)

        last, behind = at(b.sdiv(end, per_row), b.srem(end, per_row))

        def fits(row: Any, column: Any) -> Any:
            """Whether a whole block from there on lies in the chunk."""
            element, byte = at(row, column)
            enough = b.icmp_signed("<=", b.add(element, block), last)
            return b.and_(
                enough, b.icmp_signed("<=", b.add(byte, ir.Constant(I64, BLOCK // 2)), behind)
            )

        begin, until = b.sdiv(first, per_row), b.add(b.sdiv(b.sub(end, one), per_row), one)
        with b.if_else(b.icmp_signed("==", whole, zero)) as (short, long):
            with short:  # all rows that fit in one call
                room = b.sdiv(b.sub(last, block), length)
                room = self._least(room, b.sdiv(b.sub(behind, ir.Constant(I64, BLOCK // 2)), half))
                many = b.sub(self._least(b.add(room, one), until), begin)
                some = b.and_(fits(begin, zero), b.icmp_signed(">", many, zero))
                many = b.select(some, many, zero)
                element, where = places(begin, zero)
                lanes = b.trunc(length, I32)
                self.call(zero, where, element, lanes, many, (length, half, pitch))
                with pieces.loop(b, b.sub(b.sub(until, begin), many)) as i:
                    row = b.add(b.add(begin, many), i)
                    element, where = places(row, zero)
                    self.short(b.sub(row, first), where, element, length)
            with long, pieces.loop(b, b.sub(until, begin)) as i:
                row = b.add(begin, i)
                left = b.mul(row, per_row)  # the row's first block
                low, high = b.sub(first, left), b.sub(end, left)
                low = b.select(b.icmp_signed(">", low, zero), low, zero)
                some = b.sub(self._least(high, whole), low)
                with b.if_then(b.icmp_signed(">", some, zero)):
                    element, where = places(row, low)
                    here = b.sub(b.add(left, low), first)
                    self.call(here, where, element, ir.Constant(I32, BLOCK), some)
                with b.if_then(b.and_(partial, b.icmp_signed(">", high, whole))):
                    element, where = places(row, whole)
                    here = b.sub(b.add(left, whole), first)
                    with b.if_else(fits(row, whole)) as (inside, outside):
                        with inside:
                            self.call(here, where, element, b.trunc(rest, I32), one)
                        with outside:
                            self.short(here, where, element, rest)
        return b.sub(end, first)

    def _least(self, x: Any, y: Any) -> Any:
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

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
