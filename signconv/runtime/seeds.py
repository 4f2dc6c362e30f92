"""Seeds that nobody chose: each optimizer of a program draws noise of its own.

The default is the smallest seed that no other living optimizer has: 0 for the first.  It is chosen
when the optimizer is made and looked at again at the first step, so that a run that is made again
in one process, after the last one's optimizers are gone, repeats it.  All ranks make their
optimizers in one order, so replicas agree; that is compared.  Ranks that step different parameters
(ZeRO, pipelines) have one seed too, and number the elements of those apart, as their state says and
keeps: for that the first step waits a moment for the others.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime.compat import warn_once
from signconv.runtime.errors import coded

if TYPE_CHECKING:
    from signconv.runtime.optimizer import FusedOptimizer

_living: weakref.WeakSet[FusedOptimizer] = weakref.WeakSet()
_births = itertools.count()
_compared = itertools.count()
#: Parameters of which some elements say whether two ranks hold the same.
_SAMPLED = 1024
#: How long the first step waits for the other ranks, in seconds: they are in the same step.
PATIENCE = 10.0
#: How far apart ranks with parameters of their own number their elements.
APART = 1 << 44


def enter(optimizer: FusedOptimizer) -> None:
    """Count an optimizer among the living."""
    optimizer._born = next(_births)
    _living.add(optimizer)


def smallest() -> int:
    """The smallest seed that no living optimizer has."""
    used = _used(list(_living))
    return next(n for n in itertools.count() if n not in used)


def settle(optimizer: FusedOptimizer) -> None:
    """Give the default seeds of all optimizers that have not stepped, in the order of their making.

    Optimizers that only cycles of references keep (a scheduler makes one) do not count.
    """
    if not optimizer._seed_open:
        return
    if any(seed != i for i, (seed, _) in enumerate(_plan())):
        gc.collect()
    for seed, waiting in _plan():
        old = waiting.defaults["seed"]
        for group in waiting.param_groups:
            if group["seed"] == old:
                group["seed"] = seed
        waiting.defaults["seed"] = seed
        waiting._seed_open = False


def _plan() -> list[tuple[int, FusedOptimizer]]:
    """The seeds of all that have not stepped."""
    living = list(_living)
    waiting = sorted((o for o in living if o._seed_open), key=lambda o: o._born)
    used = _used([o for o in living if not o._seed_open])
    free = (n for n in itertools.count() if n not in used)
    return list(zip(free, waiting, strict=False))


def _used(optimizers: list[FusedOptimizer]) -> set[Any]:
    return {g.get("seed") for o in optimizers for g in o.param_groups}


class Ranks:
    """Compares a default seed with the other ranks', through the store of the process group."""

    def __init__(self, optimizer: FusedOptimizer) -> None:
        dist = torch.distributed
        self.name = type(optimizer).__name__
        self.params = [p for g in optimizer.param_groups for p in g["params"]]
        self.store = dist.distributed_c10d._get_default_store()
        self.key = f"signconv/seed/{next(_compared)}"
        self.marks = _marks(self.params)
        self.mine = f"{optimizer.defaults['seed']} {','.join(self.marks) or '-'}"
        self.rank = rank = dist.get_rank()
        self.others = [r for r in range(dist.get_world_size()) if r != rank]
        self.calls = 0
        self.placed = False
        with contextlib.suppress(RuntimeError, NotImplementedError):
            self.store.set(f"{self.key}/{rank}", self.mine)

    def place(self) -> dict[Tensor, int]:
        """How much further on the numbers of a parameter's elements begin, where that is not 0: its
        place on the first rank that has the same one there, times APART.

        Waits for all ranks, twice: what they hold, and that all have read the same; where one does
        not come, or came with another optimizer, nothing moves.
        """
        try:
            answers = self._gathered("", self.mine)
            view = hashlib.sha256("|".join(answers[r] for r in sorted(answers)).encode())
            views = self._gathered("/view", view.hexdigest())
        except (RuntimeError, NotImplementedError):
            return {}
        if len(set(views.values())) > 1:
            return {}
        self.placed, params, self.params = True, self.params, []
        held = {r: x.split()[1].split(",") for r, x in sorted(answers.items())}
        first = [
            next(r for r, marks in held.items() if marks[i : i + 1] == [mark])
            for i, mark in enumerate(self.marks)
        ]
        return {p: r * APART for p, r in zip(params, first, strict=True) if r}

    def _gathered(self, what: str, mine: str) -> dict[int, str]:
        """What every rank says of ``what``, this one included."""
        self.store.set(f"{self.key}/{self.rank}{what}", mine)
        keys = {r: f"{self.key}/{r}{what}" for r in self.others}
        self.store.wait([*keys.values()], timedelta(seconds=PATIENCE))
        return {r: self.store.get(k).decode() for r, k in keys.items()} | {self.rank: mine}

    def ask(self) -> bool:
        """Look at who has answered, at steps 1, 2, 4, 8, …; True where nobody is left to ask.

        Raises RuntimeError where ranks with the same parameters have different seeds.
        """
        self.calls += 1
        if self.calls & (self.calls - 1):
            return False
        seed, parameters = self.mine.split()
        for rank in list(self.others):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                if not self.store.check([f"{self.key}/{rank}"]):
                    continue
                answer = self.store.get(f"{self.key}/{rank}").decode()
                self.others.remove(rank)
                their_seed, theirs = answer.split()
                if (their_seed == seed) == (theirs == parameters):
                    continue
                if self.placed and theirs != parameters:
                    continue
                if theirs == parameters:
                    break
                warn_once(
                    f"{self.name}: ranks step different parameters with one default seed, so they "
                    "draw the same noise; give each rank a seed of its own, "
                    "seed=torch.distributed.get_rank()"
                )
        else:
            return not self.others
        raise coded(
            RuntimeError,
            "SC437",
            f"{self.name}: this rank has seed {seed} and another has {their_seed} for the same "
            "parameters, so replicas would drift apart: the ranks made their optimizers in "
            "different orders; give them one seed, seed=0",
        )


def ranks(optimizer: FusedOptimizer) -> Ranks | None:
    """What compares the seed across ranks; None in a process of its own."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return None
    return Ranks(optimizer)


def _marks(params: list[Tensor]) -> list[str]:
    """One for each parameter, alike on ranks that hold the same: its size, and of plain ones, at
    most so many, some elements."""
    plain = [p for p in params if not mesh.is_sharded(p) and p.numel() and not p.is_meta]
    sampled = {id(p) for p in plain[:_SAMPLED]}
    made = []
    for p in params:
        text = str(tuple(p.shape))
        if id(p) in sampled:
            flat = p.detach().reshape(-1)
            text += str(flat[:: max(1, p.numel() // 4)][:4].tolist())
        made.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return made
