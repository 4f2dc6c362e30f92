"""One tensor's step in PyTorch: load and decode, the generated arithmetic, encode and store.

The CPU backend compiles this function as it stands, by calling it on ``cpu.lanes.Lanes``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from signconv.runtime.formats import Format
from signconv.runtime.program import OptimizerProgram, RandomBits
from signconv.runtime.reference import ops


def step_tensor(
    program: OptimizerProgram,
    param: Tensor,
    grad: Tensor,
    state: Mapping[str, Tensor],
    formats: Mapping[str, Format],
    factor: Tensor,
    scalars: Sequence[Tensor],
    bits: Sequence[Tensor],
) -> None:
    """Step one contiguous parameter and its moments in place, all tensors on one device.

    factor: fp32, multiplies the gradient; scalars: the program's outputs, fp32; bits: int32
    [numel] random bits, one tensor per word.
    """
    p = ops.load_param(param, state)
    g = ops.load_float(grad) * factor
    moments = tuple(
        ops.load_moment(state[m.name], state.get(f"{m.name}_scale"), formats[m.name])
        for m in program.moments
    )
    noise = ops.sign_noise(ops.low_field(bits[0]))
    if program.reductions:
        sums = program.reference.summands(p, g, moments, scalars)
        reduced = [
            getattr(ops, f"{kind}_of_sum")(ops.tree_sum(x), p.numel())
            for kind, x in zip(program.reductions, sums, strict=True)
        ]
        scalars = [*scalars, *reduced]
    p, moments = program.reference.math(p, g, moments, scalars, noise)
    ops.store_param(param, p, ops.high_field(bits[0]), state)
    for m, x in zip(program.moments, moments, strict=True):
        ops.store_moment(
            state[m.name],
            state.get(f"{m.name}_scale"),
            x,
            _field(bits, m.bits),
            formats[m.name],
        )


def _field(bits: Sequence[Tensor], which: RandomBits) -> Tensor:
    field = ops.low_field if which.half == "low" else ops.high_field
    return field(bits[which.word])
