"""Batches of offloaded state: pinned host memory, and the slots on the device that hold it.

A slot's way is fetched (to the device), stepped, sent back; two streams copy, and events keep a
slot from being filled before it is sent back, and stepped before it is filled.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from signconv.runtime.backend import Backend, Task
from signconv.runtime.errors import coded

#: Batches on the device at once: fetched, stepped, sent back.
SLOTS = 3
_ALIGNED = 512  # bytes: where a tensor begins in its batch


class Batch:
    """Parameters whose state is one piece of host memory."""

    def __init__(
        self,
        key: str,
        params: list[Tensor],
        names: frozenset[str],
        state: Mapping[Tensor, dict[str, Tensor]],
    ) -> None:
        self.key, self.params = key, params
        self.layout: dict[tuple[Tensor, str], tuple[int, torch.dtype, torch.Size]] = {}
        end = 0
        for p in params:
            for n, x in state[p].items():
                if n in names:
                    self.layout[p, n] = end, x.dtype, x.shape
                    end += room(x)
        self.host = pinned(end, params[0].device)
        self.views = self._of(self.host)
        self.there: dict[tuple[Tensor, str], Tensor] = {}  # the same in the slot
        self.seen = -1  # the version of the host's memory when it was fetched

    def _of(self, memory: Tensor) -> dict[tuple[Tensor, str], Tensor]:
        return {
            key: memory[at : at + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for key, (at, dtype, shape) in self.layout.items()
        }

    def lacks(self, state: Mapping[Tensor, dict[str, Tensor]]) -> bool:
        """Whether some state of its parameters lies elsewhere."""
        return any(state[p].get(n, view) is not view for (p, n), view in self.views.items())

    def adopt(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Take in state that lies elsewhere: the first time, loaded, or replaced by hand."""
        for (p, n), view in self.views.items():
            if state[p].get(n) is not view and n in state[p]:
                view.copy_(state[p][n])
                state[p][n] = view

    def lie_in(self, slot: Tensor) -> None:
        """Where the batch is stepped, at every step."""
        self.there = self._of(slot)

    def entries(self, state: Mapping[Tensor, dict[str, Tensor]]) -> dict[Tensor, dict[str, Tensor]]:
        """The state of its parameters as it lies on the device."""
        made = {p: dict(state[p]) for p in self.params}
        for (p, n), x in self.there.items():
            made[p][n] = x
        return made

    def take_numbers(
        self,
        entries: Mapping[Tensor, dict[str, Tensor]],
        state: Mapping[Tensor, dict[str, Tensor]],
    ) -> None:
        """Clocks and scalar states that a backend put in place of those it was given."""
        for p, entry in entries.items():
            state[p].update({n: x for n, x in entry.items() if (p, n) not in self.there})


def _usual(sizes: Sequence[int], batch_bytes: int) -> int:
    """Bytes that any slot takes: no less than of a batch, and three quarters of all bytes lie in
    batches no larger.  Of those in one slot nothing is copied while another is stepped, which cost
    a third of the time of a model whose usual matrices were in it (docs/memory.md)."""
    rest = sum(sizes)
    for size in sorted(sizes, reverse=True):
        rest -= size
        if 4 * rest < 3 * sum(sizes):
            return max(size, batch_bytes)
    return batch_bytes


class Staging:
    """Staging buffers (slots) on one device and, on a GPU, the two streams that copy.

    The few batches that are much larger than the rest, an embedding and a head, share the first
    slot, so that two of them are never there at once (``_usual``).
    """

    def __init__(self, device: torch.device, batches: Sequence[Batch], batch_bytes: int) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        count = min(SLOTS, len(batches))
        usual = _usual([batch.host.numel() for batch in batches], batch_bytes)
        large = {batch for batch in batches if batch.host.numel() > usual}
        self.places = {batch: 0 if batch in large else n % count for n, batch in enumerate(batches)}
        sizes = [0] * count
        for batch, n in self.places.items():
            sizes[n] = max(sizes[n], batch.host.numel())
        #: The batches of the last round and of this one, in the order of their steps.
        self.before: list[Batch] = []
        self.round: list[Batch] = []
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
        for batch, n in self.places.items():
            batch.lie_in(self.slots[n])
            batch.seen = -1
        self.holds: list[Batch | None] = [None] * len(self.slots)
        if self.cuda:
            now = torch.cuda.current_stream(device)
            self.to_device, self.to_host = torch.cuda.Stream(device), torch.cuda.Stream(device)
            self.fetched = [now.record_event() for _ in self.slots]  # fetched
            self.returned = [now.record_event() for _ in self.slots]  # sent back

    def expect(self, batches: list[Batch]) -> None:
        """Fetch the first of those that are stepped now, and the others while these are."""
        self.before = [*self.round, *batches]
        self._fetch_ahead()

    def _fetch_ahead(self) -> None:
        """Fetch what comes next, in the order of the round before, into slots that hold nothing
        which comes sooner."""
        n = len(self.round)
        coming = self.before[n : n + SLOTS]
        for i, batch in enumerate(coming):
            if self.holds[self.places[batch]] not in coming[:i]:
                self.fetch(batch)

    def step(
        self,
        backend: Backend,
        batch: Batch,
        task: Task,
        skip: Tensor | None,
        grad_scale: Tensor | None,
    ) -> None:
        """Step a batch where it lies on the device; task: with the state as it is on the host."""
        self.arrived(batch)
        entries = batch.entries(task.state)
        there = replace(task, state=entries)
        backend.prepare(there)
        backend.step(there, skip, grad_scale)
        batch.take_numbers(entries, task.state)
        self.send_back(batch)
        self.round.append(batch)
        self._fetch_ahead()

    def fetch(self, batch: Batch) -> None:
        """Begin to copy a batch to its slot, unless it is there and unchanged."""
        n = self.places[batch]
        if self.holds[n] is batch and batch.seen == batch.host._version:
            return
        size = batch.host.numel()
        if not self.cuda:
            self.slots[n][:size].copy_(batch.host)
        else:
            with torch.cuda.stream(self.to_device):
                self.to_device.wait_event(self.returned[n])
                self.slots[n][:size].copy_(batch.host, non_blocking=True)
                self.fetched[n] = self.to_device.record_event()
        self.holds[n], batch.seen = batch, batch.host._version

    def arrived(self, batch: Batch) -> None:
        """Let the current stream wait until the batch is there."""
        self.fetch(batch)  # again, where somebody wrote to it meanwhile
        if self.cuda:
            torch.cuda.current_stream(self.device).wait_event(self.fetched[self.places[batch]])

    def send_back(self, batch: Batch) -> None:
        """Begin to copy a batch that was stepped to the host."""
        n, size = self.places[batch], batch.host.numel()
        if not self.cuda:
            batch.host.copy_(self.slots[n][:size])
        else:
            stepped = torch.cuda.current_stream(self.device).record_event()
            with torch.cuda.stream(self.to_host):
                self.to_host.wait_event(stepped)
                batch.host.copy_(self.slots[n][:size], non_blocking=True)
                self.returned[n] = self.to_host.record_event()
        batch.seen = batch.host._version  # what the slot holds is what the host gets

    def wait(self) -> None:
        """Wait until everything is on the host: whoever reads state reads it there."""
        if self.cuda:
            self.to_host.synchronize()
            self.to_device.synchronize()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # copies into slots and from host memory that go now
            self.wait()

    def finish(self) -> None:
        """Wait, and begin to fetch what comes first in the next round."""
        self.wait()
        if self.round:
            self.before, self.round = self.round, []
            self._fetch_ahead()  # for the next step, beside what comes before it


def room(x: Tensor) -> int:
    """Bytes that a tensor takes in its batch."""
    return -(-x.numel() * x.element_size() // _ALIGNED) * _ALIGNED


class _Pages(mmap.mmap):
    """Host memory that the driver of a GPU holds in place while it is mapped."""

    registered = 0

    def __del__(self) -> None:
        if self.registered:
            with contextlib.suppress(Exception):  # the driver may be gone at a process's end
                torch.cuda.cudart().cudaHostUnregister(self.registered)


def pinned(size: int, device: torch.device) -> Tensor:
    """uint8 [size] of host memory; on a GPU's behalf its pages are held in place.

    By cudaHostRegister, since torch's own pinned memory comes in powers of two.
    """
    if device.type != "cuda":
        return torch.zeros(size, dtype=torch.uint8, device="cpu")
    pages = _Pages(-1, max(size, 1))
    made = torch.frombuffer(pages, dtype=torch.uint8)[:size]
    failed = torch.cuda.cudart().cudaHostRegister(made.data_ptr(), max(size, 1), 0)
    if int(failed):
        raise coded(
            RuntimeError,
            "SC447",
            f"offload: the system does not let {size:,} bytes of host memory be held in place "
            f"(CUDA error {int(failed)}): raise the limit of locked memory (ulimit -l), or free "
            "some",
        )
    pages.registered = made.data_ptr()
    return made
