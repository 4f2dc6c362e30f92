"""The reference backend: the generated module's PyTorch step, one parameter at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime.backend import Backend, Task
from signconv.runtime.dense import Dense
from signconv.runtime.master import param_format
from signconv.runtime.program import MomentSlot, check_shape, pitch_of, row_length
from signconv.runtime.reference import ops
from signconv.runtime.reference.reduce import tree_sum
from signconv.runtime.reference.squares import square_sum
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

    def step(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> None:
        if skip is not None and bool(skip):
            return
        hypers, factor = step_numbers(self.program, task, grad_scale)
        largest = max((p.numel() for p in task.params), default=0)
        with alone_if_others_flush(largest):
            for p in task.params:
                self._step_one(p, task, hypers, factor)

    def square_sums(self, task: Task) -> Tensor:
        return torch.stack([square_sum(g) for g in Dense(task.params).grads])

    def total(self, task: Task, sums: Tensor) -> Tensor:
        return tree_sum(sums)

    def _step_one(self, p: Tensor, task: Task, hypers: list[float], factor: float) -> None:
        program, group, entry = self.program, task.group, task.state[p]
        # Apple's GPUs have no float64, by way of which roots are taken: there the host steps
        device = p.device if has_float64(p.device) else torch.device("cpu")
        t = int(entry["step"]) + 1
        remembered = [float(entry[name]) for name, _ in program.scalar_states]
        outputs, remembered = program.reference.scalars(t, float(group["lr0"]), hypers, remembered)
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
        step_tensor(program, flat.params[0], flat.grads[0], stored, first, others, words, given)
        flat.write_back()
        for n, x in stored.items():
            if x is not entry[n]:
                entry[n].copy_(x)
        for (name, _), value in zip(program.scalar_states, remembered, strict=True):
            entry[name].fill_(value)
        entry["step"].add_(1)


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
