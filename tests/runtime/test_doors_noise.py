"""Several optimizers in one program: whose noise is whose."""

from __future__ import annotations

import gc
import itertools
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.sgd_stosign import SGDStoSign
from torch import Tensor

from signconv.runtime import compat, seeds
from tests.support.doors import BACKENDS

pytestmark = pytest.mark.several


@pytest.fixture(autouse=True)
def alone() -> None:
    """Optimizers of other tests are gone, or do not count."""
    gc.collect()
    seeds._living.clear()


def parameter() -> Tensor:
    return torch.zeros(8, 32, requires_grad=True)


def train(optimizer: Any, p: Tensor, steps: int = 2) -> None:
    for t in range(steps):
        p.grad = torch.randn(8, 32, generator=torch.Generator().manual_seed(t)) * 0.1
        optimizer.step()


def seed(optimizer: Any) -> int:
    return optimizer.param_groups[0]["seed"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_optimizers_draw_different_noise(backend: str) -> None:
    """Of any classes; the first draws what it draws alone, seed 0."""
    ps = [parameter() for _ in range(3)]
    a, b = (AdamWStoSign([p], backend=backend) for p in ps[:2])
    c = AdamWStoSign([ps[2]], seed=0, backend=backend)
    for o, p in zip((a, b, c), ps, strict=True):
        train(o, p)
    assert (seed(a), seed(b)) == (1, 2)  # 0 was taken by hand before the first step
    del a, b, c, o
    qs = [parameter() for _ in range(2)]
    d, e = (AdamWStoSign([q], backend=backend) for q in qs)
    train(d, qs[0])
    train(e, qs[1])
    assert (seed(d), seed(e)) == (0, 1)
    assert torch.equal(qs[0], ps[2])
    assert not torch.equal(qs[0], qs[1])


def test_classes_share_one_numbering() -> None:
    assert [seed(o) for o in [c([parameter()]) for c in (AdamWStoSign, SGDStoSign)]] == [0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_is_made_again_repeats(backend: str) -> None:
    """The last run's optimizer lives while the next is made, and in a cycle beyond."""
    ends = []
    for _ in range(2):
        p = parameter()
        optimizer = AdamWStoSign([p], backend=backend)
        plan = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.itself = optimizer  # type: ignore[attr-defined]
        train(optimizer, p)
        plan.step()
        ends.append(p.detach().clone())
    assert torch.equal(ends[0], ends[1])


def test_runs_of_several_repeat_whichever_steps_first() -> None:
    rounds = []
    for _ in range(2):
        ps = [parameter() for _ in range(3)]
        optimizers = [AdamWStoSign([p], backend="reference") for p in ps]
        for o, p in reversed(list(zip(optimizers, ps, strict=True))):
            train(o, p, 1)
        rounds.append([seed(o) for o in optimizers])
    assert rounds == [[0, 1, 2], [0, 1, 2]]


def test_a_loaded_seed_stays() -> None:
    p, q = parameter(), parameter()
    first = AdamWStoSign([p], seed=7, backend="reference")
    train(first, p)
    other = AdamWStoSign([q], backend="reference")
    other.load_state_dict(first.state_dict())
    train(other, q)
    assert seed(other) == 7


class Store(dict):
    """What is used of a process group's store."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(k in self for k in keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        deadline = time.monotonic() + min(timeout.total_seconds(), 1.0)
        while not self.check(keys):
            if time.monotonic() > deadline:
                raise RuntimeError("wait timeout")
            time.sleep(0.01)


def ranks(monkeypatch: pytest.MonkeyPatch, *optimizers: Any) -> list[seeds.Ranks]:
    """One for each optimizer, as if they were on ranks of their own."""
    dist, store, made = torch.distributed, Store(), []
    monkeypatch.setattr(dist, "get_world_size", lambda: len(optimizers))
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    for rank, optimizer in enumerate(optimizers):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(seeds, "_compared", itertools.count())
        made.append(seeds.Ranks(optimizer))
    return made


def pair(**second: Any) -> tuple[Any, Any]:
    p, q = parameter(), parameter()
    with torch.no_grad():
        p.fill_(1.0)
        q.fill_(second.pop("value", 1.0))
    return AdamWStoSign([p], seed=0), AdamWStoSign([q], seed=second.get("seed", 0))


def test_replicas_agree_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b = ranks(monkeypatch, *pair())
        assert a.ask() and b.ask()


def test_ranks_with_parameters_of_their_own_are_told_to_choose_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One warning, where nobody waited for the others."""
    compat.warn_once.cache_clear()
    a, _ = ranks(monkeypatch, *pair(value=2.0))
    with pytest.warns(UserWarning, match="get_rank"):
        assert a.ask()


def test_replicas_with_different_seeds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = ranks(monkeypatch, *pair(seed=1))
    with pytest.raises(RuntimeError, match=r"drift apart.*\[SC437\]"):
        a.ask()


def placed(made: list[seeds.Ranks]) -> list[list[int]]:
    """How far each rank moves each of its parameters, all asked at once."""
    params = [x.params for x in made]
    with ThreadPoolExecutor(len(made)) as pool:
        moves = [*pool.map(lambda x: x.place(), made)]
    return [[m.get(p, 0) for p in ps] for m, ps in zip(moves, params, strict=True)]


def test_ranks_with_parameters_of_their_own_number_elements_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ZeRO-1: the seed is one, the draws are not; and nobody is told anything."""
    compat.warn_once.cache_clear()
    (p, q), (r, _) = pair(value=2.0), pair()
    made = ranks(monkeypatch, p, q, r)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert placed(made) == [[0], [seeds.APART], [0]]
        assert all(x.ask() for x in made)


def test_parameters_that_took_the_place_of_others_number_elements_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DeepSpeed's parts, which it puts into the groups by hand."""
    optimizer, part = AdamWStoSign([parameter()]), parameter()
    optimizer.param_groups[0]["params"] = [part]

    class Ranks:
        def place(self) -> dict[Tensor, int]:
            return {part: seeds.APART}

        def ask(self) -> bool:
            return True

    monkeypatch.setattr(seeds, "ranks", lambda *_, **__: Ranks())
    part.grad = torch.ones_like(part)
    optimizer.step()
    assert int(optimizer.state[part]["offset"]) == seeds.APART


def test_what_ranks_share_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of their own beside dense weights that are replicas, and replicas of the experts."""
    optimizers = []
    for value in (1.0, 2.0, 1.0, 2.0):
        dense, expert = parameter(), parameter()
        with torch.no_grad():
            dense.fill_(0.5)
            expert.fill_(value)
        optimizers.append(AdamWStoSign([dense, expert], seed=0))
    far = [0, seeds.APART]
    assert placed(ranks(monkeypatch, *optimizers)) == [[0, 0], far, [0, 0], far]


def test_ranks_that_compare_different_optimizers_move_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One rank made and stepped another optimizer before: what the first rank says of that one is
    answered by nobody."""
    first, second = ranks(monkeypatch, *pair(value=2.0))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(second.place).result() == {} and not second.placed
    assert first.store


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = ranks(monkeypatch, *pair(value=2.0))
    del a.store[f"{a.key}/1"]
    assert a.place() == {} and not a.placed
