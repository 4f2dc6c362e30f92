"""What ``state[p]`` holds: its layout, its values before the first step, and a loaded copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import master as masters
from signconv.runtime import sharded
from signconv.runtime.errors import coded
from signconv.runtime.formats import CHECK, MASTER
from signconv.runtime.program import OptimizerProgram, block_shape, has_blocks
from signconv.runtime.reference.backend import fill
from signconv.runtime.settings import has_float64, host_number

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


def number_device(device: torch.device) -> torch.device:
    """Where clocks and scalar states of a parameter lie: beside it, or on the host if its device
    has no float64."""
    return device if has_float64(device) else torch.device("cpu")


def names(program: OptimizerProgram) -> tuple[str, ...]:
    """All tensors that an entry of this program may have."""
    made = [n for m in program.moments for n in (m.name, f"{m.name}_scale")]
    made += [n for n, _ in program.scalar_states]
    return *made, MASTER, CHECK, "step", "offset"


def create(
    program: OptimizerProgram, p: Tensor, master: str | None, offset: int
) -> dict[str, Tensor]:
    """All state of one parameter before its first step.

    A DTensor cut inside blocks is gathered for a moment that starts from it; all ranks take part.
    """
    numbers = {"step", "offset", *(n for n, _ in program.scalar_states)}
    made = {
        n: sharded.zeros(p, s, d)
        for n, (s, d) in layout(program, p, master).items()
        if n not in numbers
    }
    device = number_device(sharded.local(p).device)
    for name, init in program.scalar_states:
        made[name] = host_number(init, torch.float64).to(device)
    made["step"] = host_number(0, torch.int64).to(device)
    made["offset"] = host_number(offset, torch.int64)
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

    Without a master weight in ``entry`` a new one starts from the parameter.  Raises ValueError
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
    wanted = layout(program, p, master)
    if set(entry) != set(wanted):
        raise coded(
            ValueError,
            "SC506",
            f"state of parameter {key}: missing {sorted(set(wanted) - set(entry))}, unknown "
            f"{sorted(set(entry) - set(wanted))}",
        )
    made = {}
    numbers = {"step", *(n for n, _ in program.scalar_states)}
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
        device = sharded.local(p).device
        if name == "offset":
            device = torch.device("cpu")
        elif name in numbers:
            device = number_device(device)
        made[name] = sharded.place(value, p, device)
    return made
