"""Small runs of LLVM instructions that kernels are put together from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from llvmlite import ir

from signconv.runtime.cpu.lanes import POINTER, spread
from signconv.runtime.formats import BLOCK

#: Rows of 32 elements per chunk where sums are taken (a power of two, for their tree), and at least
#: elsewhere.
CHUNK_LEVELS = 9
CHUNK_ROWS = 1 << CHUNK_LEVELS

I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))
F32, VOID = ir.FloatType(), ir.VoidType()


def at(b: Any, pointer: Any, i: Any, element: Any) -> Any:
    if isinstance(i, int):
        i = ir.Constant(I64, i)
    return b.gep(pointer, [i], source_etype=element)


def stack(b: Any, size: int) -> Any:
    room = b.alloca(ir.ArrayType(I8, size))
    room.align = 64
    room.type = POINTER  # llvmlite makes it a typed one, which LLVM has no more
    return room


def load_all(b: Any, pointer: Any, n: int, element: Any) -> list[Any]:
    return [b.load(at(b, pointer, i, element), typ=element) for i in range(n)]


def times(b: Any, x: Any, n: int) -> Any:
    return b.mul(x, ir.Constant(I64, n))


@contextmanager
def loop(b: Any, count: Any) -> Iterator[Any]:
    """for i in range(count)."""
    function = b.function
    before = b.block
    head, body, end = (function.append_basic_block(n) for n in ("head", "body", "end"))
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(I64)
    i.add_incoming(ir.Constant(I64, 0), before)
    b.cbranch(b.icmp_signed("<", i, count), body, end)
    b.position_at_end(body)
    yield i
    i.add_incoming(b.add(i, ir.Constant(I64, 1)), b.block)
    b.branch(head)
    b.position_at_end(end)


def bytes_of(b: Any, elements: Any, dtype: torch.dtype, share: int) -> Any:
    """Bytes of so many elements of one block, of which ``share`` have a number together."""
    more = b.add(elements, ir.Constant(I64, share - 1))
    return times(b, b.sdiv(more, ir.Constant(I64, share)), dtype.itemsize)


def part(b: Any, inside: Any, part: int, n: int) -> Any:
    """The mask of one part of a row."""
    mine = ir.Constant(ir.VectorType(I32, n), [part * n + j for j in range(n)])
    return b.shuffle_vector(inside, ir.Constant(inside.type, ir.Undefined), mine)


def inside(b: Any, lanes: Any) -> Any:
    """Which of 32 elements exist."""
    numbers = ir.Constant(ir.VectorType(I32, BLOCK), list(range(BLOCK)))
    return b.icmp_signed("<", numbers, spread(b, lanes, BLOCK))


def row_sum(b: Any, parts: list[Any], inside: Any) -> Any:
    """The tree of ``reference.ops.tree_sum`` over one row: neighbours first."""
    sums = []
    for i, value in enumerate(parts):
        n = value.type.count
        zeros = ir.Constant(value.type, [0.0] * n)
        value = b.select(part(b, inside, i, n), value, zeros)
        while n > 1:
            n //= 2
            even, odd = (
                ir.Constant(ir.VectorType(I32, n), [2 * j + k for j in range(n)]) for k in (0, 1)
            )
            none = ir.Constant(value.type, ir.Undefined)
            value = b.fadd(b.shuffle_vector(value, none, even), b.shuffle_vector(value, none, odd))
        sums.append(b.extract_element(value, ir.Constant(I32, 0)))
    while len(sums) > 1:
        sums = [b.fadd(x, y) for x, y in zip(sums[0::2], sums[1::2], strict=True)]
    return sums[0]


def open_sums(b: Any, sums: Any, which: int) -> Any:
    return at(b, sums, which * (CHUNK_LEVELS + 1), F32)


def add_open(b: Any, sums: Any, r: Any, x: Any) -> None:
    """The same tree over the rows of a chunk, as in binary counting: ``sums`` holds one open sum
    per level; row ``r`` closes those below the lowest zero bit of r and leaves theirs open."""
    function, before = b.function, b.block
    head, join, end = (function.append_basic_block(n) for n in ("level", "join", "open"))
    b.branch(head)
    b.position_at_end(head)
    level, carry = b.phi(I64), b.phi(F32)
    level.add_incoming(ir.Constant(I64, 0), before)
    carry.add_incoming(x, before)
    place = at(b, sums, level, F32)
    b.cbranch(b.trunc(b.lshr(r, level), I1), join, end)
    b.position_at_end(join)
    carry.add_incoming(b.fadd(b.load(place, typ=F32), carry), join)
    level.add_incoming(b.add(level, ir.Constant(I64, 1)), join)
    b.branch(head)
    b.position_at_end(end)
    b.store(carry, place)
