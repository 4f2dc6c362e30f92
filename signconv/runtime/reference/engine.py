"""The reference backend: the generated module's PyTorch step, one parameter at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import sharded
from signconv.runtime.formats import Format
from signconv.runtime.program import MomentSlot, OptimizerProgram, check_shape, has_blocks
from signconv.runtime.reference import ops as ref


def step_group(
    program: OptimizerProgram,
    group: Mapping[str, Any],
    params: list[Tensor],
    state: Mapping[Tensor, dict[str, Tensor]],
    grad_scale: Tensor | None = None,
) -> None:
    """Step every parameter of ``params`` in place."""
    hypers = [float(h.read(group)) for h in program.hypers]
    factor = -1.0 if group["maximize"] else 1.0
    if grad_scale is not None:
        factor = ref.divide64(factor, float(grad_scale))
    for p in params:
        entry = state[p]
        check_shape(p, entry, program)
        t = int(entry["step"]) + 1
        memory = [float(entry[name]) for name, _ in program.memory]
        values = program.scalars(t, float(group["lr0"]), *memory, *hypers)
        for (name, _), value in zip(program.memory, values[len(program.outputs) :], strict=True):
            entry[name].fill_(value)
        values = values[: len(program.outputs)]
        device = p.device
        scalars = torch.tensor([factor, *values], dtype=torch.float64, device=device)
        scalars = scalars.to(torch.float32)
        base = int(entry["offset"])
        bits = [
            ref.random_bits(base, p.numel(), *ref.draw_keys(group["seed"], t, word), device)
            for word in range(program.words)
        ]
        blocks = has_blocks(p)
        formats = {m.name: m.format_for(blocks) for m in program.moments}
        assert p.grad is not None
        flat = p.detach().contiguous()
        factors = list(scalars.unbind())
        program.reference(flat, p.grad.contiguous(), entry, formats, factors[0], factors[1:], bits)
        if flat.data_ptr() != p.data_ptr():
            p.detach().copy_(flat)
        entry["step"].add_(1)


def fill(entry: dict[str, Tensor], m: MomentSlot, fmt: Format, p: Tensor) -> None:
    """Initial value of a moment that does not start from zero, rounded to nearest."""
    value = ref.load_float(p.detach().contiguous()) if m.init == "param" else None
    if value is None:
        value = torch.full((p.numel(),), float(m.init), dtype=torch.float32, device=p.device)
    # Just below half a unit
    field = torch.full((p.numel(),), 0x7FFFFFFF, dtype=torch.int32, device=p.device)
    ref.store_moment(entry[m.name], entry.get(f"{m.name}_scale"), value.contiguous(), field, fmt)


def find_nonfinite(params: list[Tensor], flag: Tensor) -> None:
    """Raise ``flag`` if any gradient is Inf or NaN; of a DTensor's, this rank's part."""
    for p in params:
        if p.grad is not None:
            bad = ~sharded.local(p.grad).isfinite().all()
            torch.maximum(flag, bad.to(flag.dtype), out=flag)
