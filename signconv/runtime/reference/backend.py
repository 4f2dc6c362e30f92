"""The reference backend: the generated module's PyTorch step, one parameter at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from signconv.runtime.backend import Backend, Task
from signconv.runtime.dense import Dense
from signconv.runtime.master import param_format
from signconv.runtime.program import (
    MomentSlot,
    Rows,
    Totals,
    check_shape,
    pitch_of,
    row_length,
    rows_of,
)
from signconv.runtime.reference import ops
from signconv.runtime.reference.squares import square_sum
from signconv.runtime.reference.stages import sum_up
from signconv.runtime.reference.step import step_numbers, step_tensor
from signconv.runtime.settings import alone_if_others_flush, has_float64, host_numbers
from signconv.runtime.tables import state_names


class ReferenceBackend(Backend):
    """Anywhere PyTorch is; written for truth and not for speed."""

    name = "reference"

    @classmethod
    def refusal(cls, device: torch.device) -> RuntimeError | None:
        return None

    def prepare(self, task: Task) -> None:
        for p in task.params:
            check_shape(p, task.state[p], self.program)

    def step(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> Tensor | None:
        found = self._all(task, skip, grad_scale, stepping=True)
        totals = self.program.totals
        return _stacked(found, totals) if totals is not None and totals.trailing else None

    def sums(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> Tensor:
        assert self.program.totals is not None
        found = self._all(task, skip, grad_scale, stepping=False)
        return _stacked(found, self.program.totals)

    def _all(
        self, task: Task, skip: Tensor | None, grad_scale: Tensor | None, *, stepping: bool
    ) -> list[Tensor | None]:
        """Step all, or sum what they have; the sums, where there are any."""
        if skip is not None and bool(skip):
            return [None for _ in task.params]
        hypers, factor = step_numbers(self.program, task, grad_scale)
        largest = max((p.numel() for p in task.params), default=0)
        with alone_if_others_flush(largest):
            return [self._step_one(p, task, hypers, factor, stepping) for p in task.params]

    def settle(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> None:
        if skip is None or not bool(skip):
            hypers, _ = step_numbers(self.program, task, grad_scale)
            for p in task.params:
                _, remembered = self._scalars(p, task, hypers)
                self._go_on(task.state[p], remembered)

    def _scalars(
        self, p: Tensor, task: Task, hypers: list[float]
    ) -> tuple[Sequence[float], Sequence[float]]:
        program, entry = self.program, task.state[p]
        states = [float(entry[name]) for name, _ in program.scalar_states]
        t = int(entry["step"]) + 1
        return program.reference.scalars(t, float(task.group["lr0"]), hypers, states)

    def _go_on(self, entry: dict[str, Tensor], remembered: Sequence[float]) -> None:
        for (name, _), value in zip(self.program.scalar_states, remembered, strict=True):
            entry[name].fill_(value)
        entry["step"].add_(1)

    def square_sums(self, task: Task) -> Tensor:
        return torch.stack([square_sum(g) for g in Dense(task.params).grads])

    def total(self, task: Task, sums: Tensor) -> Tensor:
        return sum_up(sums)

    def _step_one(
        self, p: Tensor, task: Task, hypers: list[float], factor: float, stepping: bool
    ) -> Tensor | None:
        """Step one parameter, or find its sums alone; these."""
        program, group, entry = self.program, task.group, task.state[p]
        # Apple's GPUs have no float64, by way of which roots are taken: there the host steps
        device = p.device if has_float64(p.device) else torch.device("cpu")
        t = int(entry["step"]) + 1
        outputs, remembered = self._scalars(p, task, hypers)
        scalars = host_numbers([factor, *outputs]).to(torch.float32).to(device)
        first, *others = scalars.unbind()
        element = ops.element_numbers(
            int(entry["offset"]), p.numel(), device, row_length(p), pitch_of(p, entry)
        )
        words = ops.draw_words(group["seed"], t, program.words, program.noise, element)
        flat = Dense([p], device)
        names = [*state_names(program, param_format(entry)), *(k.name for k in program.kept)]
        stored = {n: entry[n] for n in names}
        if not has_float64(p.device):
            stored = {n: to_host(x) for n, x in stored.items()}
        given = extras(task, p, device)
        by_row = rows_of(p, entry, program) == Rows.ENDING
        found = step_tensor(
            program, flat.params[0], flat.grads[0], stored, first, others, words, given,
            stepping=stepping, by_row=by_row,
        )  # fmt: skip
        if not stepping:
            return found
        flat.write_back()
        for n, x in stored.items():
            if x is not entry[n]:
                entry[n].copy_(x)
        if program.totals is None or not program.totals.trailing:
            self._go_on(entry, remembered)
        return found


def _stacked(found: Sequence[Tensor | None], totals: Totals) -> Tensor:
    """[params, names]; zeros of a step that is skipped."""
    rows = [x for x in found if x is not None]
    if rows:
        return torch.stack(rows)
    return torch.zeros(len(found), len(totals.names), dtype=torch.float64, device="cpu")


def extras(task: Task, p: Tensor, device: torch.device) -> list[Tensor]:
    """Extra inputs per element of one parameter, contiguous, zeros for what was not passed."""
    return [
        torch.zeros(p.shape, dtype=torch.float32, device=device) if x is None else x[0]
        for x in task.inputs.lent([p], device)
    ]


def to_host(x: Tensor) -> Tensor:
    return x.to("cpu")


def fill(entry: dict[str, Tensor], m: MomentSlot, p: Tensor) -> None:
    """Initial value of a moment that does not start from zero, rounded to nearest."""
    value = ops.load_float(p.detach().contiguous()) if m.init == "param" else None
    if value is None:
        value = torch.full((p.numel(),), float(m.init), dtype=torch.float32, device=p.device)
    # Just below half a unit
    field = torch.full((p.numel(),), 0x7FFFFFFF, dtype=torch.int32, device=p.device)
    scale = entry.get(f"{m.name}_scale")
    ops.store_moment(entry[m.name], scale, value.contiguous(), field, m.stored)
