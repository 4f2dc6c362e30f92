"""The CPU kernels of a program: its reference, traced row by row, inside two loops of LLVM IR.

Two kernels at most: the step, and for programs with ``norm`` or ``mean`` the sums before it.  Each
takes tables like the GPU kernel's: any number of tensors per call, any number of
threads, which take chunks off one counter.  Without fast-math flags LLVM neither contracts nor
reassociates, so the bits are the reference's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir

from signconv.runtime.cpu import pieces
from signconv.runtime.cpu.lanes import LLVM, POINTER, Lanes, spread
from signconv.runtime.cpu.pieces import CHUNK_LEVELS, CHUNK_ROWS, F32, I1, I32, I64, VOID
from signconv.runtime.cpu.rows import Stored, random_words
from signconv.runtime.cpu.trace import Trace
from signconv.runtime.cpu.walk import Walk
from signconv.runtime.errors import coded
from signconv.runtime.extras import DTYPES, Kinds
from signconv.runtime.formats import ABSENT, BLOCK
from signconv.runtime.program import OptimizerProgram
from signconv.runtime.reference.step import step_tensor
from signconv.runtime.tables import Column, extra_column
from signconv.runtime.tables import columns as table_columns

#: What a kernel's one argument points to, int64 each: six tables, the number of chunks, the rows of
#: a whole one, and how many have been taken.
ARGUMENTS = ("table", "chunks", "scalars", "keys", "reduced", "partials", "total", "rows", "taken")
_lock = threading.Lock()


@dataclass(frozen=True)
class Variant:
    """What a kernel is compiled for: storage of parameter and gradient, and whether rows end in
    partial blocks; extras: how extra inputs per element come."""

    param: torch.dtype
    grad: torch.dtype
    by_row: bool
    extras: Kinds = ()


@dataclass(frozen=True)
class Kernels:
    """Addresses of compiled functions; ``engine`` owns the code."""

    step: int
    reduce: int | None
    assembly: str
    engine: Any


_compiled: dict[tuple[Any, Variant, int], Kernels] = {}


@cache
def width() -> int:
    """Elements worked on together: a row of 32 with AVX-512, where masks and narrow codes then need
    no shuffles (docs/performance.md), else a register of AVX2."""
    return 32 if llvm.get_host_cpu_features().get("avx512f") else 8


def kernels(program: OptimizerProgram, variant: Variant) -> Kernels:
    """The kernels of one variant, compiled at the first call; NotImplementedError, with the
    operation's name, for a reference that does something no instruction is known for."""
    key = (program.reference.math, variant, width())
    with _lock:
        if key not in _compiled:
            try:
                _compiled[key] = _compile(program, variant)
            except NotImplementedError as error:
                raise coded(
                    NotImplementedError,
                    "SC604",
                    f"{program.name}: {error}; use backend='reference'",
                ) from error
        return _compiled[key]


# ---------------------------------------------------------------- LLVM


def _compile(program: OptimizerProgram, variant: Variant) -> Kernels:
    module = ir.Module(program.name)
    _Kernel(module, program, variant, "step").emit()
    if program.reductions:
        _Kernel(module, program, variant, "reduce").emit()
    engine, assembly = _machine_code(str(module))
    addresses = [engine.get_function_address(n) for n in ("step", "reduce")]
    return Kernels(addresses[0], addresses[1] or None, assembly, engine)


def _machine_code(source: str) -> tuple[Any, str]:
    """For this machine's CPU; the code lives as long as the engine."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    module = llvm.parse_assembly(source)
    module.verify()
    # No combining of instructions: it narrows comparisons to the bytes of FP8 codes, whose masks
    # then take shuffles to meet those of fp32 vectors
    passes = llvm.create_new_module_pass_manager()
    passes.add_simplify_cfg_pass()
    passes.add_new_gvn_pass()
    passes.add_aggressive_dce_pass()
    passes.add_loop_rotate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    assembly = machine.emit_assembly(module)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, assembly


class _Kernel:
    """One exported function and the loop over rows that it calls."""

    def __init__(self, module: Any, program: OptimizerProgram, variant: Variant, name: str) -> None:
        self.module, self.program, self.variant, self.name = module, program, variant, name
        self.reducing = name == "reduce"
        #: name in the state, column, dtype, and how many elements share a number, of each pointer
        self.pointers: list[tuple[str, int, torch.dtype, int]] = [
            ("", Column.PARAM, variant.param, 1),
            ("", Column.GRAD, variant.grad, 1),
        ]
        for i, m in enumerate(program.moments):
            share = 2 if m.stored.packed else 1
            self.pointers.append((m.name, Column.STATE + 2 * i, m.stored.dtype, share))
            if m.stored.scaled:
                scale = f"{m.name}_scale", Column.STATE + 2 * i + 1, torch.uint8, BLOCK
                self.pointers.append(scale)
        self.stored = len(self.pointers)  # behind these are extra inputs, which are read alone
        dtypes = {kind: dtype for dtype, kind in DTYPES.items()}
        for i, kind in enumerate(variant.extras, extra_column(len(program.moments))):
            if kind != ABSENT:
                self.pointers.append(("", i, dtypes[kind], 1))

    def emit(self) -> None:
        self._chunks(self._rows(), len(self.program.reductions))

    # ---------------------------------------------------------------- rows

    def _rows(self) -> Any:
        """Function (pointers…, scalars, keys, this tensor's reduced numbers or the open sums,
        global index of the first element, number of the first row, elements per row, rows, and how
        many elements and bytes of two codes the rows lie apart, and how many in the index)."""
        types = [POINTER] * (len(self.pointers) + 3) + [I64, I64, I32, I64, I64, I64, I64]
        function = ir.Function(self.module, ir.FunctionType(VOID, types), f"{self.name}_rows")
        function.linkage = "internal"
        function.attributes.add("noinline")
        *bases, scalars, keys, extra, index, first, lanes, count = function.args[:-3]
        apart, bytes_apart, numbers_apart = function.args[-3:]
        b = ir.IRBuilder(function.append_basic_block("entry"))
        if not self.variant.by_row:  # what LLVM is to know
            apart = numbers_apart = ir.Constant(I64, BLOCK)
            bytes_apart = ir.Constant(I64, BLOCK // 2)
        trace = Trace(b, width(), storing=not self.reducing)

        def numbers(pointer: Any, n: int) -> list[Any]:
            """Spread here, once: LLVM is not asked to move it out of the loop."""
            return [spread(b, x, width()) for x in pieces.load_all(b, pointer, n, F32)]

        read = numbers(scalars, 1 + len(self.program.outputs))
        drawn = pieces.load_all(b, keys, self.program.keys, I32)
        reduced = [] if self.reducing else numbers(extra, len(self.program.reductions))
        inside = pieces.inside(b, lanes)
        if self.variant.by_row:
            one = ir.Constant(I32, 1)
            halves = pieces.inside(b, b.lshr(b.add(lanes, one), one))
            trace.inside = {
                share: [pieces.part(b, mask, part, width() // share) for part in trace.parts]
                for share, mask in ((1, inside), (2, halves))
            }
        with pieces.loop(b, count) as r:
            element = b.mul(r, apart)
            steps = {1: element, 2: b.mul(r, bytes_apart), BLOCK: r}
            factor, *outputs = [_wide(trace, x) for x in read]
            if not self.reducing:
                trace.reduced = lambda i: _wide(trace, reduced[i])
            stored = []
            for (_, _, dtype, share), base in zip(self.pointers, bases, strict=True):
                place = pieces.at(b, base, steps[share], LLVM[dtype])
                wide = share < BLOCK
                stored.append(Stored(trace, dtype, place, wide, share if wide else 1))
            param, grad, *moments = stored[: self.stored]
            names = [name for name, *_ in self.pointers[2 : self.stored]]
            extras = self._extras(trace, stored[self.stored :])
            place = b.add(index, b.mul(r, numbers_apart))
            words = random_words(trace, place, drawn, self.program, self.variant.by_row)
            state: Any = dict(zip(names, moments, strict=True))
            given: Any = (state, factor, outputs, words, extras)
            step_tensor(self.program, param, grad, *given)  # type: ignore[arg-type]
            trace.emit()
            if self.reducing:
                for which, x in enumerate(trace.summands):
                    carry = pieces.row_sum(b, [x.at(i) for i in trace.parts], inside)
                    pieces.add_open(b, pieces.open_sums(b, extra, which), b.add(first, r), carry)
        b.ret_void()
        return function

    def _extras(self, trace: Trace, passed: Sequence[Lanes]) -> list[Lanes]:
        """Extra inputs per element, zeros for one that was not passed."""
        found = iter(passed)
        zeros = ir.Constant(ir.VectorType(F32, width()), [0.0] * width())
        return [
            _wide(trace, zeros) if kind == ABSENT else next(found) for kind in self.variant.extras
        ]

    # ---------------------------------------------------------------- chunks

    def _chunks(self, rows: Any, reductions: int) -> None:
        """Take chunks off the counter until none is left."""
        function = ir.Function(self.module, ir.FunctionType(VOID, [POINTER]), self.name)
        arguments = function.args[0]
        start, take, work, done = (
            function.append_basic_block(n) for n in ("entry", "take", "work", "done")
        )
        b = ir.IRBuilder(start)
        scratch = [pieces.stack(b, BLOCK * dtype.itemsize) for _, _, dtype, _ in self.pointers]
        sums = pieces.stack(b, reductions * (CHUNK_LEVELS + 1) * 4)
        *addresses, total, most = pieces.load_all(b, arguments, len(ARGUMENTS) - 1, I64)
        tables = [b.inttoptr(x, POINTER) for x in addresses]
        table, chunks, scalars, keys, reduced, partials = tables
        counter = pieces.at(b, arguments, ARGUMENTS.index("taken"), I64)
        restore = self._float_environment(b)
        b.branch(take)
        b.position_at_end(take)
        k = b.atomic_rmw("add", counter, ir.Constant(I64, 1), "monotonic")
        b.cbranch(b.icmp_signed("<", k, total), work, done)
        b.position_at_end(done)
        restore()
        b.ret_void()

        b.position_at_end(work)
        tensor, first = pieces.load_all(b, pieces.at(b, chunks, pieces.times(b, k, 2), I64), 2, I64)
        columns = table_columns(self.program)
        entry = pieces.at(b, table, pieces.times(b, tensor, columns), I64)

        def column(place: int) -> Any:
            return b.load(pieces.at(b, entry, int(place), I64), typ=I64)

        clock, offset, numel = map(column, (Column.CLOCK, Column.OFFSET, Column.NUMEL))
        addresses = [column(place) for _, place, _, _ in self.pointers]
        scalars = pieces.at(b, scalars, pieces.times(b, clock, 1 + len(self.program.outputs)), F32)
        keys = pieces.at(b, keys, pieces.times(b, clock, self.program.keys), I32)
        extra = sums
        if not self.reducing:
            extra = pieces.at(b, reduced, pieces.times(b, tensor, reductions), F32)
        memory = [b.inttoptr(a, POINTER) for a in addresses]

        near = tuple(ir.Constant(I64, n) for n in (BLOCK, BLOCK // 2, BLOCK))

        def call(
            first: Any,
            places: Sequence[Any],
            element: Any,
            lanes: Any,
            count: Any,
            apart: Sequence[Any] = near,
        ) -> None:
            index = b.add(offset, element)
            b.call(rows, [*places, scalars, keys, extra, index, first, lanes, count, *apart])

        def through_scratch(first: Any, places: Sequence[Any], element: Any, left: Any) -> None:
            """Fewer elements than a row has, by way of a row of their own."""
            copies = [
                (place, row, pieces.bytes_of(b, left, dtype, share))
                for place, row, (_, _, dtype, share) in zip(
                    places, scratch, self.pointers, strict=True
                )
            ]
            for place, row, size in copies:
                self._memcpy(b, row, place, size)
            call(first, scratch, element, b.trunc(left, I32), ir.Constant(I64, 1))
            if not self.reducing:
                for place, row, size in copies[: self.stored]:
                    self._memcpy(b, place, row, size)

        walk = Walk(b, self.pointers, memory, self.program.scaled, call, through_scratch)
        if self.variant.by_row:
            lengths = column(Column.ROW_LENGTH), column(Column.PITCH)
            rest = walk.partial_rows(first, most, numel, *lengths)
        else:
            rest = walk.whole_rows(first, most, numel)
        if self.reducing:
            partial = pieces.at(b, partials, pieces.times(b, k, reductions), F32)
            with pieces.loop(b, b.sub(ir.Constant(I64, CHUNK_ROWS), rest)) as i:
                for which in range(reductions):
                    carry = ir.Constant(F32, 0.0)
                    pieces.add_open(b, pieces.open_sums(b, sums, which), b.add(rest, i), carry)
            for which in range(reductions):
                top = pieces.at(b, pieces.open_sums(b, sums, which), CHUNK_LEVELS, F32)
                b.store(b.load(top, typ=F32), pieces.at(b, partial, which, F32))
        b.branch(take)

    def _float_environment(self, b: Any) -> Callable[[], None]:
        """Round to nearest and keep denormal numbers in this thread, which may do otherwise
        (``torch.set_flush_denormal``); what is returned gives it back its own ways."""
        machine = llvm.get_default_triple().split("-")[0]
        if machine in ("x86_64", "i686"):
            saved, plain = pieces.stack(b, 4), pieces.stack(b, 4)
            load, store = (self._declare(f"llvm.x86.sse.{n}mxcsr", [POINTER]) for n in ("ld", "st"))
            b.call(store, [saved])
            b.store(ir.Constant(I32, 0x1F80), pieces.at(b, plain, 0, I32))
            b.call(load, [plain])
            return lambda: b.call(load, [saved])
        if machine in ("aarch64", "arm64"):
            get = self._declare("llvm.aarch64.get.fpcr", [], I64)
            put = self._declare("llvm.aarch64.set.fpcr", [I64])
            before = b.call(get, [])
            b.call(put, [ir.Constant(I64, 0)])
            return lambda: b.call(put, [before])
        return lambda: None

    def _memcpy(self, b: Any, target: Any, source: Any, size: Any) -> None:
        f = self._declare("llvm.memcpy.p0.p0.i64", [POINTER, POINTER, I64, I1])
        b.call(f, [target, source, size, ir.Constant(I1, 0)])

    def _declare(self, name: str, types: list[Any], result: Any = VOID) -> Any:
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, types), name)


def _wide(trace: Trace, value: Any) -> Lanes:
    return Lanes(trace, torch.float32, True, lambda part: value)
