"""Owners: DTensors that no rank can step from its part alone are dealt out among those that share
them.

The owner of a parameter is sent all parts of it, of its gradient and of its state, steps the whole
as one rank would, and sends every rank its new part.  So each matrix sign is taken once, and a rank
receives and holds what it owns.  Who owns what follows from shapes, so that all ranks know it.
Messages go along one mesh dimension after the other, by process groups that are there already.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from signconv.runtime import axes, mesh, sharded
from signconv.runtime import state as states
from signconv.runtime.backend import Task
from signconv.runtime.program import OptimizerProgram

#: What an owner is sent at once, of parameters, gradients and state; one alone may be larger.
BATCH_BYTES = 1 << 26
#: Every tensor of a message begins at a multiple of so many bytes, as all dtypes may.
ALIGNED = 8

#: A rank among those that share a parameter: its number along each mesh dimension that cuts it.
Place = tuple[int, ...]
#: Of which parameter of a batch, and of which rank, a message has the parts.
Key = tuple[int, Place]
#: What an owner does with whole parameters of one group; what each adds to totals, if anything.
Run = Callable[[Task], Tensor | None]

# ---------------------------------------------------------------- messages


@dataclass(frozen=True)
class Message:
    """One rank's parts of some tensors as bytes: how many, and of each tensor the first and the
    last of them, its shape, and where it lies in the whole."""

    size: int
    parts: tuple[tuple[slice, tuple[int, ...], tuple[slice, ...]], ...]

    def views(self, data: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """The tensors, of the dtypes of others, in the memory of ``data``."""
        return [
            data[mine].view(x.dtype).view(shape)
            for (mine, shape, _), x in zip(self.parts, like, strict=True)
        ]

    def of(self, wholes: Sequence[Tensor]) -> list[Tensor]:
        """The parts, as views of the whole tensors."""
        return [x[where] for (*_, where), x in zip(self.parts, wholes, strict=True)]

    def packed(self, parts: Sequence[Tensor]) -> Tensor:
        """Its bytes, where the parts lie."""
        data = torch.empty(self.size, dtype=torch.uint8, device=parts[0].device)
        torch._foreach_copy_(self.views(data, parts), [*parts])
        return data


@lru_cache(maxsize=1024)
def _messages(
    cuts: tuple[tuple[int, tuple[int, ...]], ...],
    sizes: Place,
    tensors: tuple[tuple[torch.Size, int], ...],
) -> dict[Place, Message]:
    """Those of all ranks, of tensors of these shapes and bytes an element.

    cuts: tensor dimensions and, the first cut first, which numbers of a place cut them.
    """
    made = {}
    for place in product(*map(range, sizes)):
        size, parts = 0, []
        for whole, width in tensors:
            spans = [(0, n) for n in whole]
            for dim, order in cuts:
                if dim < len(whole):
                    spans[dim] = mesh.part(whole[dim], [(place[k], sizes[k]) for k in order])
            shape = tuple(end - begin for begin, end in spans)
            count = math.prod(shape) * width
            parts.append((slice(size, size + count), shape, tuple(slice(*s) for s in spans)))
            size += -(-count // ALIGNED) * ALIGNED
        made[place] = Message(size, tuple(parts))
    return made


# ---------------------------------------------------------------- what is dealt out


@dataclass(frozen=True)
class Whole:
    """A parameter with its gradient, its state and its extra inputs at its owner."""

    p: Tensor
    entry: dict[str, Tensor]
    given: Sequence[Tensor | None]


class Lot:
    """A parameter that is dealt out: ``p``, the ``row``-th of the ``index``-th task."""

    def __init__(self, program: OptimizerProgram, task: Task, index: int, row: int) -> None:
        self.index, self.row, self.p = index, row, task.params[row]
        self.entry, grad = task.state[self.p], self.p.grad
        assert grad is not None
        kept = [n for n in states.names(program) if n in self.entry and n != "offset"]
        self._cut = [n for n in kept if sharded.placed_with(self.entry[n], self.p)]
        #: Of its state what comes back: clock and scalar states too, which all ranks have whole.
        self._back = [*self._cut, *(n for n in kept if n not in self._cut)]
        self._given = [None if m is None else m[self.p] for m in task.inputs.tensors]
        given = [x for x in self._given if x is not None]
        self.there = [self.p, grad, *(self.entry[n] for n in self._cut), *given]
        self.back = [self.p, *(self.entry[n] for n in self._back)]
        self.nbytes = sum(x.nbytes for x in self.there)

    def cost(self, program: OptimizerProgram) -> int:
        """How long its owner takes, in no unit."""
        made = self.p.numel()
        for r in program.reductions:
            if r.kind == "msign":
                count, rows, columns = axes.matrices(self.p.shape, r.matrix)
                made += count * rows * columns * min(rows, columns)
        return made

    def joined(
        self, messages: Mapping[Place, Message], data: Mapping[Place, Tensor], device: torch.device
    ) -> Whole:
        """What its owner was sent, contiguous."""
        wholes = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in self.there]
        for place, message in messages.items():
            torch._foreach_copy_(message.of(wholes), message.views(data[place], self.there))
        full, grad, *others = wholes
        if grad.dtype != full.dtype:
            full.grad_dtype = None  # any
        full.grad = grad
        found = iter(others)
        entry = {**self.entry, **{n: next(found) for n in self._cut}}
        return Whole(full, entry, [None if x is None else next(found) for x in self._given])

    def stepped(self, whole: Whole) -> list[Tensor]:
        """The whole of what comes back."""
        return [whole.p, *(whole.entry[n] for n in self._back)]


def _task(like: Task, wholes: Sequence[Whole]) -> Task:
    """What an owner steps at once of a param group."""
    params = [x.p for x in wholes]
    tensors = tuple(
        None if m is None else {x.p: g for x in wholes if (g := x.given[i]) is not None}
        for i, m in enumerate(like.inputs.tensors)
    )
    return replace(
        like,
        group={**like.group, "params": params},
        params=params,
        state={x.p: x.entry for x in wholes},
        inputs=replace(like.inputs, tensors=tensors),
    )


# ---------------------------------------------------------------- among whom


class Sharers:
    """The ranks that share a parameter, in one process group for each mesh dimension that cuts it;
    replicas, along other dimensions, do the same each for itself."""

    def __init__(self, p: Tensor) -> None:
        dims = mesh.cutting(p)
        self.groups = mesh.groups_of(p)
        self.sizes = tuple(mesh.mesh_of(p).size(i) for i in dims)
        self.here = tuple(mesh.mesh_of(p).get_local_rank(i) for i in dims)
        self.device, self.wire = mesh.local(p).device, sharded.wire(p)

    def dealt(
        self, lots: Sequence[Lot], costs: Sequence[int]
    ) -> Iterator[tuple[list[Lot], list[Place]]]:
        """What is exchanged at once and its owners: the costliest first, to who has least to do."""
        load = [(0, place) for place in product(*map(range, self.sizes))]
        queues: dict[Place, deque[Lot]] = {place: deque() for _, place in load}
        for cost, lot in sorted(zip(costs, lots, strict=True), key=lambda x: -x[0]):
            done, place = load[0]
            heapq.heapreplace(load, (done + cost, place))
            queues[place].append(lot)
        while any(queues.values()):
            batch: list[Lot] = []
            owners: list[Place] = []
            for place, queue in queues.items():
                held = 0
                while queue and (held == 0 or held + queue[0].nbytes <= BATCH_BYTES):
                    held += queue[0].nbytes
                    batch.append(queue.popleft())
                    owners.append(place)
            yield batch, owners

    def messages(self, p: Tensor, tensors: Sequence[Tensor]) -> dict[Place, Message]:
        """Those of all ranks, of tensors that are cut as ``p`` is."""
        number = {i: k for k, i in enumerate(mesh.cutting(p))}
        cuts = tuple(
            (dim, tuple(number[i] for i in order if i in number))
            for dim, order in mesh.cuts(p).items()
        )
        return _messages(cuts, self.sizes, tuple((x.shape, x.element_size()) for x in tensors))

    def exchanged(
        self,
        held: dict[Key, Tensor],
        owners: Sequence[Place],
        messages: Sequence[Mapping[Place, Message]],
        *,
        back: bool,
    ) -> dict[Key, Tensor]:
        """Of this rank's own messages, which are taken out of ``held``, those of all ranks to this
        owner; ``back``: the other way round.  All ranks must call."""
        along = range(len(self.sizes))
        for k in reversed(along) if back else along:
            ranks, before = range(self.sizes[k]), [*product(*map(range, self.sizes[:k]))]

            def keys(owner: Place, place: Place, before: list[Place] = before) -> list[Key]:
                mine = [j for j, x in enumerate(owners) if x[: len(owner)] == owner]
                return [(j, (*first, *place)) for j in mine for first in before]

            to_owner = [keys((*self.here[:k], r), self.here[k:]) for r in ranks]
            to_me = [keys(self.here[: k + 1], (r, *self.here[k + 1 :])) for r in ranks]
            sends, comes = (to_me, to_owner) if back else (to_owner, to_me)
            held = self._along(k, held, sends, comes, messages)
        return held

    def _along(
        self,
        k: int,
        held: dict[Key, Tensor],
        sends: Sequence[Sequence[Key]],
        comes: Sequence[Sequence[Key]],
        messages: Sequence[Mapping[Place, Message]],
    ) -> dict[Key, Tensor]:
        """One exchange along a mesh dimension: what goes to each rank there, and what comes."""
        none = torch.empty(0, dtype=torch.uint8, device=self.device)
        sent = torch.cat([none, *(held.pop(x) for each in sends for x in each)]).to(self.wire)
        size = {x: messages[x[0]][x[1]].size for each in (*sends, *comes) for x in each}
        out, counts = ([sum(size[x] for x in each) for each in way] for way in (sends, comes))
        got = torch.empty(sum(counts), dtype=torch.uint8, device=self.wire)
        torch.distributed.all_to_all_single(got, sent, counts, out, group=self.groups[k])
        every = [x for each in comes for x in each]
        parts = got.to(self.device).split([size[x] for x in every])
        return dict(zip(every, parts, strict=True))

    def add_up(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Rows that are zeros but at their owners, as they are there, on every rank."""
        there = torch.stack([*rows]).to(self.wire)
        for group in self.groups:
            torch.distributed.all_reduce(there, group=group)
        return [*there.to(self.device).unbind()]


# ---------------------------------------------------------------- what is done


@contextmanager
def failures() -> Iterator[list[Exception]]:
    """Where ``run_at_owners`` keeps what is raised first on this rank; raised at the end, when all
    exchanges of a step are done, or one of them failed."""
    errors: list[Exception] = []
    try:
        yield errors
    finally:
        if errors:
            first = errors.pop()  # frames that it knows hold whole tensors, and this list
            try:
                raise first
            finally:
                del first


def run_at_owners(
    program: OptimizerProgram,
    tasks: Sequence[Task],
    run: Run,
    errors: list[Exception],
    *,
    writes: bool,
) -> list[Tensor | None]:
    """``run`` on tasks of DTensors, each parameter whole and at its owner; this rank's part of what
    it ``writes`` is kept.

    Returns of each task what ``run`` did, float64 [params, names], where it finds totals; else
    None.  All ranks must call, with tasks alike.  Where ``run`` raises on one of them, that one
    keeps it in ``errors``, runs nothing more and goes on with the exchanges, so that no other waits
    for it.
    """
    totals = program.totals
    finds = totals is not None and (totals.trailing or not writes)
    kinds: dict[tuple[int, ...], list[Lot]] = {}
    for i, task in enumerate(tasks):
        for row, p in enumerate(task.params):
            groups = (*map(id, mesh.groups_of(p)),)
            kinds.setdefault(groups, []).append(Lot(program, task, i, row))
    found: list[dict[int, Tensor]] = [{} for _ in tasks]
    for lots in kinds.values():
        sharers = Sharers(lots[0].p)
        mine: dict[Lot, Tensor] = {}
        for batch, owners in sharers.dealt(lots, [x.cost(program) for x in lots]):
            mine |= _batch(sharers, batch, owners, tasks, run, errors, writes=writes)
        if finds and totals is not None:
            none = torch.zeros(len(totals.names), dtype=torch.float64, device=sharers.device)
            rows = [mine[x].to(sharers.device) if x in mine else none for x in lots]
            for lot, x in zip(lots, sharers.add_up(rows), strict=True):
                found[lot.index][lot.row] = x
    return [torch.stack([of[i] for i in range(len(of))]) if finds else None for of in found]


def _batch(
    sharers: Sharers,
    batch: Sequence[Lot],
    owners: Sequence[Place],
    tasks: Sequence[Task],
    run: Run,
    errors: list[Exception],
    *,
    writes: bool,
) -> dict[Lot, Tensor]:
    """Send a batch to its owners, run what this rank owns, and send it back; what ``run`` gave."""
    here = sharers.here
    there = [sharers.messages(x.p, x.there) for x in batch]
    held = {
        (j, here): messages[here].packed([mesh.local(x).detach() for x in lot.there])
        for j, (lot, messages) in enumerate(zip(batch, there, strict=True))
    }
    held = sharers.exchanged(held, owners, there, back=False)
    owned = {
        lot: lot.joined(messages, {place: held[j, place] for place in messages}, sharers.device)
        for j, (lot, messages) in enumerate(zip(batch, there, strict=True))
        if owners[j] == here
    }
    del held
    found: dict[Lot, Tensor] = {}
    for i, task in enumerate(tasks):
        lots = [lot for lot in owned if lot.index == i]
        if lots and not errors:
            try:
                made = run(_task(task, [owned[x] for x in lots]))
            except Exception as error:  # the others wait for what comes back
                errors.append(error)
                break
            if made is not None:
                found |= dict(zip(lots, made.unbind(), strict=True))
    if not writes:
        return found
    back = [sharers.messages(x.p, x.back) for x in batch]
    sent = {
        (j, place): message.packed(message.of(lot.stepped(owned[lot])))
        for j, lot in enumerate(batch)
        if lot in owned
        for place, message in back[j].items()
    }
    del owned
    sent = sharers.exchanged(sent, owners, back, back=True)
    for j, lot in enumerate(batch):
        parts = [mesh.local(x).detach() for x in lot.back]
        torch._foreach_copy_(parts, back[j][here].views(sent[j, here], parts))
    return found
