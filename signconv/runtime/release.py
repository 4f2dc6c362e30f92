"""Gradient release: every parameter is stepped inside backward, and its gradient freed there."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime.errors import coded
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.wrapped import unwrapped

#: Gradients whose averages are under way while backward goes on.
_AHEAD = 4
#: Added to the norm, as torch.nn.utils.clip_grad_norm_ does.
_TINY = 1e-6


class ReleaseHandle:
    """What ``gradient_release`` returns; ``remove()`` goes back to ordinary steps."""

    def __init__(
        self, optimizer: FusedOptimizer, max_norm: float | None = None, group: Any = None
    ) -> None:
        self.optimizer, self.max_norm = optimizer, max_norm
        self._group = group  # whose ranks gradients are averaged over
        self._under_way: deque[tuple[int, Tensor, Any]] = deque()
        self._stepped: set[int] = set()  # since optimizer.step()
        #: The norm of all gradients that ``norm()`` found last, a tensor of one element.
        self.total_norm: Tensor | None = None
        self._keeping = self._measuring = False
        self._factor: Tensor | None = None
        self._clipped: set[int] = set()
        self._sums: dict[tuple[int, ...], tuple[list[Any], Tensor]] = {}
        self._hooks: list[Any] = [optimizer.register_step_pre_hook(self._before_step)]
        for index, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                if p.requires_grad:
                    self._hooks.append(p.register_post_accumulate_grad_hook(self._hook(index)))

    def _hook(self, index: int) -> Any:
        me = weakref.ref(self)  # parameters hold hooks where Python's collector does not see it

        def step(p: Tensor) -> None:
            handle = me()
            if handle is not None and not handle._keeping:
                handle._complete(index, p)

        return step

    def _complete(self, index: int, p: Tensor) -> None:
        """The gradient of a parameter is complete, on this rank."""
        if self._group is None:
            self._take(index, p)
            return
        if not self._under_way:  # the last of them when backward ends
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._under_way.append((index, p, averaging(p.grad, self._group)))
        if len(self._under_way) > _AHEAD:
            self._take_next()

    def _take(self, index: int, p: Tensor) -> None:
        """Measure or step a parameter whose gradient is complete."""
        if self._measuring:
            self._measure(p)
            return
        if self.max_norm is not None:
            self._clip(p)
        for stepped in self.optimizer.step_parameter(index, p):
            stepped.grad = None
        self._stepped.add(id(p))

    def _take_next(self) -> None:
        index, p, average = self._under_way.popleft()
        average.wait()
        self._take(index, p)

    def _finish(self) -> None:
        while self._under_way:
            self._take_next()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if hasattr(optimizer, "found_inf") or hasattr(optimizer, "grad_scale"):
            raise coded(
                RuntimeError,
                "SC435",
                "GradScaler does not work with gradient_release: the parameters were stepped "
                "inside backward, with scaled gradients; train in bf16, which needs no scaling, "
                "or remove() the handle",
            )
        stepped, self._stepped = self._stepped, set()
        params = (p for group in optimizer.param_groups for p in group["params"])
        if self._group is not None and any(p.grad is not None and id(p) in stepped for p in params):
            raise coded(
                RuntimeError,
                "SC453",
                "gradient_release(average=…) found gradients of parameters that backward has "
                "stepped: if DistributedDataParallel is around the model, take it off, since it "
                "averages them too and keeps them all",
            )

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Within it gradients add up and nothing is stepped; the first backward behind it steps
        with their sums."""
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False

    @contextmanager
    def norm(self) -> Iterator[None]:
        """The first of two backwards of a clipped step: the norm of all gradients, each freed at
        once.  The second, outside, steps with gradients times max_norm / norm, at most 1.

        Raises RuntimeError where gradients of a backward before are there (accumulated ones)."""
        params = (p for g in self.optimizer.param_groups for p in g["params"])
        if any(p.grad is not None for p in params):
            raise coded(
                RuntimeError,
                "SC443",
                "handle.norm() found gradients of a backward before it, which it would free "
                "unstepped: zero_grad() after step(); clip gradients that were accumulated by "
                "clip_grad_norm_ and an ordinary step",
            )
        self._measuring, self._sums = True, {}
        try:
            yield
        finally:
            self._measuring = False
        total: Tensor | None = None
        for groups, squares in self._sums.values():
            for group in groups:
                torch.distributed.all_reduce(squares, group=group)
            total = squares if total is None else total.to(squares.device) + squares
        self._sums, self._clipped = {}, set()
        if total is not None:
            self.total_norm = total.sqrt().to(torch.float32)
            limit = float("inf") if self.max_norm is None else self.max_norm
            self._factor = (limit / (self.total_norm + _TINY)).clamp(max=1.0)

    def _measure(self, p: Tensor) -> None:
        assert p.grad is not None
        part = mesh.local(p.grad).detach()
        groups = mesh.groups_of(p) if mesh.is_sharded(p) else []
        key = (*map(id, groups), hash(part.device))
        square = torch.linalg.vector_norm(part, dtype=torch.float32).to(torch.float64).square()
        known = self._sums.get(key)
        self._sums[key] = groups, square if known is None else known[1] + square
        p.grad = None

    def _clip(self, p: Tensor) -> None:
        if self._factor is None or id(p) in self._clipped:
            raise coded(
                RuntimeError,
                "SC441",
                "gradient_release with max_norm steps in two backwards: first `with handle.norm(): "
                "loss.backward(retain_graph=True)`, then loss.backward(); this one has no norm of "
                "its own",
            )
        self._clipped.add(id(p))
        part = mesh.local(p.grad)
        part.mul_(self._factor.to(part.device))

    def remove(self) -> None:
        """Take the hooks off; the next backward keeps its gradients for ``optimizer.step()``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.optimizer._release = None

    def __enter__(self) -> ReleaseHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def gradient_release(
    optimizer: object, *, max_norm: float | None = None, average: Any = False
) -> ReleaseHandle:
    """Step each parameter inside ``backward`` as soon as its gradient is complete, and free it.

    The gradients of a model then never exist all at once.  The numbers are those of an ordinary
    step, bit for bit.  Keep ``optimizer.step()`` in the training loop: schedulers look for it, and
    it steps what cannot be stepped alone (DTensors that have to be gathered; with offload, batches
    of parameters some of which had no gradient).

    Every backward is a step, but for those inside ``with handle.accumulate():``.  max_norm: clip by
    the norm of all gradients, in two backwards (``ReleaseHandle.norm``).  With fully_shard
    gradients are reduced first, and each rank steps its part.

    average: data parallelism in place of DistributedDataParallel, whose buckets hold all gradients.
    Each gradient is averaged over all ranks (True) or those of a process group inside backward, a
    few ahead of the steps.  Parameters become those of the group's first rank; every rank has to
    use the same ones in each backward.  Buffers stay each rank's own.

    optimizer: one of this library, or what a trainer has wrapped around it.

    Returns a handle, also a context manager, whose ``remove()`` ends it.

    Raises TypeError for an optimizer not made by signconv and for DTensors with ``average``;
    ValueError with ``skip_nonfinite`` and for a max_norm that is not positive; RuntimeError if it
    is on already, or with plain parameters on several ranks and no ``average``.
    """
    ours = unwrapped(optimizer, "gradient_release")
    if ours.released:
        raise coded(
            RuntimeError,
            "SC432",
            "gradient_release is already on for this optimizer: remove() it first",
        )
    if any(g["skip_nonfinite"] for g in ours.param_groups):
        raise coded(
            ValueError,
            "SC433",
            "gradient_release cannot skip a step for a non-finite gradient: others have been "
            "stepped by the time it is seen; construct the optimizer with skip_nonfinite=False",
        )
    if max_norm is not None and not max_norm > 0:
        raise coded(ValueError, "SC442", f"max_norm = {max_norm!r} has to be above 0")
    params = [p for g in ours.param_groups for p in g["params"]]
    if average is not False and any(mesh.is_sharded(p) for p in params):
        raise coded(
            TypeError,
            "SC454",
            "gradient_release(average=…) is for plain parameters: the gradients of DTensors are "
            "reduced by what has sharded them (fully_shard); leave it out",
        )
    if average is False and _several_ranks() and not all(mesh.is_sharded(p) for p in params):
        raise coded(
            RuntimeError,
            "SC434",
            "gradient_release steps inside backward, before DDP has averaged the gradients; and "
            "DDP's buckets hold all of them, so that nothing would be freed: leave DDP out and "
            "give gradient_release average=True, or use fully_shard, whose gradients are reduced "
            "first",
        )
    group = _group(average) if _several_ranks() else None
    if group is not None:
        first = torch.distributed.get_global_rank(group, 0)
        for p in params:
            torch.distributed.broadcast(p.detach(), first, group)
    ours._release = ReleaseHandle(ours, max_norm, group)
    return ours._release


def _group(average: Any) -> Any:
    """The ranks to average over; None for none."""
    if average is False:
        return None
    return torch.distributed.group.WORLD if average is True else average


def averaging(grad: Tensor | None, group: Any) -> Any:
    """Begin to average a gradient over the ranks, in place, as DDP does: shares are summed."""
    assert grad is not None
    grad.div_(torch.distributed.get_world_size(group))
    return torch.distributed.all_reduce(grad, group=group, async_op=True)


def _several_ranks() -> bool:
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
