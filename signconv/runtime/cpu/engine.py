"""All tensors of one param group on the CPU: tables as on the GPU, chunks shared among threads.

A chunk's result does not depend on who computes it, so neither does a step's on the number of
threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import tables
from signconv.runtime.backend import Task
from signconv.runtime.cpu.compile import Kernels, Variant, kernels
from signconv.runtime.cpu.pieces import CHUNK_ROWS
from signconv.runtime.cpu.threads import in_parallel
from signconv.runtime.dense import Dense
from signconv.runtime.extras import Inputs
from signconv.runtime.formats import BLOCK
from signconv.runtime.program import (
    OptimizerProgram,
    Rows,
    block_count,
    check_shape,
    pitch_of,
    row_length,
    rows_of,
)
from signconv.runtime.reference import ops as ref
from signconv.runtime.reference.step import step_numbers


class Bucket:
    """Tensors that one kernel steps: one parameter dtype, gradient dtype and storage."""

    def __init__(self, program: OptimizerProgram, members: list[Tensor], variant: Variant) -> None:
        self.program, self.members, self.variant = program, members, variant
        self.names = tables.state_names(program)
        # Without sums a tensor is one piece per thread: memory is read in one go.  Of several each
        # is cut by itself, so smaller pieces, or a thread would be left with a large last one
        pieces = torch.get_num_threads() * (1 if len(members) == 1 else 8)
        sizes = [block_count(p) if variant.by_row else -(-p.numel() // BLOCK) for p in members]
        share = -(-sum(sizes) // pieces)
        self.rows = CHUNK_ROWS if program.reductions else max(CHUNK_ROWS, share)
        counts = [-(-size // self.rows) for size in sizes]
        self.ends = [0, *accumulate(counts)]
        tensor_of, within = tables.chunks(counts)
        self.chunks = torch.stack((tensor_of, within * self.rows), dim=1).contiguous()
        self.entries: list[list[int]] = []
        self.table = torch.empty(0, dtype=torch.int64, device="cpu")
        self.reduced, self.partials = (
            torch.empty((n, len(program.reductions)), dtype=torch.float32, device="cpu")
            for n in (len(members), self.ends[-1])
        )

    def step(
        self,
        state: Mapping[Tensor, dict[str, Tensor]],
        offsets: Mapping[Tensor, int],
        rows: Mapping[Tensor, int],
        scalars: Tensor,
        keys: Tensor,
        inputs: Inputs,
    ) -> None:
        """Step every member; ``rows`` says which row of ``scalars`` and ``keys`` is whose."""
        found, flat, lent = self.compiled(inputs), Dense(self.members), inputs.lent(self.members)
        places = [None if x is None else iter([*map(Tensor.data_ptr, x)]) for x in lent]
        entries: list[list[int]] = []
        for p, data, grad in zip(self.members, flat.params, flat.grads, strict=True):
            pointers = [state[p][name].data_ptr() for name in self.names]
            lengths = row_length(p), pitch_of(p, state[p])
            fixed = [rows[p], 0, offsets[p], p.numel(), *lengths]
            entry = [*fixed, data.data_ptr(), grad.data_ptr(), *pointers]
            if places:
                entry += [0] * (tables.extra_column(len(self.program.moments)) - len(entry))
                entry += [0 if x is None else next(x) for x in places]
            entries.append(entry)
        if entries != self.entries:
            self.entries = entries
            width = tables.columns(self.program)
            self.table = torch.zeros((len(entries), width), dtype=torch.int64, device="cpu")
            given = torch.tensor(entries, dtype=torch.int64, device="cpu")
            self.table[:, : len(entries[0])] = given
        arrays = [self.table, self.chunks, scalars, keys, self.reduced, self.partials]
        if found.reduce is not None:
            self._run(found.reduce, arrays)
            for i, (begin, end) in enumerate(pairwise(self.ends)):
                for k, r in enumerate(self.program.reductions):
                    total = ref.tree_sum(self.partials[begin:end, k])
                    made = getattr(ref, f"{r.kind}_of_sum")(total, self.members[i].numel())
                    self.reduced[i, k] = made
        self._run(found.step, arrays)
        flat.write_back()

    def compiled(self, inputs: Inputs) -> Kernels:
        """The kernels for what comes beside gradients, made at the first call."""
        return kernels(self.program, replace(self.variant, extras=inputs.kinds(self.members)))

    def _run(self, address: int, arrays: list[Tensor]) -> None:
        chunks = self.ends[-1]
        pointers = [t.data_ptr() for t in arrays]
        arguments = (ctypes.c_int64 * (len(pointers) + 3))(*pointers, chunks, self.rows, 0)
        in_parallel(address, arguments, min(torch.get_num_threads(), chunks))


class CpuEngine:
    """All tensors of one param group on the CPU."""

    def __init__(self, program: OptimizerProgram) -> None:
        self.program = program
        self.active: list[tuple[Any, ...]] = []
        self.buckets: list[Bucket] = []
        self.offsets: dict[Tensor, int] = {}

    def step(
        self,
        task: Task,
        params: list[Tensor],
        grad_scale: Tensor | None,
    ) -> None:
        """Step every parameter of ``params`` in place, and its ``step`` and scalar states."""
        state = task.state
        names = [name for name, _ in self.program.scalar_states]
        clocks = {state[p]["step"].data_ptr(): p for p in params}  # parameters may share one
        entries = [state[p] for p in clocks.values()]
        steps = [e["step"] for e in entries]
        values = [torch.stack(steps).tolist()]
        values += [torch.stack([e[name] for e in entries]).tolist() for name in names]
        found = [*zip(*values, strict=True)]
        marks = [*map(repr, found)] if names else found  # repr tells the two zeros apart
        distinct = dict(zip(marks, found, strict=True))
        place = {mark: i for i, mark in enumerate(distinct)}
        of_clock = {clock: place[mark] for clock, mark in zip(clocks, marks, strict=True)}
        scalars, memory, keys = self._scalars(task, [*distinct.values()], grad_scale)
        rows = {p: of_clock[state[p]["step"].data_ptr()] for p in params}
        for b in self.buckets:
            b.step(state, self.offsets, rows, scalars, keys, task.inputs)
        torch._foreach_add_(steps, 1)
        for i, name in enumerate(names):
            for clock, entry, before in zip(clocks, entries, values[1 + i], strict=True):
                made = memory[of_clock[clock]][i]
                if made != before or made == 0:  # the other zero is equal
                    entry[name].fill_(made)

    def prepare(self, params: list[Tensor], task: Task) -> None:
        """Compile and lay out tables for these parameters of a task; once, while they stay the
        same."""
        self._lay_out(params, task.state)
        for b in self.buckets:
            b.compiled(task.inputs)

    def _lay_out(self, params: list[Tensor], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        active: list[tuple[Any, ...]] = [(torch.get_num_threads(),)]
        active += [(id(p), p.dtype, p.shape, p.grad.dtype) for p in params if p.grad is not None]
        if active == self.active:
            return
        self.active = []  # should anything below fail, the next step starts over
        for p in params:
            check_shape(p, state[p], self.program)
        self.offsets = {p: int(state[p]["offset"]) for p in params}
        found: dict[Variant, list[Tensor]] = {}
        for p in params:
            assert p.grad is not None
            by_row = rows_of(p, state[p], self.program) != Rows.FLAT
            kind = Variant(p.dtype, p.grad.dtype, by_row)
            found.setdefault(kind, []).append(p)
        self.buckets = [Bucket(self.program, b, variant) for variant, b in found.items()]
        self.active = active

    def _scalars(
        self,
        task: Task,
        clocks: list[tuple[Any, ...]],
        grad_scale: Tensor | None,
    ) -> tuple[Tensor, list[tuple[float, ...]], Tensor]:
        """Scalars [clocks, 1 + outputs], new memory of each clock, keys of each."""
        program, group = self.program, task.group
        hypers, factor = step_numbers(program, task, grad_scale)
        scalars, memory, keys = [], [], []
        for t, *remembered in clocks:
            outputs, updated = program.reference.scalars(
                t + 1, float(group["lr0"]), hypers, remembered
            )
            scalars.append([factor, *outputs])
            memory.append(updated)
            keys.append(ref.step_keys(group["seed"], t + 1, program.words, program.noise))
        made = torch.tensor(scalars, dtype=torch.float64, device="cpu").to(torch.float32)
        drawn_keys = torch.tensor(keys, dtype=torch.int64, device="cpu").to(torch.int32)
        return made, memory, drawn_keys
