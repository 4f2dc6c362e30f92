"""Norms of all gradients together, which a program may read (``OptimizerProgram.norm``).

Squares of fp32 and bf16 numbers are exact in float64, and their sums are taken there: over a tensor
in a fixed order (``reference/squares.py``), then over the tensors of a param group, then over
groups.  So every backend has the same bits.  Of DTensors each rank sums its part and the ranks add
theirs up: the order is another one for every mesh, and the last places of float64 may be, far below
what the step's fp32 sees of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime.backend import Backend, Task
from signconv.runtime.reference.reduce import tree_sum
from signconv.runtime.reference.squares import square_sum


class Sums:
    """Sums of squares by param group, 0-dim float64, of what a step has seen so far."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.groups: dict[int, Tensor] = {}
        self._norm: Tensor | None = None  # over all groups, once it was asked for

    def add(self, group: int, total: Tensor) -> None:
        """What a group has on one device."""
        before, self._norm = self.groups.get(group), None
        self.groups[group] = total if before is None else before + total.to(before.device)

    def norm(self, group: int) -> Tensor:
        """The norm that a step of this group's parameters reads."""
        if self.scope == "group":
            return self.groups[group].sqrt()
        if self._norm is None:
            total, *others = (self.groups[i] for i in sorted(self.groups))
            for x in others:
                total = total + x.to(total.device)
            self._norm = total.sqrt()
        return self._norm

    def given(self, task: Task) -> Task:
        """The task of a group, whose index its key begins with, with its norm."""
        return replace(task, norm=self.norm(_index(task)).to(task.params[0].device))


def _index(task: Task) -> int:
    assert isinstance(task.key, tuple)
    return int(task.key[0])


def of_tasks(sums: Sums, backend: Backend, tasks: Sequence[Task]) -> None:
    """Add what prepared tasks have, one for each group: none of DTensors."""
    for task in tasks:
        sums.add(_index(task), backend.total(task, backend.square_sums(task)))


def of_parts(
    sums: Sums,
    backend: Backend,
    tasks: Sequence[Task],
    whole: Callable[[Tensor], Tensor],
    far: Sequence[tuple[int, list[Tensor]]],
) -> None:
    """The same where there are DTensors, of which ``tasks`` have this rank's parts and ``whole``
    says which is whose; ``far``: those that are gathered, by group.  Every rank must call."""
    for task in tasks:
        found = backend.square_sums(task).unbind()
        pairs = [(whole(p), x) for p, x in zip(task.params, found, strict=True)]
        _add_shared(sums, _index(task), pairs)
    of_parameters(sums, far)


def of_parameters(sums: Sums, parts: Sequence[tuple[int, list[Tensor]]]) -> None:
    """Add what parameters have, without a backend's tables; of DTensors every rank must call."""
    for index, params in parts:
        pairs = [(p, square_sum(mesh.local(_grad(p)).detach())) for p in params]
        _add_shared(sums, index, pairs)


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _add_shared(sums: Sums, index: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Parts of DTensors that the same ranks share are added up by one number."""
    kinds: dict[tuple[int, ...], tuple[list[Any], list[Tensor], str]] = {}
    for p, square in pairs:
        groups = mesh.groups_of(p) if mesh.is_sharded(p) else []
        wire = mesh.mesh_of(p).device_type if groups else square.device.type
        kinds.setdefault(tuple(map(id, groups)), (groups, [], wire))[1].append(square)
    for groups, values, wire in kinds.values():
        total = tree_sum(torch.stack(values))
        there = total.to(wire) if groups else total
        for group in groups:
            torch.distributed.all_reduce(there, group=group)
        sums.add(index, there.to(total.device))
