"""Gradient release: every parameter is stepped inside backward, and its gradient freed there."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime.averaging import Averaging, same_parameters
from signconv.runtime.errors import coded
from signconv.runtime.hybrid import Hybrid, rules
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.wrapped import unwrapped

#: Added to the norm, as torch.nn.utils.clip_grad_norm_ does.
_TINY = 1e-6


class ReleaseHandle:
    """What ``gradient_release`` returns; ``remove()`` goes back to ordinary steps."""

    def __init__(
        self,
        optimizer: FusedOptimizer | Hybrid,
        max_norm: float | None = None,
        group: Any = None,
    ) -> None:
        self.optimizer, self.max_norm = optimizer, max_norm
        #: The norm of all gradients that ``norm()`` found last, a tensor of one element.
        self.total_norm: Tensor | None = None
        self._keeping = self._measuring = False
        self._factor: Tensor | None = None
        self._clipped: set[int] = set()
        self._sums: dict[tuple[int, ...], tuple[list[Any], Tensor]] = {}
        self._backward = -1  # the one that runs, by torch's number
        self._index: dict[int, int] = {}  # of the group that a parameter is in
        #: Since optimizer.step(): parameters stepped, and gradients that it has to step.
        self._stepped: set[int] = set()
        self._left: dict[int, Tensor] = {}
        #: Parameters and gradients of the step that runs, to be freed when it is done.
        self._taken: list[tuple[Tensor, Tensor]] = []
        params = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        self._known = {*map(id, params)}
        self._averaging = None if group is None else Averaging(group, params, self._take)
        self._hooks: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        hook = self._hook()
        self._hooks += [p.register_post_accumulate_grad_hook(hook) for p in params]

    def _hook(self) -> Any:
        me = weakref.ref(self)  # parameters hold hooks where Python's collector does not see it

        def step(p: Tensor) -> None:
            handle = me()
            if handle is not None and not handle._keeping:
                handle._complete(p)

        return step

    def _complete(self, p: Tensor) -> None:
        """The gradient of a parameter is complete, on this rank."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward = backward
            groups = self.optimizer.param_groups
            self._index = {id(q): i for i, g in enumerate(groups) for q in g["params"]}
            if self._averaging is not None:
                engine = torch.autograd.Variable._execution_engine
                engine.queue_callback(self._averaging.finish)
        if self._averaging is None:
            self._take(p)
        else:
            self._averaging.complete(p)

    def _take(self, p: Tensor) -> None:
        """Measure or step a parameter whose gradient is complete, on all ranks."""
        index = self._index.get(id(p))
        if index is None:  # taken out of its group by hand
            return
        if self._measuring:
            self._measure(p)
            return
        if self.max_norm is not None:
            self._clip(p)
        if p.grad is not None:
            self._left[id(p)] = p.grad
        for stepped in self.optimizer.step_parameter(index, p):
            stepped.grad = None
            self._stepped.add(id(stepped))
            self._left.pop(id(stepped), None)

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
        left, self._left = self._left, {}
        params = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        others = [p for p in params if left.get(id(p)) is not p.grad]
        self._taken = [(p, left[id(p)]) for p in params if left.get(id(p)) is p.grad]
        if not others or (self._averaging is None and self.max_norm is None):
            return
        if self._averaging is not None and any(id(p) in stepped for p in others):
            raise coded(
                RuntimeError,
                "SC453",
                "gradient_release(average=…) found gradients of parameters that backward has "
                "stepped: if DistributedDataParallel is around the model, take it off, since it "
                "averages them too and keeps them all",
            )
        self._refuse_unknown(others)
        if self.max_norm is not None:
            _refuse_norm()
        assert self._averaging is not None
        self._averaging.now(others)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Free what backward had to leave, or the next backward would add to it."""
        taken, self._taken = self._taken, []
        for p, grad in taken:
            if p.grad is grad:
                p.grad = None

    def _refuse_unknown(self, params: list[Tensor]) -> None:
        if any(id(p) not in self._known for p in params):
            raise coded(
                RuntimeError,
                "SC455",
                "a parameter was added or unfrozen after gradient_release, which neither clips "
                "nor averages its gradient: remove() the handle and call gradient_release again",
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

        Raises RuntimeError where gradients of a backward before are there (accumulated ones), and
        of parameters that came after ``gradient_release``."""
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
        self._refuse_unknown(
            [p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        )
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
            _refuse_norm()
        self._clipped.add(id(p))
        part = mesh.local(p.grad)
        part.mul_(self._factor.to(part.device))

    def remove(self) -> None:
        """Take the hooks off; the next backward keeps its gradients for ``optimizer.step()``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.optimizer._release is self:
            self.optimizer._release = None

    def __enter__(self) -> ReleaseHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def gradient_release(
    optimizer: object,
    *,
    max_norm: float | None = None,
    average: bool | torch.distributed.ProcessGroup | None = False,
) -> ReleaseHandle:
    """Step each parameter inside ``backward`` as soon as its gradient is complete, and free it.

    The gradients of a model then never exist all at once.  The numbers are those of an ordinary
    step, bit for bit.  Keep ``optimizer.step()`` in the training loop: schedulers look for it, and
    it steps what cannot be stepped alone (DTensors that are dealt out among ranks; with offload,
    batches of parameters some of which had no gradient).

    Every backward is a step, but for those inside ``with handle.accumulate():``.  max_norm: clip by
    the norm of all gradients, in two backwards (``ReleaseHandle.norm``).  With fully_shard
    gradients are reduced first, and each rank steps its part.

    average: data parallelism in place of DistributedDataParallel, whose buckets hold all gradients.
    Each gradient is averaged over all ranks (True or None) or those of a process group inside
    backward, a few ahead of the steps, in one order on all ranks.  Parameters become those of the
    group's first rank; every rank has to use the same ones in each backward, which is compared.
    Buffers stay each rank's own.

    optimizer: one of this library, or what a trainer has wrapped around it.

    Returns a handle, also a context manager, whose ``remove()`` ends it.

    Raises TypeError for an optimizer not made by signconv and for DTensors with ``average``;
    ValueError with ``skip_nonfinite``, for an optimizer that reads the norm of all gradients
    (``--convert clip``) or sums over all tensors, or has extra inputs, and for a max_norm that is
    not positive; RuntimeError if it is on already, with plain parameters on several ranks and no
    ``average``, and for an ``average`` without a process group of this rank.
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
    for part in rules(ours).values():
        _refuse_program(part)
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
    group = None if average is False else _group(average)
    if group is not None:
        same_parameters(params, group)
    ours._release = ReleaseHandle(ours, max_norm, group)
    return ours._release


def _refuse_program(part: FusedOptimizer) -> None:
    """Raise ValueError for what cannot be stepped parameter by parameter."""
    if part.program.norm:
        raise coded(
            ValueError,
            "SC458",
            f"gradient_release cannot step {type(part).__name__} inside backward, where the norm "
            "of all gradients is not known: build it without clip, and give gradient_release "
            "max_norm=",
        )
    if part.program.totals is not None:
        raise coded(
            ValueError,
            "SC471",
            f"gradient_release steps {type(part).__name__} parameter by parameter, and it reads "
            "sums over all of them: take ordinary steps",
        )
    if part.program.extras:
        names = ", ".join(x.name for x in part.program.extras)
        raise coded(
            ValueError,
            "SC470",
            f"gradient_release steps {type(part).__name__} inside backward, where nobody can pass "
            f"it {names}: take ordinary steps",
        )


def _group(average: Any) -> Any:
    """The ranks to average over; None where this one is alone."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        what = "there is no process group yet: init_process_group() first"
    else:
        group = dist.group.WORLD if average is True or average is None else average
        if dist.get_rank(group) >= 0:
            return group if dist.get_world_size(group) > 1 else None
        what = "this rank is not in the process group that was given"
    raise coded(RuntimeError, "SC457", f"gradient_release(average=…): {what}")


def _refuse_norm() -> NoReturn:
    raise coded(
        RuntimeError,
        "SC441",
        "gradient_release with max_norm steps in two backwards: first `with handle.norm(): "
        "loss.backward(retain_graph=True)`, then loss.backward(); these gradients have no norm of "
        "their own",
    )


def _several_ranks() -> bool:
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
