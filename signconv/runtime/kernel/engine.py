"""All tensors of one param group on one device: clocks, scalars and the launches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.axes import ELEMENTS
from signconv.runtime.backend import Task
from signconv.runtime.extras import Inputs
from signconv.runtime.formats import STEPS
from signconv.runtime.kernel import launch
from signconv.runtime.kernel.bucket import Bucket
from signconv.runtime.kernel.launch import Launcher
from signconv.runtime.kernel.reading import across
from signconv.runtime.kernel.scalars import scalar_kernel
from signconv.runtime.kernel.stages import Stages, matrices_apart
from signconv.runtime.kernel.sums import Reducer
from signconv.runtime.master import param_format
from signconv.runtime.program import OptimizerProgram, Rows, check_shape, rows_of
from signconv.runtime.settings import host_numbers


class GroupEngine:
    """All tensors of one param group on one device.

    Each has a row of the clock, of the scalar states and of the scalars for itself, and its state
    is a view of them: who edits one parameter's step moves no other.
    """

    def __init__(self, program: OptimizerProgram, device: torch.device) -> None:
        self.program, self.device = program, device
        self.active: list[Tensor] = []
        self.buckets: list[Bucket] = []
        self.clock = torch.zeros(0, dtype=torch.int64, device=device)
        self.states = torch.zeros(0, dtype=torch.float64, device=device)
        self.clock_rows: dict[Tensor, int] = {}
        self.read = itemgetter(*{h.key: None for h in program.hypers}, "lr0", "maximize", "seed")
        self.known: tuple[Any, ...] = ()
        self.uploaded: list[float] = []
        self.moving: list[tuple[int, Tensor]] = []  # hyperparameters that are tensors, but for lr
        #: Behind the hyperparameters the first lr and the gradients' sign, their norm where it is
        #: read, and from ``given`` on extra inputs per step, which of all were passed, and totals.
        self.given = len(program.hypers) + (3 if program.norm else 2)
        size = self.given + program.behind
        names = () if program.totals is None else program.totals.names
        self.summed = slice(size - len(names), size)
        self.hypers = torch.zeros(size, dtype=torch.float64, device=device)
        self.taken: dict[int, str] = {}  # numbers that are there …
        self.replays = False  # … unless a graph was captured, whose replays write others
        # A tensor: as a number a seed of 1 would be a literal, and a large one of another type
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.zero = torch.zeros((), dtype=torch.float32, device=device)
        self.one = torch.ones((), dtype=torch.float32, device=device)
        self.scalars = torch.empty(0, dtype=torch.float32, device=device)
        self.keys = torch.empty(0, dtype=torch.int32, device=device)
        self.scalar_launchers: dict[bool, Launcher]
        self.reducers: dict[int, Reducer] = {}  # of norms (1) and totals (2), by their dimensions
        self.order: Tensor | None = None  # of the parameters in the buckets, if there are several

    def prepare(self, params: list[Tensor], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Bring tables and clock up to date with this step's parameters."""
        if not self._holds(params) or any(
            state[p]["step"].data_ptr() != self._step_pointer(p) for p in params
        ):
            self._rebuild(params, state)
        if not all(b.refresh(state, self.clock_rows) for b in self.buckets):
            self._rebuild(params, state)
            for b in self.buckets:
                b.refresh(state, self.clock_rows)
        self.active = [*params]

    def follow(self, params: list[Tensor]) -> bool:
        """Whether ``prepare`` has nothing to do for these parameters, all of them with gradients,
        provided that their state dictionaries are still those of the last step."""
        return self._holds(params) and all(b.follow() for b in self.buckets)

    def _holds(self, params: list[Tensor]) -> bool:
        return len(params) == len(self.active) and all(map(is_, params, self.active))

    def _step_pointer(self, p: Tensor) -> int:
        row = self.clock_rows.get(p)
        return -1 if row is None else self.clock.data_ptr() + 8 * row

    def _rebuild(self, params: list[Tensor], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        self.active = []  # should anything below fail, the next step starts over
        for p in params:
            check_shape(p, state[p], self.program)
        names = [name for name, _ in self.program.scalar_states]
        self.clock_rows = {p: row for row, p in enumerate(params)}
        self.clock = torch.stack([state[p]["step"].to(self.device) for p in params])
        columns = [torch.stack([state[p][n].to(self.device) for p in params]) for n in names]
        self.states = torch.stack(columns, dim=1) if names else self.states[:0]
        for row, p in enumerate(params):
            state[p]["step"] = self.clock[row]
            for column, name in enumerate(names):
                state[p][name] = self.states[row, column]
        width = 1 + len(self.program.outputs)
        shape = len(params), width
        self.scalars = torch.empty(shape, dtype=torch.float32, device=self.device)
        self.keys = torch.empty(
            (len(params), 1 + self.program.keys), dtype=torch.int32, device=self.device
        )
        self.scalar_launchers = {
            settles: Launcher(
                scalar_kernel, len(params), launch.scalar_constants(self.program, settles)
            )
            for settles in (True, False)
        }
        buckets: dict[tuple[torch.dtype, torch.dtype, Rows, int, int], list[Tensor]] = {}
        for p in params:
            assert p.grad is not None
            rows = rows_of(p, state[p], self.program)
            blocks = across(self.program, p.shape) if rows == Rows.FLAT else 0
            kind = (p.dtype, p.grad.dtype, rows, param_format(state[p]), blocks)
            buckets.setdefault(kind, []).append(p)
        members = [*buckets.values()]
        buffer = None
        if any(r.over == ELEMENTS for r in self.program.reductions):
            members = [part for b in members for part in matrices_apart(b)]
            rooms = [Stages.room(self.program, [p.shape for p in b]) for b in members]
            buffer = torch.empty(max(rooms), dtype=torch.float32, device=self.device)
        self.buckets = [Bucket(self.program, self.device, b, state, buffer) for b in members]
        self.order = None
        self.reducers = {}
        if len(self.buckets) > 1:
            places = {p: i for i, p in enumerate(p for b in self.buckets for p in b.members)}
            order = [places[p] for p in params]
            self.order = torch.tensor(order, dtype=torch.int64, device="cpu").to(self.device)

    def find_nonfinite(self, flag: Tensor) -> None:
        """Raise ``flag`` on the device if any gradient is Inf or NaN."""
        for b in self.buckets:
            b.find_nonfinite(flag)

    def square_sums(self) -> Tensor:
        """Sums of squares of the gradients, float64 [params], in the order of the parameters."""
        return self._ordered([b.square_sums() for b in self.buckets])

    def _ordered(self, found: list[Tensor]) -> Tensor:
        """What buckets have of each of their members, in the order of the parameters."""
        return found[0] if self.order is None else torch.cat(found)[self.order]

    def total(self, sums: Tensor) -> Tensor:
        """The sum over the first dimension, which the next call overwrites."""
        if sums.dim() not in self.reducers:
            width = sums[0].numel()
            reducer = Reducer([len(sums)], width, self.device, torch.float64)
            self.reducers[sums.dim()] = reducer
        reducer = self.reducers[sums.dim()]
        reducer.partials.copy_(sums.view(reducer.partials.shape))
        return reducer.run().view(sums.shape[1:])

    def step(
        self, task: Task, skip: Tensor | None, grad_scale: Tensor | None, mode: int = STEPS
    ) -> Tensor | None:
        """The scalar kernel, then one step launch per bucket; ``mode``: what those do
        (``formats.STEPS``). Where they sum for totals clocks and scalar states stay, and the sums
        are returned, float64 [params, names]."""
        self.scale(task, skip, grad_scale, settles=mode == STEPS)
        scaled = grad_scale is not None or bool(task.group["maximize"])
        found = [b.step(self.scalars, self.keys, scaled, task.inputs, mode) for b in self.buckets]
        return self._ordered([x for x in found if x is not None]) if mode != STEPS else None

    def scale(
        self, task: Task, skip: Tensor | None, grad_scale: Tensor | None, *, settles: bool
    ) -> None:
        """The scalar kernel; settles: clocks and scalar states go on."""
        self._upload(task.group)
        if task.norm is not None:
            self.hypers[self.given - 1 : self.given].copy_(task.norm.reshape(1))
        self._take(task.inputs)
        if task.totals is not None:
            self.hypers[self.summed].copy_(task.totals)
        lr = task.group["lr"]
        lr_source = lr.to(self.device) if isinstance(lr, Tensor) else self.hypers
        self.scalar_launchers[settles](
            lr_source,
            self.hypers,
            self.clock,
            self.states,
            self.seed,
            self.zero if skip is None else skip.to(self.device),
            self.one if grad_scale is None else grad_scale.to(self.device),
            self.scalars,
            self.keys,
        )

    def _take(self, inputs: Inputs) -> None:
        """Extra inputs per step, and which were passed, to the device: tensors without waiting for
        them, numbers where others are there, by launches that a capture allows."""
        values = inputs.values()
        if values and self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self.replays = True
        for i, value in enumerate(values, self.given):
            if isinstance(value, Tensor):
                self.hypers[i : i + 1].copy_(value.reshape(1))
                self.taken.pop(i, None)
            elif self.replays or self.taken.get(i) != repr(value):  # which tells the zeros apart
                self.hypers[i : i + 1].fill_(value)
                self.taken[i] = repr(value)

    def _upload(self, group: Mapping[str, Any]) -> None:
        """Hyperparameters and seed to the device, where others were put into the group: what
        ``Values`` left there are numbers, tuples of them, and tensors."""
        read = self.read(group)
        if len(read) != len(self.known) or not all(map(is_, read, self.known)):
            slots = self.program.hypers
            values = [h.read(group) for h in slots]
            self.moving = [
                (i, v)
                for i, (h, v) in enumerate(zip(slots, values, strict=True))
                if isinstance(v, Tensor) and h.name != "lr"
            ]
            values += [group["lr0"], -1.0 if group["maximize"] else 1.0]
            # NaN for a tensor: a number that follows it, be it 0, is another
            numbers = [math.nan if isinstance(v, Tensor) else float(v) for v in values]
            if numbers != self.uploaded:  # objects that are new with equal values are no copy,
                # which a capture would not allow
                self.hypers[: len(numbers)].copy_(host_numbers(numbers))
                self.uploaded = numbers
            if not self.known or self.known[-1] != read[-1]:
                self.seed.fill_(read[-1])
            self.known = read
        for i, value in self.moving:
            self.hypers[i] = value
