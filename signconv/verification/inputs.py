"""Extra inputs for the steps that ``verify`` makes with generated optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.ir.drawn import values
from signconv.runtime.program import OptimizerProgram


def passed(program: OptimizerProgram, params: Sequence[Tensor], t: int) -> dict[str, Any]:
    """What step ``t`` gets by name, equal on every device: of what it can do without something at
    odd steps, tensors of two dtypes by turns, numbers as floats or on the device by turns."""
    made: dict[str, Any] = {}
    for x in program.extras:
        if not (x.needed or t % 2):
            continue
        if x.per == "step":
            number = float(values(x.name, x.per, t, 1, x.nonneg))
            there = torch.tensor(number, dtype=torch.float32, device=params[0].device)
            made[x.name] = number if t % 4 == 1 else there
            continue
        tensors = []
        for i, p in enumerate(params):
            found = values(f"{x.name} {i}", x.per, t, p.numel(), x.nonneg)
            dtype = p.dtype if t % 4 == 1 else torch.float32
            flat = torch.from_numpy(found).to(dtype)
            tensors.append(flat.view(p.shape).to(p.device))
        made[x.name] = tensors
    return made


def named(optimizer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluator's extra inputs of one parameter, as ``step`` takes them."""
    made: dict[str, Any] = {}
    for x in optimizer.program.extras:
        if x.name in given:
            value = torch.tensor(given[x.name], dtype=torch.float32)
            made[x.name] = value if x.per == "step" else [value]
    return made


__all__ = ["named", "passed"]
