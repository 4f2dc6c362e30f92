"""Tensors of one launch: their table, its upkeep, and the launches.

Table and chunks (``runtime/tables.py``) live on the device and are written anew only when something
changed; every pointer is compared each step.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import tables
from signconv.runtime.dense import Dense
from signconv.runtime.extras import NONE, Inputs, Kinds
from signconv.runtime.formats import BLOCK, SQUARE_ROWS, SQUARE_WIDTH, STEPS, SUMS_ALONE
from signconv.runtime.kernel import gradients, launch, step
from signconv.runtime.kernel.launch import Launcher
from signconv.runtime.kernel.reading import across
from signconv.runtime.kernel.stages import Stages
from signconv.runtime.kernel.sums import Reducer
from signconv.runtime.master import param_format
from signconv.runtime.memory import Watch
from signconv.runtime.program import (
    OptimizerProgram,
    Rows,
    block_count,
    pitch_of,
    row_length,
    rows_of,
)
from signconv.runtime.tables import Column

#: What the quick check of every step asks of thousands of tensors, as calls without Python frames.
_POINTER, _GRAD = Tensor.data_ptr, attrgetter("grad")
#: Of all parameters, of all gradients, and of all state: name by name, clocks last.
Pointers = tuple[list[int], list[int], list[int]]


class Bucket:
    """Tensors of one launch: one parameter dtype, gradient dtype and storage; buffer: for values of
    stages (``Stages``)."""

    def __init__(
        self,
        program: OptimizerProgram,
        device: torch.device,
        members: list[Tensor],
        state: Mapping[Tensor, dict[str, Tensor]],
        buffer: Tensor | None = None,
    ) -> None:
        self.program, self.device, self.members = program, device, members
        self.shape = launch.launch_shape(program, members[0].dtype)
        rows = rows_of(members[0], state[members[0]], program)
        self.param_format = param_format(state[members[0]])
        self.kept = [k.name for k in program.kept]
        names = [*tables.state_names(program, self.param_format), *self.kept, "step"]
        self.watched = [*map(itemgetter, names)]
        assert members[0].grad is not None
        self.grad_dtype = members[0].grad.dtype
        self.variant = launch.Variant(
            members[0].dtype,
            self.grad_dtype,
            rows,
            self.param_format,
            launch.device_codec(device),
            across=across(program, members[0].shape) if rows == Rows.FLAT else 0,
        )
        self.kinds = [_kind(p) for p in members]
        self.watch = Watch(())  # parameters and gradients as they were checked
        self.died: list[Any] = []
        self.alive: list[Any] = []
        by_row = rows == Rows.ENDING
        blocks = [block_count(p) if by_row else -(-p.numel() // BLOCK) for p in members]
        counts = [-(-n // self.shape.chunk) for n in blocks]
        self.chunks = torch.stack(tables.chunks(counts), dim=1).to(torch.int32).to(device)
        self.programs = len(self.chunks)
        self.pointers: Pointers = ([], [], [])
        width = tables.columns(program)
        self.table = torch.empty((len(members), width), dtype=torch.int64, device=device)
        self.stages: Stages | None = None
        if program.staged:
            shapes = [p.shape for p in members]
            self.stages = Stages(program, device, shapes, blocks, self.variant, buffer)
        self.squares: tuple[Tensor, Reducer, Launcher] | None = None  # where a norm is asked for
        self.sums: Reducer | None = None  # of what members add to totals
        if program.totals is not None:
            pieces = [-(-n // self.shape.rows) for n in blocks]
            width = len(program.totals.names)
            self.sums = Reducer(pieces, width, device, torch.float64)
            starts = torch.tensor([0, *pieces[:-1]], dtype=torch.int64, device="cpu").cumsum(0)
            self.places = self.sums.partials.data_ptr() + 8 * width * starts
        self.dense = Dense(())
        self.entries: list[dict[str, Tensor]] = []
        self.fixed = torch.empty(0, dtype=torch.int64, device="cpu")
        self.launchers: dict[tuple[bool, Kinds, int], Launcher] = {}
        self.given: list[list[int]] = [[0] * len(members) for _ in program.tensors]

    def follow(self) -> bool:
        """The quick check of every pointer, for tensors and state dictionaries already seen.

        Gradients may have moved, which uploads the table.  False asks for ``refresh`` or more: a
        gradient is missing or of another kind, or something else is not where it was.
        """
        if not self.entries:
            return False
        grads: list[Any] = [*map(_GRAD, self.members)]
        if self.died or not self.watch.same([*self.members, *grads]):
            return False
        params, before, state = self.pointers
        try:  # ``x.data = …`` keeps the tensor and moves it
            if [*map(_POINTER, self._state())] != state:
                return False
        except (TypeError, KeyError, AttributeError):  # no such state
            return False
        if [*map(_POINTER, self.members)] != params:
            return False
        moved = [*map(_POINTER, grads)]
        if moved != before:
            if 0 in moved:
                return False
            self._upload((params, moved, state))
        return True

    def _state(self) -> Iterator[Any]:
        """What the kernel reads and the clocks, name by name."""
        return chain.from_iterable([map(get, self.entries) for get in self.watched])

    def refresh(
        self, state: Mapping[Tensor, dict[str, Tensor]], clock_rows: Mapping[Tensor, int]
    ) -> bool:
        """Compare every pointer with the table's; upload the table if one changed.

        False where a tensor was replaced by one that this bucket was not made for.
        """
        if self.kinds != [_kind(p) for p in self.members]:
            return False
        entries = [state[p] for p in self.members]
        if [*map(id, self.entries)] != [*map(id, entries)]:
            self.entries = entries
            rows = [clock_rows[p] for p in self.members]
            offsets = [int(e["offset"]) for e in entries]
            sizes = [p.numel() for p in self.members]
            lengths = [row_length(p) for p in self.members]
            pitches = [pitch_of(p, e) for p, e in zip(self.members, entries, strict=True)]
            fixed = [rows, [0] * len(rows), offsets, sizes, lengths, pitches]
            self.fixed = torch.tensor(fixed, dtype=torch.int64, device="cpu")
        self.dense = Dense(self.members)
        params, grads = [*map(_POINTER, self.dense.params)], [*map(_POINTER, self.dense.grads)]
        pointers = params, grads, [*map(_POINTER, self._state())]
        if self.died or pointers[2] != self.pointers[2]:
            self._remember_state()
        if pointers != self.pointers:
            self._upload(pointers)
        seen: list[Any] = [] if self.dense.copied else [*self.members, *map(_GRAD, self.members)]
        self.watch = Watch(seen)
        return True

    def _remember_state(self) -> None:
        """Notice when memory of the state is freed: while none was, equal addresses are the memory
        that was checked, whoever was given other data in between."""
        self.died = []
        storages = [x.untyped_storage() for x in self._state()]
        self.alive = [weakref.ref(s, self.died.append) for s in storages]

    def _upload(self, pointers: Pointers) -> None:
        count = len(self.members)
        numbers = array("q", chain.from_iterable(pointers))
        values = torch.frombuffer(numbers, dtype=torch.int64).view(-1, count)
        values = values[:-1]  # the clocks are found by their rows
        if self.stages is not None:
            mine = len(values) - len(self.kept)
            if self.kept and pointers[2] != self.pointers[2]:  # gradients alone move every step
                self.stages.upload(values[mine:].t().tolist())
            values = values[:mine]
        host = torch.zeros(self.table.shape, dtype=torch.int64, device="cpu")
        host[:, : Column.PARAM] = self.fixed.t()
        host[:, Column.ALIGNED] = (values % 16 == 0).all(dim=0)
        host[:, Column.PARAM : Column.PARAM + len(values)] = values.t()
        for i, given in enumerate(self.given, tables.extra_column(len(self.program.moments))):
            host[:, i] = torch.tensor(given, dtype=torch.int64, device="cpu")
            host[:, Column.ALIGNED] &= host[:, i] % 16 == 0
        if self.sums is not None:
            host[:, tables.totals_column(self.program)] = self.places
        if self.device.type == "cuda":
            host = host.pin_memory()
        self.table.copy_(host, non_blocking=True)
        self.pointers = pointers

    def find_nonfinite(self, flag: Tensor) -> None:
        """Raise ``flag`` on the device if any gradient is Inf or NaN."""
        gradients.find_nonfinite[(self.programs,)](
            self.table,
            self.chunks,
            flag,
            **launch.finder_constants(self.program, self.variant),
            num_warps=launch.WARPS,
        )

    def square_sums(self) -> Tensor:
        """Sums of squares of the gradients, float64 [members]."""
        if self.squares is None:
            size = SQUARE_ROWS * SQUARE_WIDTH
            counts = [-(-p.numel() // size) for p in self.members]
            pieces = torch.stack(tables.chunks(counts), dim=1).to(torch.int32).to(self.device)
            reducer = Reducer(counts, 1, self.device, torch.float64)
            given = launch.square_constants(self.program, self.variant)
            self.squares = pieces, reducer, Launcher(gradients.sum_squares, len(pieces), given)
        pieces, reducer, run = self.squares
        run(self.table, pieces, reducer.partials)
        return reducer.run().view(-1)

    def step(
        self,
        scalars: Tensor,
        keys: Tensor,
        scaled: bool,
        inputs: Inputs = NONE,
        mode: int = STEPS,
    ) -> Tensor | None:
        """The one step launch of this bucket; stages take several before it, and one after it.

        ``scaled``: whether gradients are multiplied by a factor that may not be 1; ``mode``:
        whether it sums for totals (``formats.STEPS``), float64 [members, names], until the next.
        """
        kinds, lent = inputs.kinds(self.members), inputs.lent(self.members)
        self._point(lent)
        if (scaled, kinds, mode) not in self.launchers:
            self.launchers[scaled, kinds, mode] = self._launcher(scaled, kinds, mode)
        run = self.launchers[scaled, kinds, mode]
        if self.stages is None:
            run(self.table, self.chunks, scalars, keys, self.table, self.table)
        else:
            self.stages.run(self.table, scalars, keys, scaled, kinds)
            chunks, values, maps = self.stages.step_tables(self.chunks)
            run(self.table, chunks, scalars, keys, values, maps)
            if mode != SUMS_ALONE:
                self.stages.commit(keys)
        if mode != SUMS_ALONE:
            self.dense.write_back()
        return None if self.sums is None or mode == STEPS else self.sums.run()

    def _point(self, lent: list[list[Tensor] | None]) -> None:
        """Let the table say where the extra inputs are that were passed."""
        given = [
            before if x is None else [*map(_POINTER, x)]
            for before, x in zip(self.given, lent, strict=False)
        ]
        if lent and given != self.given:
            self.given = given
            self._upload(self.pointers)

    def _launcher(self, scaled: bool, kinds: Kinds, mode: int) -> Launcher:
        variant = replace(self.variant, extras=kinds, mode=mode)
        if self.stages is not None:
            return self.stages.step_launcher(variant, scaled, self.programs)
        given = launch.step_constants(self.program, variant, scaled)
        return Launcher(step.step_kernel, self.programs, given)


def _kind(p: Tensor) -> tuple[torch.dtype, torch.dtype, torch.Size]:
    """What a bucket was made for: a parameter's data can be replaced between steps."""
    assert p.grad is not None
    return p.dtype, p.grad.dtype, p.shape
