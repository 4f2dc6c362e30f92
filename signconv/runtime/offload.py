"""State in host memory: fetched to the GPU for each step, stepped there, and sent back.

Parameters are stepped in batches of a few megabytes of state.  A batch's state is one piece of
pinned host memory and, while it is stepped, one of three slots on the device, so that one batch is
fetched and another sent back while a third is stepped, by the copy engines, which take nothing
from the matrix products of a backward beside them.  With gradient release a batch is stepped inside
backward, as soon as its gradients are complete, and its copies run beside what is left of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime import state as states
from signconv.runtime.backend import Backend, Task
from signconv.runtime.errors import coded
from signconv.runtime.extras import NONE, Inputs
from signconv.runtime.hybrid import Hybrid, rules
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.staging import Batch, Staging, room
from signconv.runtime.wrapped import unwrapped

#: Bytes of a batch's state, unless one parameter has more.
BATCH_BYTES = 1 << 26


class Offload:
    """Where the state of one optimizer lies, and its way to the device and back."""

    def __init__(self, names: frozenset[str], batch_bytes: int) -> None:
        self.names, self.batch_bytes = names, batch_bytes  # of the state tensors that move
        #: By the index of a param group and the device.
        self._batches: dict[tuple[int, torch.device], list[Batch]] = {}
        self._staged: dict[torch.device, Staging] = {}
        #: The group and the batch that a parameter is in.
        self._home: dict[Tensor, tuple[int, Batch]] = {}
        #: Gradient release: the complete gradients of batches that still wait for others.
        self._waiting: dict[Batch, dict[Tensor, Tensor]] = {}

    def fresh(self) -> Offload:
        """One like this for a copy of the optimizer."""
        return Offload(self.names, self.batch_bytes)

    def kept(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A parameter's state with moments, scales and master weights on the host."""
        return {n: x.cpu() if n in self.names else x for n, x in entry.items()}

    def step(
        self,
        backend: Backend,
        parts: Sequence[tuple[int, list[Tensor]]],
        groups: Sequence[Mapping[str, Any]],
        state: Mapping[Tensor, dict[str, Tensor]],
        skip: Tensor | None,
        grad_scale: Tensor | None,
        norms: Mapping[int, Tensor],
        inputs: Inputs = NONE,
    ) -> None:
        """Step the parameters of the groups with the given indices, all on one device.

        norms: of all gradients, by group, where the program reads one; inputs: extra ones.  Their
        state is on its way back then: ``finish`` waits for it.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise coded(
                RuntimeError,
                "SC449",
                "an offloaded optimizer waits for the host at every step, which a CUDA graph "
                "cannot hold: capture without offload",
            )
        self._waiting.clear()
        self._drop_moved(groups)
        work: list[tuple[Batch, int, list[Tensor]]] = []
        for i, params in parts:
            active = {*params}
            for batch in self._planned(i, groups[i], params, state):
                own = [p for p in batch.params if p in active]
                work += [(batch, i, own)] if own else []
        if not work:
            return
        staging = self._staging(work[0][0].params[0].device)
        staging.expect([batch for batch, _, _ in work])
        for batch, i, params in work:
            task = Task(batch.key, groups[i], params, state, norms.get(i), inputs)
            staging.step(backend, batch, task, skip, grad_scale)

    def gradient(
        self,
        backend: Backend,
        index: int,
        p: Tensor,
        group: Mapping[str, Any],
        state: Mapping[Tensor, dict[str, Tensor]],
    ) -> list[Tensor]:
        """The gradient of a parameter is complete, inside backward: step its batch if it was the
        last of it.  Returns the parameters that were stepped.

        What is left of incomplete batches is stepped by ``step``; either way ``finish`` is called
        before state is read.
        """
        if p not in self._home or self._home[p][0] != index:
            self._planned(index, group, [p], state)
        batch = self._home[p][1]
        assert p.grad is not None
        waiting = self._waiting.setdefault(batch, {})
        for q in [q for q, g in waiting.items() if q.grad is not g]:  # zeroed, never stepped
            del waiting[q]
        if p in waiting:
            raise coded(
                RuntimeError,
                "SC451",
                "gradient_release with offload steps batches of parameters, and one of them still "
                "waits for the gradients of its others, which the backward before this one did not "
                "give: call optimizer.step() after every backward",
            )
        waiting[p] = p.grad
        params = [q for q in batch.params if q in waiting]
        if any(q.requires_grad and q not in waiting for q in batch.params):
            return []
        del self._waiting[batch]
        self._adopt([batch], state)
        staging = self._staging(p.device)
        task = Task(batch.key, group, params, state)
        staging.step(backend, batch, task, None, None)
        return params

    def finish(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Wait until all state is on the host again, and fetch what the next step begins with."""
        self._drop_moved(groups)
        for staging in self._staged.values():
            staging.finish()

    def wait(self) -> None:
        """Wait until all state is on the host again: before it is read, or lies elsewhere."""
        for staging in self._staged.values():
            staging.wait()

    def _adopt(self, batches: Sequence[Batch], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Take in state that lies elsewhere."""
        if any(batch.lacks(state) for batch in batches):
            self.wait()  # it may be in batches of before, on their way back
            for batch in batches:
                batch.adopt(state)

    def _drop_moved(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Forget the batches of groups that hold other parameters now."""
        for index, device in [*self._batches]:
            members = {*groups[index]["params"]} if index < len(groups) else set()
            if any(not members.issuperset(b.params) for b in self._batches[index, device]):
                self._forget(index, device)

    def _forget(self, index: int, device: torch.device) -> None:
        for batch in self._batches.pop((index, device), ()):
            self._waiting.pop(batch, None)
            for p in batch.params:
                if p in self._home and self._home[p][1] is batch:
                    del self._home[p]

    def _planned(
        self,
        index: int,
        group: Mapping[str, Any],
        params: list[Tensor],
        state: Mapping[Tensor, dict[str, Tensor]],
    ) -> list[Batch]:
        """The batches of a group, of all its parameters with state, not of those alone that this
        step has gradients for; made anew where parameters or their state are others."""
        device = params[0].device
        key = index, device
        batches = self._batches.get(key, [])
        held = {p for batch in batches for p in batch.params}
        if not held.issuperset(params) or any(not state.get(p) for p in held):
            self._forget(index, device)
            known = [p for p in group["params"] if p.device == device and state.get(p)]
            batches = self._batches[key] = [*self._cut(key, known, state)]
            self._home.update({p: (index, batch) for batch in batches for p in batch.params})
        self._adopt(batches, state)
        return batches

    def _cut(
        self, key: Any, params: Iterable[Tensor], state: Mapping[Tensor, dict[str, Tensor]]
    ) -> Iterator[Batch]:
        """Batches of consecutive parameters.  Their names come again, so that what a backend keeps
        of earlier batches goes."""
        names = (f"offload {key} {n}" for n in itertools.count())
        found: list[Tensor] = []
        total = 0
        for p in params:
            size = sum(room(x) for n, x in state[p].items() if n in self.names)
            if found and total + size > self.batch_bytes:
                yield Batch(next(names), found, self.names, state)
                found, total = [], 0
            found.append(p)
            total += size
        if found:
            yield Batch(next(names), found, self.names, state)

    def _staging(self, device: torch.device) -> Staging:
        """The slots of a device, large enough for its batches."""
        batches = [b for (_, d), those in self._batches.items() if d == device for b in those]
        staging = self._staged.get(device)
        if staging is None or staging.places.keys() != {*batches}:
            if staging is not None:
                staging.wait()
            staging = self._staged[device] = Staging(device, batches, self.batch_bytes)
        return staging


class OffloadHandle:
    """What ``offload`` returns; ``remove()`` brings the state back to the parameters' devices."""

    def __init__(self, optimizer: FusedOptimizer | Hybrid) -> None:
        self.optimizer = optimizer
        self._on = [(part, part._offload) for part in rules(optimizer).values()]

    def remove(self) -> None:
        """Ordinary steps again, with the state beside the parameters."""
        for part, offload in self._on:
            if offload is None or offload is not part._offload:  # removed; another may be on
                continue
            offload.wait()
            part._offload = None
            for p, entry in part.state.items():
                if isinstance(p, Tensor):
                    far = {n: x for n, x in entry.items() if n in offload.names}
                    entry.update({n: x.to(p.device, copy=True) for n, x in far.items()})
            part._moved()

    def __enter__(self) -> OffloadHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def offload(optimizer: object, *, batch_bytes: int = BATCH_BYTES) -> OffloadHandle:
    """Keep the optimizer's state in pinned host memory and fetch it for each step.

    The device holds three batches of about ``batch_bytes`` of state in place of all of it (the
    model's usual matrices may need more), one of them the largest.  The numbers are those of a step
    without it, bit for bit.  ``state[p]`` are tensors of the host; edit or load them as always.
    With gradient_release batches are stepped inside backward; state is on the host again after
    ``optimizer.step()``.

    optimizer: one of this library, or what a trainer has wrapped around it.

    Returns a handle, also a context manager, whose ``remove()`` ends it.

    Raises TypeError for an optimizer not made by signconv and for DTensors (FSDP2 has
    CPUOffloadPolicy), ValueError for parameters on the CPU, for a size that is not positive and for
    an optimizer that reads sums over all tensors, RuntimeError if it is on already.
    """
    ours = unwrapped(optimizer, "offload")
    params = [p for group in ours.param_groups for p in group["params"]]
    if any(mesh.is_sharded(p) for p in params):
        raise coded(
            TypeError,
            "SC445",
            "offload does not take DTensors: give fully_shard "
            "offload_policy=CPUOffloadPolicy(), and the optimizer steps on the CPU",
        )
    if ours.offloaded:
        raise coded(
            RuntimeError,
            "SC446",
            "offload is already on for this optimizer: remove() it first",
        )
    summing = [part for part in rules(ours).values() if part.program.totals is not None]
    if summing:
        raise coded(
            ValueError,
            "SC472",
            f"offload steps {type(summing[0]).__name__} batch by batch, and it reads sums over all "
            "tensors: keep its state on the GPU, in fewer bits (--state fp8)",
        )
    if batch_bytes <= 0 or any(p.device.type == "cpu" for p in params):
        what = f"batch_bytes = {batch_bytes}" if batch_bytes <= 0 else "a parameter on the CPU"
        raise coded(
            ValueError,
            "SC448",
            f"offload: {what}: it needs a size above 0, and parameters on a GPU (those on the CPU "
            "have their state in host memory as it is)",
        )
    return _offload(ours, batch_bytes)


def _offload(optimizer: FusedOptimizer | Hybrid, batch_bytes: int) -> OffloadHandle:
    for part in rules(optimizer).values():
        numbers = {"step", "offset", *(n for n, _ in part.program.scalar_states)}
        names = frozenset(states.names(part.program)) - numbers
        part._offload = Offload(names, batch_bytes)
        for p, entry in part.state.items():
            if isinstance(p, Tensor):
                entry.update(part._kept(entry))
        part._moved()
    return OffloadHandle(optimizer)
