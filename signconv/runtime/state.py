"""What ``state[p]`` holds: its layout, its values before the first step, and a loaded copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import axes, legacy, mesh, sharded
from signconv.runtime import master as masters
from signconv.runtime.errors import coded
from signconv.runtime.formats import CHECK, MASTER, Format, named
from signconv.runtime.groups import number
from signconv.runtime.program import (
    MomentSlot,
    OptimizerProgram,
    block_shape,
    moment_shape,
    whole_blocks,
)
from signconv.runtime.reference.backend import fill
from signconv.runtime.reference.ops import load_moment, store_moment
from signconv.runtime.settings import has_float64, host_number

Layout = dict[str, tuple[torch.Size, torch.dtype]]


def layout(
    program: OptimizerProgram,
    p: Tensor,
    master: str | None,
    stored: Mapping[str, str] = MappingProxyType({}),
) -> Layout:
    """Shape and dtype of every state tensor of a parameter; of a DTensor, the unsharded ones.

    stored: formats that take the place of a program's own.
    """
    made: Layout = {}
    for m in program.moments:
        fmt = _format(m, stored)
        made[m.name] = (moment_shape(p, fmt), fmt.dtype)
        if fmt.scaled:
            made[f"{m.name}_scale"] = (block_shape(p), torch.uint8)
    for k in program.kept:
        made[k.name] = (torch.Size(axes.kept(p.shape, k.over)), torch.float32)
    for name, _ in program.scalar_states:
        made[name] = (torch.Size([]), torch.float64)
    made.update(masters.layout(p, master))
    made["step"] = made["offset"] = (torch.Size([]), torch.int64)
    return made


def _format(m: MomentSlot, stored: Mapping[str, str]) -> Format:
    """How a moment is stored, where ``stored`` stands in for a program's own formats."""
    return named(stored[m.name]) if m.name in stored else m.stored


def _as_saved(
    program: OptimizerProgram, p: Tensor, entry: Mapping[str, Any], stored: Mapping[str, str]
) -> dict[str, str]:
    """``stored``, and bf16 for what release 0.1 kept in it where rows were no whole blocks."""
    found = dict(stored)
    for m in program.moments:
        x = entry.get(m.name)
        plain = isinstance(x, Tensor) and x.dtype == torch.bfloat16 and x.shape == p.shape
        if plain and m.stored.scaled and not whole_blocks(p):
            found[m.name] = "bf16"
    return found


def number_device(device: torch.device) -> torch.device:
    """Where clocks and scalar states of a parameter lie: beside it, or on the host if its device
    has no float64."""
    return device if has_float64(device) else torch.device("cpu")


def names(program: OptimizerProgram) -> tuple[str, ...]:
    """All tensors that an entry of this program may have."""
    made = [n for m in program.moments for n in (m.name, f"{m.name}_scale")]
    made += [*(k.name for k in program.kept), *(n for n, _ in program.scalar_states)]
    return *made, MASTER, CHECK, "step", "offset"


def needed(program: OptimizerProgram) -> frozenset[str]:
    """Names of which an entry of this program has some."""
    return frozenset(
        (
            "step",
            "offset",
            *(m.name for m in program.moments),
            *(k.name for k in program.kept),
            *(n for n, _ in program.scalar_states),
        )
    )


def mend(program: OptimizerProgram, entry: dict[str, Any], p: Tensor) -> None:
    """Convert numbers that a user put for the step count or a scalar state.

    Raises ValueError or TypeError for what is no number.
    """
    if "step" in entry and not _scalar(entry["step"], torch.int64):
        entry["step"] = count(entry["step"], p)
    for name, _ in program.scalar_states:
        if name in entry and not _scalar(entry[name], torch.float64):
            value = float(number(entry[name], f"state of a parameter: {name}"))
            where = number_device(mesh.local(p).device)
            entry[name] = torch.tensor(value, dtype=torch.float64, device=where)


def _scalar(x: object, dtype: torch.dtype) -> bool:
    """Whether it is as ``create`` makes it."""
    return type(x) is Tensor and x.dtype is dtype and x.dim() == 0


def count(step: Any, p: Tensor) -> Tensor:
    """A step count from a number or a tensor of one; ValueError for what is none."""
    value = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
    try:
        number = float(value)
        whole = number >= 0 and number.is_integer() and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or number >= 2**63:
        raise coded(
            ValueError,
            "SC438",
            f"state of a parameter: step = {value!r} is no count of steps: put a whole number "
            "from 0 there",
        )
    exact = value if isinstance(value, int) else int(number)
    where = number_device(mesh.local(p).device)
    return torch.tensor(exact, dtype=torch.int64, device=where)


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
    device = number_device(mesh.local(p).device)
    for name, init in program.scalar_states:
        made[name] = host_number(init, torch.float64).to(device)
    made["step"] = host_number(0, torch.int64).to(device)
    made["offset"] = host_number(offset, torch.int64)
    for k in program.kept:
        if k.init:
            mesh.local(made[k.name]).fill_(k.init)
    filled = [m for m in program.moments if m.init != 0.0]
    if filled:
        value, entry = sharded.readable(p, made)
        for m in filled:
            if value.numel():
                fill(entry, m, value)
        sharded.write_back(p, made, value, entry)
    return made


def take(
    program: OptimizerProgram,
    p: Tensor,
    entry: Mapping[str, Any],
    key: object,
    master: str | None,
    stored: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """A copy of one parameter's saved state on its device, checked for keys and shapes.

    Moments that are ``stored`` in a format of an earlier release come out in today's.

    Without a master weight in ``entry`` a new one starts from the parameter; floors, which
    checkpoints of 0.1 have not, start from their initial values.  Entries that are not this
    program's are their user's and are kept.  Tensors that share memory or lie in another order
    become contiguous ones of their own.  Raises ValueError for another parameter's state.
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
    started = {
        n: torch.tensor(initial[n], dtype=torch.float64, device="cpu") for n in program.floors
    }
    entry = {**started, **entry}
    stored = _as_saved(program, p, entry, stored)
    wanted = layout(program, p, master, stored)
    if not wanted.keys() <= entry.keys():
        raise coded(
            ValueError,
            "SC506",
            f"state of parameter {key}: missing {sorted(set(wanted) - set(entry))}, unknown "
            f"{sorted(set(entry) - set(wanted), key=str)}",
        )
    numbers = {"step", *(n for n, _ in program.scalar_states)}
    made: dict[str, Any] = {n: _own(x, p) for n, x in entry.items() if n not in wanted}
    step = entry["step"]
    if not isinstance(step, Tensor) or step.dtype != torch.int64 or step.dim():
        entry = {**entry, "step": count(step, p)}
    for name, (shape, dtype) in wanted.items():
        value = entry[name]
        fits = isinstance(value, Tensor) and not value.is_meta and value.layout == torch.strided
        if not fits or value.shape != shape or value.dtype != dtype:
            tensor = isinstance(value, Tensor)
            got = f"{value.dtype} {list(value.shape)}" if tensor else repr(value)
            if tensor and not fits:
                got += " without data" if value.is_meta else f" {value.layout}"
            raise coded(
                ValueError,
                "SC507",
                f"state of parameter {key}: {name} is {got}, needs {dtype} {list(shape)}",
            )
        device = mesh.local(p).device
        if name == "offset":
            device = torch.device("cpu")
        elif name in numbers:
            device = number_device(device)
        made[name] = sharded.place(value, p, device)
    convert(program, p, made, stored)
    return made


def modernize(
    program: OptimizerProgram, groups: list[dict[str, Any]], state: Mapping[Any, dict[str, Any]]
) -> None:
    """Convert what an earlier release pickled, in place."""
    for group in groups:
        stored = legacy.stored(group.get("program"), program)
        if stored is None:
            continue
        for p in group["params"]:
            if p in state:
                convert(program, p, state[p], _as_saved(program, p, state[p], stored))
        group["program"] = program.hash


def convert(
    program: OptimizerProgram, p: Tensor, entry: dict[str, Any], stored: Mapping[str, str]
) -> None:
    """Encode anew, to the nearest code, what is ``stored`` in formats of an earlier release.

    Of a DTensor cut inside blocks all ranks must call.
    """
    for m in program.moments:
        old, new = _format(m, stored), m.stored
        if old is new:
            continue
        names = [m.name, f"{m.name}_scale"]
        here, plain = sharded.readable(p, {n: entry[n] for n in names if n in entry})
        x = load_moment(plain[m.name], plain.get(names[1]), old, here.numel())
        half = torch.full((), -(1 << 31), dtype=torch.int32, device=x.device).expand_as(x)
        store(entry, m, p, here, x, half)


def store(
    entry: dict[str, Any], m: MomentSlot, p: Tensor, here: Tensor, x: Tensor, field: Tensor
) -> None:
    """Encode flat fp32 ``x``, the values of ``here`` (``sharded.readable``), as the moment ``m`` of
    ``p``; ``field``: what rounds it."""
    codes = torch.empty(moment_shape(here, m.stored), dtype=m.stored.dtype, device=x.device)
    scale = None
    if m.stored.scaled:
        scale = torch.empty(block_shape(here), dtype=torch.uint8, device=x.device)
    store_moment(codes, scale, x, field, m.stored)
    entry[m.name] = sharded.place_part(codes, p, moment_shape(p, m.stored))
    if scale is not None:
        entry[f"{m.name}_scale"] = sharded.place_part(scale, p, block_shape(p))


def _own(x: Any, p: Tensor) -> Any:
    """A copy of an entry that is the user's, on the parameter's device and else as it is."""
    if not isinstance(x, Tensor) or mesh.is_sharded(x):
        return copy.deepcopy(x)
    return x.detach().to(p.device, copy=True)
