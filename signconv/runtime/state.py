"""What ``state[p]`` holds: its layout, its values before the first step, and a loaded copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import master as masters
from signconv.runtime import sharded
from signconv.runtime.errors import coded
from signconv.runtime.formats import MASTER
from signconv.runtime.program import OptimizerProgram, block_shape, has_blocks
from signconv.runtime.reference.backend import fill

Layout = dict[str, tuple[torch.Size, torch.dtype]]


def layout(program: OptimizerProgram, p: Tensor, master: str | None) -> Layout:
    """Shape and dtype of every state tensor of a parameter; of a DTensor, the unsharded ones."""
    made: Layout = {}
    for m in program.moments:
        fmt = m.format_for(has_blocks(p))
        made[m.name] = (p.shape, fmt.dtype)
        if fmt.scaled:
            made[f"{m.name}_scale"] = (block_shape(p), torch.uint8)
    for name, _ in program.scalar_states:
        made[name] = (torch.Size([]), torch.float64)
    made.update(masters.layout(p, master))
    made["step"] = made["offset"] = (torch.Size([]), torch.int64)
    return made


def create(
    program: OptimizerProgram, p: Tensor, master: str | None, offset: int
) -> dict[str, Tensor]:
    """All state of one parameter before its first step.

    A DTensor cut inside blocks is gathered for a moment that starts from it; all ranks take part.
    """
    made = {n: sharded.zeros(p, s, d) for n, (s, d) in layout(program, p, master).items()}
    for name, init in program.scalar_states:
        made[name].fill_(init)
    made["offset"] = torch.tensor(offset, dtype=torch.int64)
    filled = [m for m in program.moments if m.init != 0.0]
    if filled:
        value, entry = sharded.readable(p, made)
        for m in filled:
            if value.numel():
                fill(entry, m, m.format_for(has_blocks(p)), value)
        sharded.write_back(p, made, value, entry)
    return made


def take(
    program: OptimizerProgram,
    p: Tensor,
    entry: Mapping[str, Any],
    key: object,
    master: str | None,
) -> dict[str, Tensor]:
    """A copy of one parameter's saved state on its device, checked for keys and shapes.

    Without a master weight in ``entry`` a new one starts from the parameter; floors, which
    checkpoints of 0.1 have not, start from their initial values.  Raises ValueError
    for a state that is not this parameter's.
    """
    kept = masters.layout(p, master)
    if not kept and MASTER in entry:
        raise coded(
            ValueError,
            "SC505",
            f"state of parameter {key} has the master weight of a bf16 parameter, and this "
            f"{p.dtype} parameter has none: construct {program.name} with "
            "master='split', or export the fp32 weights first (master_weights)",
        )
    if kept and MASTER not in entry:
        entry = {**entry, **{k: sharded.zeros(p, s, d) for k, (s, d) in kept.items()}}
    initial = dict(program.scalar_states)
    started = {n: torch.tensor(initial[n], dtype=torch.float64) for n in program.floors}
    entry = {**started, **entry}
    wanted = layout(program, p, master)
    if set(entry) != set(wanted):
        raise coded(
            ValueError,
            "SC506",
            f"state of parameter {key}: missing {sorted(set(wanted) - set(entry))}, unknown "
            f"{sorted(set(entry) - set(wanted))}",
        )
    made = {}
    for name, (shape, dtype) in wanted.items():
        value = entry[name]
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
            tensor = isinstance(value, Tensor)
            got = f"{value.dtype} {list(value.shape)}" if tensor else repr(value)
            raise coded(
                ValueError,
                "SC507",
                f"state of parameter {key}: {name} is {got}, needs {dtype} {list(shape)}",
            )
        device = torch.device("cpu") if name == "offset" else p.device
        made[name] = sharded.place(value, p, device)
    return made
