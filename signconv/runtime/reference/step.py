"""One tensor's step in PyTorch: load and decode, the generated arithmetic, encode and store.

The CPU backend compiles this function as it stands, by calling it on ``cpu.lanes.Lanes``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.axes import ELEMENTS
from signconv.runtime.backend import Task
from signconv.runtime.formats import BLOCK
from signconv.runtime.program import (
    SUM_KINDS,
    MomentSlot,
    OptimizerProgram,
    Reduction,
    Sums,
    block_shape,
)
from signconv.runtime.reference import ops
from signconv.runtime.reference.random_bits import Word
from signconv.runtime.reference.stages import Values, run, sum_up, tree


def step_numbers(
    program: OptimizerProgram, task: Task, grad_scale: Tensor | None
) -> tuple[list[float], float]:
    """What ``program.reference.scalars`` takes as hypers, and the gradients' factor, float64."""
    scale = 1.0 if grad_scale is None else float(grad_scale)
    hypers = [float(h.read(task.group)) for h in program.hypers]
    if task.norm is not None:
        hypers.append(ops.divide64(float(task.norm), scale))
    hypers += map(float, task.inputs.values())
    if program.totals is not None:  # what nobody knows yet is read by no output that counts
        names = program.totals.names
        hypers += [0.0 for _ in names] if task.totals is None else task.totals.tolist()
    return hypers, ops.divide64(-1.0 if task.group["maximize"] else 1.0, scale)


def step_tensor(
    program: OptimizerProgram,
    param: Tensor,
    grad: Tensor,
    state: Mapping[str, Tensor],
    factor: Tensor,
    scalars: Sequence[Tensor],
    words: Sequence[Word],
    extras: Sequence[Tensor] = (),
    *,
    stepping: bool = True,
    by_row: bool = False,
) -> Any:
    """Step one contiguous parameter and its moments in place, all tensors on one device.

    Returns what it adds to totals, float64 [names], if there are any; alone, without ``stepping``.

    factor: fp32, multiplies the gradient; scalars: the program's outputs, fp32; words: random bits
    of the elements; extras: the extra inputs per element, fp32 or bf16, zeros for one that was not
    passed.
    """
    p = ops.load_param(param, state)
    g = ops.load_float(grad) * factor
    moments = tuple(_loaded(m, state, p.numel()) for m in program.moments)
    moments += tuple(map(ops.load_float, extras))
    noise = ops.sign_noise(words[0].field(0))
    if program.staged:
        plain = program.plain
        shape, device = ((), None) if plain else (param.shape, param.device)
        values = Values(program, shape, state, device)

        def elements(s: Sums, read: Sequence[Any]) -> Any:
            return s.reference(p, g, moments, read)

        def whole(r: Reduction, x: Any) -> Any:
            if r.kind not in SUM_KINDS:
                return getattr(x, r.kind)() + 0.0
            (x,) = blocks(program, state, (x,))
            return getattr(ops, f"{r.kind}_of_sum")(ops.tree_sum(x), p.numel())

        run(program, values, scalars, elements, whole)
        scalars = [*scalars, *values.read(program.reads, ELEMENTS)]
    found = None
    if program.totals is not None:
        summed = program.totals.reference(p, g, moments, scalars)
        found = torch.stack([_total(x, p, param if by_row else None) for x in summed])
        if not stepping:
            return found
    p, moments = program.reference.math(p, g, moments, scalars, noise)
    ops.store_param(param, p, words[0].field(1), state)
    for m, x in zip(program.moments, moments, strict=True):
        ops.store_moment(
            state[m.name],
            state.get(f"{m.name}_scale"),
            x,
            words[m.bits.word].field(m.bits.field),
            m.stored,
        )
    for k in program.kept:
        state[k.name].copy_(values.made[k.name].view(state[k.name].shape))
    return found


def _total(x: Any, p: Tensor, rows: Tensor | None) -> Tensor:
    """The sum of ``x``, one number or one for each element of flat ``p``: in fp32 over blocks,
    neighbours first, then in float64; rows: whose rows end in blocks of their own."""
    x = torch.as_tensor(x, dtype=torch.float32, device=p.device).expand(p.shape)
    if rows is None:
        x = torch.nn.functional.pad(x, (0, -x.numel() % BLOCK))
    else:
        x = ops.padded(
            x.contiguous(), torch.empty(block_shape(rows), dtype=torch.uint8, device="meta")
        )
    return sum_up(tree(x.view(-1, BLOCK, 1)).view(-1).double()) + 0.0


def _loaded(m: MomentSlot, state: Mapping[str, Tensor], numel: int) -> Any:
    """A moment as the generated arithmetic takes it: flat fp32, or codes and their scales."""
    if m.apart:
        return ops.load_apart(state[m.name], state[f"{m.name}_scale"], m.stored, numel)
    return ops.load_moment(state[m.name], state.get(f"{m.name}_scale"), m.stored, numel)


def blocks(
    program: OptimizerProgram, state: Mapping[str, Tensor], values: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Values of all elements with zeros behind each row's last one up to a whole block: sums are
    taken block by block where there are blocks."""
    scale = next((state[f"{m.name}_scale"] for m in program.moments if m.stored.scaled), None)
    return values if scale is None else [ops.padded(x, scale) for x in values]
