"""Sums over many tensors that a program may read: the norm of all gradients
(``OptimizerProgram.norm``) and its totals (``OptimizerProgram.totals``).

Both are float64.  Squares of fp32 and bf16 numbers are exact there, and are summed in a fixed
order (``reference/squares.py``); what totals sum is added up in fp32 over blocks of 32 elements
and in float64 from there on (``reference/step.py``).  Then the tensors of a param group are added
up, then groups.  So every backend has the same bits.  Of DTensors each rank sums its part, or what
it owns (``owners.py``), and the ranks add theirs up: the order is another one for every mesh, and
the last places of float64 may be, far below what the step's fp32 sees of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime.backend import Backend, Task
from signconv.runtime.owners import run_at_owners
from signconv.runtime.program import OptimizerProgram
from signconv.runtime.reference.backend import ReferenceBackend
from signconv.runtime.reference.squares import square_sum
from signconv.runtime.reference.stages import sum_up


class Sums:
    """Sums by param group, float64 of any shape, of what a step has seen so far.

    beside: what other optimizers have that "all" takes in, by numbers that are no group's here and
    say in which order they are added up.  waiting: whether those of the groups are still to come.
    """

    def __init__(self, scope: str, beside: Mapping[int, Tensor] | None = None) -> None:
        self.scope, self.waiting = scope, False
        self.groups: dict[int, Tensor] = {**(beside or {})}
        self._total: Tensor | None = None  # over all groups, once it was asked for …
        self._norm: Tensor | None = None  # … and its root

    def add(self, group: int, total: Tensor) -> None:
        """What a group has on one device."""
        before, self._total, self._norm = self.groups.get(group), None, None
        self.groups[group] = total if before is None else before + total.to(before.device)

    def total(self, group: int) -> Tensor:
        """The sum that a step of this group's parameters reads."""
        if self.scope == "group":
            return self.groups[group]
        if self._total is None:
            total, *others = (self.groups[i] for i in sorted(self.groups))
            for x in others:
                total = total + x.to(total.device)
            self._total = total
        return self._total

    def norm(self, group: int) -> Tensor:
        """Its root."""
        if self.scope == "group":
            return self.total(group).sqrt()
        if self._norm is None:
            self._norm = self.total(group).sqrt()
        return self._norm

    def given(self, task: Task) -> Task:
        """The task of a group with the norm that it reads."""
        return replace(task, norm=self.norm(index(task)).to(task.params[0].device))


def index(task: Task) -> int:
    """The param group of a task, whose key begins with it."""
    assert isinstance(task.key, tuple)
    return int(task.key[0])


def of_tasks(sums: Sums, backend: Backend, tasks: Sequence[Task]) -> None:
    """Add what prepared tasks have, one for each group: none of DTensors."""
    for task in tasks:
        sums.add(index(task), backend.total(task, backend.square_sums(task)))


def of_parts(
    sums: Sums,
    backend: Backend,
    tasks: Sequence[Task],
    whole: Callable[[Tensor], Tensor],
    far: Sequence[tuple[int, list[Tensor]]],
) -> None:
    """The same where there are DTensors, of which ``tasks`` have this rank's parts and ``whole``
    says which is whose; ``far``: those that are dealt out, by group.  Every rank must call."""
    for task in tasks:
        _add_parts(sums, task, backend.square_sums(task), whole)
    of_parameters(sums, far)


def of_parameters(sums: Sums, parts: Sequence[tuple[int, list[Tensor]]]) -> None:
    """Add what parameters have, without a backend's tables; of DTensors every rank must call."""
    for group, params in parts:
        pairs = [(p, square_sum(mesh.local(_grad(p)).detach())) for p in params]
        _add_shared(sums, group, pairs)


def beside(
    parts: Sequence[tuple[OptimizerProgram, int, Mapping[Any, Sequence[tuple[int, list[Tensor]]]]]],
) -> list[dict[int, Tensor]]:
    """For each part of a hybrid that reads the norm of all gradients the sums of the others', by
    the place of their groups from its own first one: they are added up in the hybrid's order.

    parts: of each its program, how many groups it has and what it steps, device by device.
    """
    made: list[dict[int, Tensor]] = [{} for _ in parts]
    first = [sum(count for _, count, _ in parts[:i]) for i in range(len(parts))]
    alone: dict[int, Sums] = {}
    for i, (program, _, _) in enumerate(parts):
        for j, (_, _, work) in enumerate(parts) if program.norm == "all" else ():
            if j == i:
                continue
            if j not in alone:
                alone[j] = Sums("all")
                for there in work.values():
                    of_parameters(alone[j], there)
            made[i] |= {first[j] + k - first[i]: x for k, x in alone[j].groups.items()}
    return made


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _add_parts(sums: Sums, task: Task, found: Tensor, whole: Callable[[Tensor], Tensor]) -> None:
    """Sums by parameter of a task; a rank that has no part of one stepped a block of zeros."""
    pairs = []
    for p, x in zip(task.params, found.unbind(), strict=True):
        own = whole(p)
        pairs.append((own, x if mesh.local(own).numel() else torch.zeros_like(x)))
    _add_shared(sums, index(task), pairs)


def _add_shared(sums: Sums, group: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Parts of DTensors that the same ranks share are added up by one collective."""
    kinds: dict[tuple[int, ...], tuple[list[Any], list[Tensor], str]] = {}
    for p, x in pairs:
        groups = mesh.groups_of(p) if mesh.is_sharded(p) else []
        wire = mesh.mesh_of(p).device_type if groups else x.device.type
        kinds.setdefault(tuple(map(id, groups)), (groups, [], wire))[1].append(x)
    for groups, values, wire in kinds.values():
        total = sum_up(torch.stack(values))
        there = total.to(wire) if groups else total
        for ranks in groups:
            torch.distributed.all_reduce(there, group=ranks)
        sums.add(group, there.to(total.device))


# ---------------------------------------------------------------- totals, and steps with them


@dataclass
class Job:
    """What is stepped on one device: prepared ``tasks``, one for each group, and tasks of DTensors
    that cannot be stepped in parts and are ``dealt`` out.  ``whole`` says whose parts stand in the
    tasks, where there are DTensors."""

    backend: Backend
    device: torch.device
    tasks: list[Task]
    skip: Tensor | None
    grad_scale: Tensor | None
    dealt: list[Task]
    whole: Callable[[Tensor], Tensor] | None

    def step(self, known: Sums | None, found: Sums | None, errors: list[Exception]) -> None:
        """Step everything; ``known``: the totals; ``found``: where trailing ones are added;
        ``errors``: of what is dealt out (``owners.failures``)."""
        self._run(_step, known, found, errors, writes=True)

    def sum(self, known: Sums | None, found: Sums, errors: list[Exception]) -> None:
        """Add what everything has to ``found``."""
        self._run(_sum, known, found, errors, writes=False)

    def _run(
        self,
        run: Callable[[Job, Backend, Task], Tensor | None],
        known: Sums | None,
        found: Sums | None,
        errors: list[Exception],
        *,
        writes: bool,
    ) -> None:
        with self.backend.on_device(self.device):
            for task in self.tasks:
                made = run(self, self.backend, _knowing(task, known))
                if made is None or found is None:
                    continue
                if self.whole is None:
                    found.add(index(task), self.backend.total(task, made))
                else:
                    _add_parts(found, task, made, self.whole)
            dealt = [_knowing(task, known) for task in self.dealt]

            def at_owner(task: Task) -> Tensor | None:
                once = type(self.backend)(self.backend.program)  # whose tables go with it
                once.prepare(task)
                return run(self, once, task)

            every = run_at_owners(self.backend.program, dealt, at_owner, errors, writes=writes)
            for task, made in zip(dealt, every, strict=True):
                if made is not None and found is not None:
                    found.add(index(task), sum_up(made))

    def settle(self, known: Sums) -> None:
        """Clocks and scalar states of a step that found totals on its way go on."""
        with self.backend.on_device(self.device):
            for task in self.tasks:
                self.backend.settle(_knowing(task, known), self.skip, self.grad_scale)
            for task in self.dealt:  # of whose scalar states no backend has tables
                plain = ReferenceBackend(self.backend.program)
                plain.settle(_knowing(task, known), self.skip, self.grad_scale)


@dataclass
class Later:
    """What is stepped on one device by ``run``, which takes the flag that skips it (offloaded
    state, which no total is made of)."""

    device: torch.device
    skip: Tensor | None
    run: Callable[[Tensor | None], None]


def _step(job: Job, backend: Backend, task: Task) -> Tensor | None:
    return backend.step(task, job.skip, job.grad_scale)


def _sum(job: Job, backend: Backend, task: Task) -> Tensor:
    return backend.sums(task, job.skip, job.grad_scale)


def _knowing(task: Task, known: Sums | None) -> Task:
    if known is None or not known.groups:
        return task
    return replace(task, totals=known.total(index(task)).to(task.params[0].device))


def advance(
    program: OptimizerProgram, every: Sequence[Job | Later], errors: list[Exception]
) -> None:
    """Step what is prepared, and find the totals before it and on its way; what fails of that
    which is dealt out is in ``errors`` then (``owners.failures``)."""
    for late in every:
        if isinstance(late, Later):
            late.run(late.skip)
    read, jobs = program.totals, [job for job in every if isinstance(job, Job)]
    if read is None:
        for job in jobs:
            job.step(None, None, errors)
        return
    skip_together(jobs)
    known: Sums | None = None
    for _ in range(read.rounds):
        found = Sums(read.over)
        for job in jobs:
            job.sum(known, found, errors)
        known = found
    trailing = Sums(read.over) if read.trailing else None
    for job in jobs:
        job.step(known, trailing, errors)
    if trailing is not None:
        for job in jobs:
            job.settle(trailing)


def skip_together(jobs: Sequence[Job | Later]) -> None:
    """One answer for all devices to whether the step is skipped: its sums are over them, and one
    that skips it writes none."""
    flags = [job.skip for job in jobs if job.skip is not None]
    if len(jobs) > 1 and flags:
        made: dict[torch.device, Tensor] = {}
        for job in jobs:
            if job.device not in made:
                flag, *others = (x.to(job.device).reshape(()) for x in flags)
                for x in others:
                    flag = flag.maximum(x)
                made[job.device] = flag
            job.skip = made[job.device]


def inherit(
    program: OptimizerProgram,
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, Mapping[str, Tensor]],
    fresh: Mapping[Tensor, dict[str, Tensor]],
) -> None:
    """Parameters that come later begin with the states that their group shares; those of a group
    that comes later, where sums are over all, with those of another."""
    shared = program.shared
    if not (shared and fresh):
        return
    every = [p for group in groups for p in group["params"]]
    for group in groups:
        near = [*group["params"], *(every if _over(program) == "all" else ())]
        held = (state[p] for p in near if p not in fresh and p in state)
        old = next((entry for entry in held if shared[0] in entry), None)
        if old is not None:
            for p in (p for p in group["params"] if p in fresh):
                for name in shared:
                    fresh[p][name].copy_(old[name])


def _over(program: OptimizerProgram) -> str:
    return program.norm if program.totals is None else program.totals.over


def share(
    program: OptimizerProgram,
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, Mapping[str, Tensor]],
    stepped: Sequence[Tensor],
) -> None:
    """Parameters that had no gradient get the states that those of their group share; those of a
    group without any, where sums are over all, those of the first that had one."""
    if sum(len(g["params"]) for g in groups) == len(stepped):
        return
    active = {*map(id, stepped)}
    every = [p for group in groups for p in group["params"]]
    for group in groups:
        near = [*group["params"], *(every if _over(program) == "all" else ())]
        first = next((state[p] for p in near if id(p) in active), None)
        if first is not None:
            for entry in (state[p] for p in group["params"] if id(p) not in active and p in state):
                for name in (n for n in program.shared if n in entry):
                    entry[name].copy_(first[name])
