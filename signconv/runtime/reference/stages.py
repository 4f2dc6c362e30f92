"""Stages of a step in PyTorch: sums over a tensor or over its dimensions, and what is made of them.

The order of every sum follows from the shape alone (docs/design.md#sums).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import axes
from signconv.runtime.axes import ELEMENTS, STRIDED
from signconv.runtime.formats import SEGMENT, STRIDE
from signconv.runtime.msign import matrix_sign
from signconv.runtime.program import OptimizerProgram, Reduction, Sums, of_shape
from signconv.runtime.reference import ops


class Values:
    """The values of one tensor's stages, fp32: flat, one number for each of what it is ``over``."""

    def __init__(
        self, program: OptimizerProgram, shape: Sequence[int], state: Any, device: Any
    ) -> None:
        self.shape = shape
        self.over = {f"{m.name}_prev": m.over for m in program.kept}
        self.made: dict[str, Any] = {
            f"{m.name}_prev": state[m.name].reshape(-1) for m in program.kept
        }

        for name in program.shapes:
            number = torch.tensor(of_shape(name, shape), dtype=torch.float32, device="cpu")
            self.put(name, "", number.to(device))

    def put(self, name: str, over: str, value: Any) -> None:
        self.over[name], self.made[name] = over, value

    def read(self, names: Sequence[str], place: str) -> list[Any]:
        """Values as the numbers of ``place`` read them, flat."""
        return [self._spread(name, place) for name in names]

    def _spread(self, name: str, place: str) -> Any:
        over, value = self.over[name], self.made[name]
        if over == place or not over:
            return value
        dims = axes.broadcast(self.shape, place)
        return value.view(axes.broadcast(self.shape, over)).expand(dims).reshape(-1)


def run(
    program: OptimizerProgram,
    values: Values,
    scalars: Sequence[Any],
    elements: Callable[[Sums, Sequence[Any]], Sequence[Any]],
    whole: Callable[[Reduction, Any], Any],
) -> None:
    """All stages; ``elements``: what a pass over elements sums, given its scalars, and ``whole``: a
    reduction of that over the tensor."""
    for stage in program.stages:
        for s in stage.sums:
            read = [*scalars, *values.read(s.reads, s.source)]
            here = s.source == ELEMENTS
            summands = elements(s, read) if here else s.reference(read)
            for r, x in zip(s.results, summands, strict=True):
                if r.kind == "msign":
                    values.put(r.name, ELEMENTS, _matrix_sign(r, x, values.shape))
                elif here and not r.over:
                    values.put(r.name, "", whole(r, x))
                else:
                    view = axes.view(values.shape, s.source, r.over)
                    x = _full(x, math.prod(view))
                    made = reduce(r.kind, x, view, here and r.over in STRIDED)
                    values.put(r.name, r.over, made if r.over else made.reshape(()))
        for d in stage.derived:
            made = d.reference([*scalars, *values.read(d.reads, d.over)])
            count = math.prod(axes.broadcast(values.shape, d.over))
            for name, x in zip(d.outputs, made, strict=True):
                values.put(name, d.over, _full(x, count) if d.over else x.reshape(()))


def _matrix_sign(r: Reduction, x: Tensor, shape: Sequence[int]) -> Tensor:
    x = x.reshape(axes.matrices(shape, r.matrix))
    made = torch.empty_like(x)
    matrix_sign(x, r.how, made)
    return made.view(-1)


def _full(x: Tensor, count: int) -> Tensor:
    return x.expand(count) if x.dim() == 0 else x


def reduce(kind: str, x: Tensor, view: tuple[int, int, int], strided: bool) -> Tensor:
    """Flat ``x``, seen as [before, reduced, behind], without the one in the middle: flat; in the
    order of ``strided`` dimensions or of others."""
    before, length, behind = view
    x = x.reshape(view)
    if kind in ("amax", "amin"):
        return getattr(x, kind)(dim=1).reshape(-1) + 0.0
    if strided:
        pad = x.new_zeros(before, -length % SEGMENT, behind)
        parts = torch.cat((x, pad), dim=1).view(before, -1, SEGMENT // STRIDE, STRIDE, behind)
        total = parts[:, :, 0]
        for i in range(1, SEGMENT // STRIDE):
            total = total + parts[:, :, i]
        x = total.reshape(before, -1, behind)
    total = tree(x)
    return getattr(ops, f"{kind}_of_sum")(total, length).reshape(-1)


def tree(x: Tensor) -> Tensor:
    """[before, reduced, behind] -> [before, behind], neighbours first."""
    while x.shape[1] > 1:
        if x.shape[1] % 2:
            x = torch.cat((x, x.new_zeros(x.shape[0], 1, x.shape[2])), dim=1)
        x = x[:, 0::2] + x[:, 1::2]
    return x[:, 0]


def sum_up(x: Tensor) -> Tensor:
    """The sum over the first dimension, neighbours first."""
    return tree(x.reshape(1, x.shape[0], -1)).reshape(x.shape[1:])
