"""Norms of all gradients together, which a program may read (``OptimizerProgram.norm``).

Squares of fp32 and bf16 numbers are exact in float64, and their sums are taken there: over a tensor
in a fixed order (``reference/reduce.py``), then over the tensors of a param group, then over
groups.  So every backend has the same bits.  Of DTensors each rank sums its part and the ranks add
theirs up: the order is another one for every mesh, and the last places of float64 may be, far below
what the step's fp32 sees of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime.backend import Backend, Task
from signconv.runtime.reference.reduce import square_sum, tree_sum


def total(grads: Sequence[Tensor]) -> Tensor:
    """Sum of squares of plain tensors, 0-dim float64."""
    return tree_sum(torch.stack([square_sum(g) for g in grads]))


class Sums:
    """Sums of squares by param group, 0-dim float64, of what a step has seen so far."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.groups: dict[int, Tensor] = {}

    def add(self, group: int, total: Tensor) -> None:
        """What a group has on one device."""
        before = self.groups.get(group)
        self.groups[group] = total if before is None else before + total.to(before.device)

    def norm(self, group: int) -> Tensor:
        """The norm that a step of this group's parameters reads."""
        if self.scope == "group":
            return self.groups[group].sqrt()
        first, *others = (self.groups[i] for i in sorted(self.groups))
        for x in others:
            first = first + x.to(first.device)
        return first.sqrt()

    def given(self, task: Task) -> Task:
        """The task of a group, whose index its key begins with, with its norm."""
        return replace(task, norm=self.norm(_index(task)).to(task.params[0].device))


def _index(task: Task) -> int:
    assert isinstance(task.key, tuple)
    return int(task.key[0])


def of_tasks(sums: Sums, backend: Backend, tasks: Sequence[Task]) -> None:
    """Add what prepared tasks have, one for each group: none of DTensors."""
    for task in tasks:
        sums.add(_index(task), backend.square_sum(task))


def of_parameters(sums: Sums, parts: Sequence[tuple[int, list[Tensor]]]) -> None:
    """Add what parameters have, without a backend's tables; of DTensors every rank must call."""
    for index, params in parts:
        kinds: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        shared: dict[tuple[int, ...], list[object]] = {}
        wires: dict[tuple[int, ...], str] = {}
        for p in params:
            assert p.grad is not None
            groups = mesh.groups_of(p) if mesh.is_sharded(p) else []
            key = tuple(map(id, groups))
            shared[key] = groups
            wires[key] = mesh.mesh_of(p).device_type if groups else ""
            kinds[key].append(square_sum(mesh.local(p.grad).detach()))
        for key, values in kinds.items():
            total = tree_sum(torch.stack(values))
            there = total.to(wires[key]) if wires[key] else total
            for group in shared[key]:
                torch.distributed.all_reduce(there, group=group)
            sums.add(index, there.to(total.device))
