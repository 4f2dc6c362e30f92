"""The reference backend: the generated module's PyTorch step, one parameter at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime.backend import Backend, Task
from signconv.runtime.dense import Dense
from signconv.runtime.formats import Format
from signconv.runtime.program import MomentSlot, check_shape, has_blocks
from signconv.runtime.reference import ops
from signconv.runtime.reference.step import step_tensor


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
        program, group = self.program, task.group
        hypers = [float(h.read(group)) for h in program.hypers]
        factor = -1.0 if group["maximize"] else 1.0
        if grad_scale is not None:
            factor = ops.divide64(factor, float(grad_scale))
        for p in task.params:
            entry, device = task.state[p], p.device
            t = int(entry["step"]) + 1
            remembered = [float(entry[name]) for name, _ in program.scalar_states]
            outputs, remembered = program.reference.scalars(
                t, float(group["lr0"]), hypers, remembered
            )
            for (name, _), value in zip(program.scalar_states, remembered, strict=True):
                entry[name].fill_(value)
            scalars = torch.tensor([factor, *outputs], dtype=torch.float64, device=device)
            first, *others = scalars.to(torch.float32).unbind()
            base = int(entry["offset"])
            bits = [
                ops.random_bits(base, p.numel(), *ops.draw_keys(group["seed"], t, word), device)
                for word in range(program.words)
            ]
            blocks = has_blocks(p)
            formats = {m.name: m.format_for(blocks) for m in program.moments}
            flat = Dense([p])
            step_tensor(program, flat.params[0], flat.grads[0], entry, formats, first, others, bits)
            flat.write_back()
            entry["step"].add_(1)


def fill(entry: dict[str, Tensor], m: MomentSlot, fmt: Format, p: Tensor) -> None:
    """Initial value of a moment that does not start from zero, rounded to nearest."""
    value = ops.load_float(p.detach().contiguous()) if m.init == "param" else None
    if value is None:
        value = torch.full((p.numel(),), float(m.init), dtype=torch.float32, device=p.device)
    # Just below half a unit
    field = torch.full((p.numel(),), 0x7FFFFFFF, dtype=torch.int32, device=p.device)
    ops.store_moment(entry[m.name], entry.get(f"{m.name}_scale"), value.contiguous(), field, fmt)
