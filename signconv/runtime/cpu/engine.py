"""The CPU backend: all tensors of a param group in one call per dtype and storage.

Tables as on the GPU, chunks shared among threads.  A chunk's result does
not depend on who computes it, so neither does a step's on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.cpu.compile import CHUNK_ROWS, Variant, columns, kernels
from signconv.runtime.cpu.threads import in_parallel
from signconv.runtime.formats import BLOCK
from signconv.runtime.program import OptimizerProgram, check_shape, has_blocks
from signconv.runtime.reference import ops as ref


class Bucket:
    """Tensors that one kernel steps: one parameter dtype, gradient dtype and storage."""

    def __init__(self, program: OptimizerProgram, members: list[Tensor], variant: Variant) -> None:
        self.program, self.members = program, members
        self.kernels = kernels(program, variant)
        self.names = [name for name, _, _ in columns(program, variant)]
        # Without sums a tensor is one piece per thread: memory is read in one go.  Of several each
        # is cut by itself, so smaller pieces, or a thread would be left with a large last one
        pieces = torch.get_num_threads() * (1 if len(members) == 1 else 8)
        share = -(-sum(p.numel() for p in members) // (pieces * BLOCK))
        self.rows = CHUNK_ROWS if program.reductions else max(CHUNK_ROWS, share)
        counts = torch.tensor([-(-p.numel() // (self.rows * BLOCK)) for p in members])
        self.ends = [0, *counts.cumsum(0).tolist()]
        tensor_of = torch.repeat_interleave(torch.arange(len(members)), counts)
        within = torch.arange(self.ends[-1]) - torch.tensor(self.ends)[tensor_of]
        self.chunks = torch.stack((tensor_of, within * self.rows), dim=1).contiguous()
        self.entries: list[list[int]] = []
        self.table = torch.empty(0, dtype=torch.int64)
        self.reduced = torch.empty((len(members), program.reductions))
        self.partials = torch.empty((self.ends[-1], program.reductions))

    def step(
        self,
        state: Mapping[Tensor, dict[str, Tensor]],
        offsets: Mapping[Tensor, int],
        rows: Mapping[Tensor, int],
        scalars: Tensor,
        keys: Tensor,
    ) -> None:
        """Step every member; ``rows`` says which row of ``scalars`` and ``keys`` is whose."""
        copies: list[tuple[Tensor, Tensor]] = []
        keep: list[Tensor] = []
        entries: list[list[int]] = []
        for p in self.members:
            g, entry, flat = p.grad, state[p], p.detach()
            assert g is not None
            if not p.is_contiguous():
                flat = flat.contiguous()
                copies.append((p, flat))
            if not g.is_contiguous():
                g = g.contiguous()
                keep.append(g)
            pointers = [entry[name].data_ptr() for name in self.names]
            entries.append(
                [rows[p], offsets[p], p.numel(), flat.data_ptr(), g.data_ptr(), *pointers]
            )
        if entries != self.entries:
            self.entries = entries
            self.table = torch.tensor(entries, dtype=torch.int64)
        tables = [self.table, self.chunks, scalars, keys, self.reduced, self.partials]
        if self.kernels.reduce is not None:
            self._run(self.kernels.reduce, tables)
            for i, (begin, end) in enumerate(pairwise(self.ends)):
                for k, name in enumerate(self.kernels.reductions):
                    total = ref.tree_sum(self.partials[begin:end, k])
                    self.reduced[i, k] = getattr(ref, name)(total, self.members[i].numel())
        self._run(self.kernels.step, tables)
        for p, flat in copies:
            p.copy_(flat)

    def _run(self, address: int, tables: list[Tensor]) -> None:
        chunks = self.ends[-1]
        pointers = [t.data_ptr() for t in tables]
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
        group: Mapping[str, Any],
        params: list[Tensor],
        state: Mapping[Tensor, dict[str, Tensor]],
        grad_scale: Tensor | None,
    ) -> None:
        """Step every parameter of ``params`` in place, and its ``step`` and scalar states."""
        self._prepare(params, state)
        names = [name for name, _ in self.program.memory]
        clocks = {state[p]["step"].data_ptr(): p for p in params}  # parameters may share one
        entries = [state[p] for p in clocks.values()]
        steps = [e["step"] for e in entries]
        values = [torch.stack(steps).tolist()]
        values += [torch.stack([e[name] for e in entries]).tolist() for name in names]
        distinct: dict[tuple[Any, ...], int] = {}
        of_clock = {
            clock: distinct.setdefault(value, len(distinct))
            for clock, value in zip(clocks, zip(*values, strict=True), strict=True)
        }
        scalars, memory, keys = self._scalars(group, list(distinct), grad_scale)
        rows = {p: of_clock[state[p]["step"].data_ptr()] for p in params}
        for b in self.buckets:
            b.step(state, self.offsets, rows, scalars, keys)
        torch._foreach_add_(steps, 1)
        for i, name in enumerate(names):
            for clock, entry in zip(clocks, entries, strict=True):
                entry[name].fill_(memory[of_clock[clock]][i])

    def _prepare(self, params: list[Tensor], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
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
            blocks = self.program.scaled and has_blocks(p)
            found.setdefault(Variant(p.dtype, p.grad.dtype, blocks), []).append(p)
        self.buckets = [Bucket(self.program, b, variant) for variant, b in found.items()]
        self.active = active

    def _scalars(
        self,
        group: Mapping[str, Any],
        clocks: list[tuple[Any, ...]],
        grad_scale: Tensor | None,
    ) -> tuple[Tensor, list[tuple[float, ...]], Tensor]:
        """Scalars [clocks, 1 + outputs], new memory of each clock, keys [clocks, 2 * words]."""
        program = self.program
        hypers = [float(h.read(group)) for h in program.hypers]
        factor = -1.0 if group["maximize"] else 1.0
        if grad_scale is not None:
            factor = ref.divide64(factor, float(grad_scale))
        scalars, memory, keys = [], [], []
        for t, *remembered in clocks:
            values = program.scalars(t + 1, float(group["lr0"]), *remembered, *hypers)
            scalars.append([factor, *values[: len(program.outputs)]])
            memory.append(values[len(program.outputs) :])
            drawn = [ref.draw_keys(group["seed"], t + 1, w) for w in range(program.words)]
            keys.append([key for pair in drawn for key in pair])
        rounded = torch.tensor(scalars, dtype=torch.float64).to(torch.float32)
        return rounded, memory, torch.tensor(keys, dtype=torch.int64).to(torch.int32)
