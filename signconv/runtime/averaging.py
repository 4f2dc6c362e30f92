"""Gradients averaged over ranks inside backward, for gradient release without DDP.

Ranks begin their all-reduces in one order, whatever order their own gradients come in: that of the
first rank's first backward.  A few are under way while backward goes on.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.errors import coded

#: All-reduces under way before the first of them is waited for.
_AHEAD = 4


class Averaging:
    """The averages of one optimizer's gradients over the ranks of a group.

    params: those that will have gradients, the same on every rank; use: called with each parameter
    whose ``grad`` is the average.
    """

    def __init__(self, group: Any, params: Sequence[Tensor], use: Callable[[Tensor], None]) -> None:
        self.group, self.use = group, use
        self._number = {id(p): n for n, p in enumerate(params)}
        self._order(reversed(range(len(params))))
        self._learned = False
        self._complete: dict[int, Tensor] = {}  # by place, not begun
        self._under_way: deque[tuple[Tensor, Tensor, Any]] = deque()
        self._next = 0  # the place whose turn it is
        self._came: list[int] = []  # numbers of this backward's gradients as they came
        self._compared: tuple[Tensor, int] | None = None

    def _order(self, numbers: Iterable[int]) -> None:
        self._place = {number: place for place, number in enumerate(numbers)}

    def complete(self, p: Tensor) -> None:
        """A gradient is complete on this rank."""
        number = self._number[id(p)]
        self._came.append(number)
        self._complete[self._place[number]] = p
        while self._next in self._complete:
            self._begin(self._complete.pop(self._next))
            self._next += 1
        while len(self._under_way) > _AHEAD:
            self._take()

    def finish(self) -> None:
        """Backward ends: the gradients that waited for others, which did not come, and the rest."""
        self._check()
        for place in sorted(self._complete):
            self._begin(self._complete.pop(place))
        while self._under_way:
            self._take()
        if self._came:
            self._compare()
            self._learn()
        self._next, self._came = 0, []

    def now(self, params: Iterable[Tensor]) -> None:
        """Average gradients that were added up and left to ``optimizer.step()``."""
        for p in params:
            self._begin(p)
        while self._under_way:
            self._under_way.popleft()[2].wait()

    def _begin(self, p: Tensor) -> None:
        g = p.grad
        if g is None:  # zeroed after a backward that failed
            return
        g.mul_(1.0 / torch.distributed.get_world_size(self.group))  # as DDP does
        work = torch.distributed.all_reduce(g, group=self.group, async_op=True)
        self._under_way.append((p, g, work))

    def _take(self) -> None:
        p, g, work = self._under_way.popleft()
        work.wait()
        if p.grad is g:  # not of a backward that failed
            self.use(p)

    def _learn(self) -> None:
        """From the first backward on: the first rank's order."""
        if self._learned:
            return
        numbers = [*dict.fromkeys([*self._came, *self._place])]  # those that came before others
        mine = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        first = torch.distributed.get_global_rank(self.group, 0)
        torch.distributed.broadcast(mine, first, group=self.group)
        self._order(mine.tolist())
        self._learned = True

    def _compare(self) -> None:
        """Begin to compare which parameters had gradients; looked at when it costs no wait."""
        text = repr(sorted(self._came)).encode()
        mine = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
        both = torch.tensor([mine, -mine], dtype=torch.int64, device=self._device)
        work = torch.distributed.all_reduce(
            both, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True
        )
        work.wait()  # of a GPU's stream, not of the host
        self._compared = both, mine

    def _check(self) -> None:
        if self._compared is None:
            return
        (both, mine), self._compared = self._compared, None
        if both.tolist() != [mine, -mine]:
            raise coded(
                RuntimeError,
                "SC456",
                "gradient_release(average=…): the ranks used different parameters in a backward, "
                "so gradients were averaged with others' and the replicas differ: load a "
                "checkpoint; use every parameter on every rank (times 0 where it has no part), or "
                "DistributedDataParallel with find_unused_parameters=True and ordinary steps",
            )

    @property
    def _device(self) -> torch.device:
        if "nccl" in torch.distributed.get_backend(self.group):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def same_parameters(params: Iterable[Tensor], group: Any) -> None:
    """Give every rank the parameters of the group's first, as DDP does."""
    first = torch.distributed.get_global_rank(group, 0)
    for p in params:
        x = p.detach()
        dense = x.contiguous()
        torch.distributed.broadcast(dense, first, group)
        if dense is not x:
            x.copy_(dense)
