"""State on the host: the bits of a step without it, in any number of batches.

On the CPU slots and host memory are both ordinary memory; the tests marked gpu have streams.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from signconv.generated.nadam_stosign import NAdamStoSign
from torch import Tensor, nn

import signconv
from signconv.runtime import offload, sharded, staging
from signconv.verification.bits import different

SHAPES = [(48, 64), (7,), (3, 33), (128, 32), (), (2, 5, 32), (0, 4), (96, 96)]
CLASSES = [AdamWStoSign, AdamWFP4, LAMB, NAdamStoSign]
every = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
on = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
SMALL = 1 << 13  # several batches, and parameters with more than one has


def parameters(where: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=rng).to(where, dtype)) for s in SHAPES]


def give(params: list[nn.Parameter], t: int, but: int | None = None) -> None:
    rng = torch.Generator().manual_seed(100 + t)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=rng).to(p.device, p.dtype)
        p.grad = None if i == but else g


def everything(params: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    made = [p.detach() for p in params]
    for p in params:
        made += [x for _, x in sorted(optimizer.state.get(p, {}).items())]
    return [x.cpu() for x in made]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(different(x, y) == 0 for x, y in zip(a, b, strict=True))


@on
@every
@pytest.mark.parametrize("options", [{}, {"master": "split"}, {"skip_nonfinite": True}], ids=str)
@pytest.mark.parametrize("size", [1, SMALL, 1 << 26])
def test_the_bits_are_those_without_it(cls: Any, options: Any, size: int, where: str) -> None:
    dtype = torch.bfloat16 if "master" in options else torch.float32
    sides = []
    for offloaded in (False, True):
        params = parameters(where, dtype)
        groups = [{"params": params[:5]}, {"params": params[5:], "lr": 0.02}]
        optimizer = cls(groups, seed=3, **options)
        if offloaded:
            offload._offload(optimizer, size)
        for t in range(5):
            give(params, t, but=t % 3)
            if t == 2 and "skip_nonfinite" in options:
                params[0].grad[0, 0] = torch.nan
            optimizer.step()
        if offloaded:
            for p in params:
                for n, x in optimizer.state.get(p, {}).items():
                    assert x.device.type == "cpu" or n in ("step",) or x.dim() == 0
        sides.append(everything(params, optimizer))
    assert equal(*sides)


@on
@every
def test_it_goes_on_and_off_between_steps(cls: Any, where: str) -> None:
    sides = []
    for offloaded in (False, True):
        params = parameters(where)
        optimizer = cls(params, seed=3)
        for t in range(6):
            if offloaded and t == 2:
                handle = offload._offload(optimizer, SMALL)
            if offloaded and t == 4:
                handle.remove()
                assert not optimizer.offloaded
                assert all(
                    x.device.type == where
                    for p in params
                    for x in (v for n, v in optimizer.state.get(p, {}).items() if n != "offset")
                )
            give(params, t)
            optimizer.step()
        sides.append(everything(params, optimizer))
    assert equal(*sides)


@on
def test_state_dicts_go_in_and_out(where: str) -> None:
    params, others, third = (parameters(where) for _ in range(3))
    optimizer, there, plain = (AdamWStoSign(p, seed=3) for p in (params, others, third))
    offload._offload(optimizer, SMALL)
    offload._offload(there, SMALL)
    for t in range(3):
        give(params, t)
        optimizer.step()
    give(others, 0)
    there.step()  # has other state, in batches already
    saved = copy.deepcopy(optimizer.state_dict())
    for target, mine in ((there, others), (plain, third)):
        target.load_state_dict(saved)
        with torch.no_grad():
            for a, b in zip(mine, params, strict=True):
                a.copy_(b)
    for t in range(3, 6):
        for side, mine in ((optimizer, params), (there, others), (plain, third)):
            give(mine, t)
            side.step()
    assert equal(everything(others, there), everything(params, optimizer))
    assert equal(everything(third, plain), everything(params, optimizer))


@on
def test_state_may_be_edited_in_place_and_replaced(where: str) -> None:
    """Whatever was fetched ahead of the step is fetched again."""
    sides = []
    for offloaded in (False, True):
        params = parameters(where)
        optimizer = AdamWStoSign(params, seed=3)
        if offloaded:
            offload._offload(optimizer, SMALL)
        for t in range(4):
            give(params, t)
            optimizer.step()
            entry = optimizer.state[params[0]]
            if t == 1:
                entry["m"].zero_()
            if t == 2:
                entry["v"] = torch.full_like(entry["v"], 17)
        sides.append(everything(params, optimizer))
    assert equal(*sides)


def test_a_copy_is_offloaded_too() -> None:
    params = parameters("cpu")
    optimizer = AdamWStoSign(params, seed=3)
    offload._offload(optimizer, SMALL)
    give(params, 0)
    optimizer.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.offloaded and twin._offload is not optimizer._offload
        theirs = twin.param_groups[0]["params"]
        give(theirs, 1)
        twin.step()
    give(params, 1)
    optimizer.step()
    assert equal(everything(theirs, twin), everything(params, optimizer))


def test_groups_and_parameters_may_come_later() -> None:
    sides = []
    for offloaded in (False, True):
        params = parameters("cpu")
        optimizer = AdamWStoSign(params[:3], seed=3)
        if offloaded:
            offload._offload(optimizer, SMALL)
        for t in range(4):
            if t == 1:
                optimizer.add_param_group({"params": params[3:6]})
            if t == 2:
                optimizer.param_groups[0]["params"] += params[6:]
            give(params, t)
            optimizer.step()
        sides.append(everything(params, optimizer))
    assert equal(*sides)


def test_what_else_reads_state() -> None:
    """Health, master weights, other optimizers' state, another library's format."""
    params = [nn.Parameter(torch.randn(64, 64).bfloat16())]
    optimizer = AdamWStoSign(params, seed=3, master="split")
    offload._offload(optimizer, SMALL)
    model = nn.Module()
    model.weight = params[0]
    optimizer.load_master_weights(model, {"weight": torch.full((64, 64), 1.0001)})
    give(params, 0)
    optimizer.step()
    exact = optimizer.master_weights(model)["weight"]
    assert exact.dtype == torch.float32 and (exact != params[0].float()).any()
    assert signconv.inspect(optimizer, model).rows
    p = nn.Parameter(torch.randn(64, 64))
    theirs = torch.optim.AdamW([p])
    p.grad = torch.ones_like(p)
    theirs.step()
    mine = AdamWFP4([nn.Parameter(p.detach().clone())], seed=3)
    offload._offload(mine, SMALL)
    mine.load_moments(theirs)
    give(mine.param_groups[0]["params"], 0)
    mine.step()
    assert mine.torch_state_dict()["state"][0]["exp_avg"].shape == p.shape


def test_entries_of_the_users_own_stay_where_they_are() -> None:
    (p,) = params = [nn.Parameter(torch.randn(64, 64))]
    optimizer = AdamWStoSign(params, seed=3)
    mine = torch.ones(3)
    optimizer.state[p]["mine"] = mine
    handle = offload._offload(optimizer, SMALL)
    give(params, 0)
    optimizer.step()
    assert optimizer.state[p]["mine"] is mine
    handle.remove()
    assert optimizer.state[p]["mine"] is mine


def test_parameters_without_gradients_now_and_then_keep_their_batches() -> None:
    params = [nn.Parameter(torch.randn(64, 64)) for _ in range(4)]
    optimizer = AdamWStoSign(params, seed=3)
    offload._offload(optimizer, SMALL)
    for t in range(2):  # the first has no state yet in the first step
        give(params, t, but=t)
        optimizer.step()
    hosts = {id(b.host) for bs in optimizer._offload._batches.values() for b in bs}
    for t in range(2, 6):
        give(params, t, but=t % 4)
        optimizer.step()
    assert {id(b.host) for bs in optimizer._offload._batches.values() for b in bs} == hosts


def test_one_batch_at_a_time_is_on_the_device() -> None:
    """Slots are three at most, each as large as the largest batch, and no batch is above its size
    unless one parameter is."""
    params = [nn.Parameter(torch.randn(64, 64)) for _ in range(20)]
    optimizer = AdamWStoSign(params, seed=3)
    each = 2 * (64 * 64 + 512)
    offload._offload(optimizer, 2 * each)
    give(params, 0)
    optimizer.step()
    (flow,) = optimizer._offload._staged.values()
    assert len(flow.slots) == staging.SLOTS and len(flow.places) == 10
    assert {s.numel() for s in flow.slots} == {2 * each}


class Branches(nn.Module):
    """Parameters in order, the last of which has a gradient in every second backward only."""

    def __init__(self, where: str, dtype: torch.dtype) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(64, 64, generator=rng).to(where, dtype)) for _ in range(9)
        )

    def loss(self, t: int) -> Tensor:
        x = torch.ones(4, 64, device=self.weights[0].device, dtype=self.weights[0].dtype)
        for w in [*self.weights][: 9 - t % 2]:
            x = torch.tanh(x @ w)
        return x.float().square().sum()


@on
@every
@pytest.mark.parametrize("master", [None, "split"])
@pytest.mark.parametrize("first", ["offload", "release"])
def test_batches_are_stepped_inside_backward(cls: Any, master: Any, first: str, where: str) -> None:
    """With gradient release: the same bits, and complete batches keep no gradient."""
    dtype = torch.bfloat16 if master else torch.float32
    sides = []
    for both in (False, True):
        model = Branches(where, dtype)
        params = [*model.weights]
        groups = [{"params": params[:4]}, {"params": params[4:], "lr": 0.02}]
        optimizer = cls(groups, seed=3, master=master)
        if both and first == "offload":
            offload._offload(optimizer, 1 << 15)
        handle = signconv.gradient_release(optimizer) if both else None
        if both and first == "release":
            offload._offload(optimizer, 1 << 15)
        for t in range(6):
            model.loss(2 * t if t < 2 else t).backward()  # all have state after the first
            if handle is not None:
                kept = [p for p in params if p.grad is not None]
                assert not {*kept} & {*params[:4], params[8]}  # those beside the last one
                assert bool(kept) <= (t % 2 == 1)
            optimizer.step()
            optimizer.zero_grad()
            if t == 3:  # a checkpoint between two backwards
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        sides.append(everything(params, optimizer))
    assert equal(*sides)


@on
def test_clipping_and_accumulation_inside_backward(where: str) -> None:
    sides = []
    for offloaded in (False, True):
        model = Branches(where, torch.float32)
        optimizer = AdamWStoSign(model.parameters(), seed=3)
        handle = signconv.gradient_release(optimizer, max_norm=0.1)
        if offloaded:
            offload._offload(optimizer, 1 << 15)
        for _ in range(3):
            loss = model.loss(0)
            with handle.norm():
                loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()
        sides.append(everything([*model.weights], optimizer))
    assert equal(*sides)


def test_state_is_whole_wherever_it_is_read() -> None:
    """A backward whose batches were all complete, and no step behind it."""
    model = Branches("cpu", torch.float32)
    optimizer = AdamWStoSign(model.parameters(), seed=3)
    offload._offload(optimizer, 1 << 15)
    signconv.gradient_release(optimizer)
    finished = []
    model.loss(0).backward()
    staging = next(iter(optimizer._offload._staged.values()))
    staging.wait = lambda: finished.append(1)
    optimizer.state_dict()
    copy.copy(optimizer).__getstate__()
    assert len(finished) >= 2


def test_large_parameters_share_a_slot() -> None:
    """And the bits are right in whatever order they come."""
    sides = []
    for size in (None, 2 * (64 * 64 + 512)):
        rng = torch.Generator().manual_seed(0)
        rows = [64, 256, *[64] * 20, 256, 64, 128, *[64] * 20, 256]
        params = [nn.Parameter(torch.randn(n, 64, generator=rng)) for n in rows]
        optimizer = AdamWStoSign(params, seed=3)
        if size is not None:
            offload._offload(optimizer, size)
        for t in range(5):
            give(params, t, but=t)
            optimizer.step()
        sides.append(everything(params, optimizer))
    assert equal(*sides)
    (flow,) = optimizer._offload._staged.values()
    assert sorted(s.numel() for s in flow.slots)[:2] == [size, size]
    assert max(s.numel() for s in flow.slots) > 3 * size


def test_usual_parameters_share_no_slot() -> None:
    """Two of a model's usual size are there at once, however large they are."""
    assert staging._usual([8, 8, *[3] * 30], 2) == 3
    assert staging._usual([8, 8, *[3] * 30], 4) == 4
    assert staging._usual([8, 8, 8, *[3] * 10], 2) == 8  # nearly half of all bytes
    assert staging._usual([5], 2) == 5


def step(optimizer: Any, params: list[nn.Parameter], rng: torch.Generator) -> None:
    """A backward with gradients drawn from rng, and the step."""
    weights = [torch.randn(p.shape, generator=rng) for p in params]
    torch.stack([(p * w).sum() for p, w in zip(params, weights, strict=True)]).sum().backward()
    optimizer.step()
    for p in params:
        p.grad = None


@pytest.mark.parametrize("released", [False, True])
def test_parameters_move_between_groups(released: bool) -> None:
    """Their state moves with them, and the batches that they left are gone."""
    sides = []
    for offloaded in (False, True):
        a, b, p = params = [nn.Parameter(torch.randn(32, 64)) for _ in range(3)]
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for q in params:
                q.copy_(torch.randn(32, 64, generator=rng))
        groups = [{"params": [a]}, {"params": [b, p], "lr": 0.5}]
        optimizer = AdamWStoSign(groups, lr=0.01, seed=3)
        if offloaded:
            offload._offload(optimizer, 1 << 20)
        if offloaded and released:
            signconv.gradient_release(optimizer)
        for t in range(6):
            if t == 2:
                optimizer.param_groups[1]["params"] = [b]
                optimizer.param_groups[0]["params"] = [a, p]
            if t == 4:
                optimizer.param_groups.pop(1)
            step(optimizer, params, rng)
        sides.append(everything(params, optimizer))
    assert equal(*sides)
    assert {i for i, _ in optimizer._offload._batches} == {0}
    assert {*optimizer._offload._home} == {a, p}


class Late(staging.Staging):
    """Copies that land when somebody waits for them, as a GPU's may."""

    def fetch(self, batch: Any) -> None:
        if self.holds[self.places[batch]] is batch and batch.seen == batch.host._version:
            return
        self.land(self.places[batch])
        super().fetch(batch)

    def send_back(self, batch: Any) -> None:
        n, size = self.places[batch], batch.host.numel()
        self.__dict__.setdefault("coming", {})[n] = (batch.host, self.slots[n][:size].clone())
        batch.seen = batch.host._version + 1  # what landing makes it

    def land(self, n: int) -> None:
        host, there = self.__dict__.setdefault("coming", {}).pop(n, (None, None))
        if host is not None:
            host.copy_(there)

    def wait(self) -> None:
        for n in [*self.__dict__.get("coming", {})]:
            self.land(n)


def test_state_that_is_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches made anew while others' state is on its way: a parameter unfrozen, one appended."""
    monkeypatch.setattr(offload, "Staging", Late)
    sides = []
    for offloaded in (False, True):
        rng = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(32, 64, generator=rng)) for _ in range(6)]
        params[3].requires_grad_(False)
        optimizer = AdamWStoSign([*params[:5]], lr=0.01, seed=3)
        if offloaded:
            offload._offload(optimizer, 4096)
        for t in range(8):
            if t == 1 and offloaded:
                signconv.gradient_release(optimizer)
            if t == 3:
                params[3].requires_grad_(True)
            if t == 5:
                optimizer.param_groups[0]["params"].append(params[5])
            if t == 6:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            step(optimizer, params[: 6 if t >= 5 else 5], rng)
        sides.append(everything(params, optimizer))
    assert equal(*sides)


@pytest.mark.gpu
def test_memory_of_the_device_is_free() -> None:
    params = [nn.Parameter(torch.randn(2048, 2048, device="cuda").bfloat16()) for _ in range(16)]
    before = torch.cuda.memory_allocated()
    optimizer = AdamWStoSign(params, seed=3)
    with signconv.offload(optimizer, batch_bytes=1 << 23):
        for t in range(3):
            give(params, t)
            optimizer.step()
            for p in params:
                p.grad = None
        used = torch.cuda.memory_allocated() - before
        assert used < 4 * (9 << 20)
        for p in params:
            assert optimizer.state[p]["m"].is_pinned()
    assert torch.cuda.memory_allocated() - before > 2 * 16 * 2048**2


def test_state_of_one_element_is_read_beside_its_parameter() -> None:
    """Of a 0-dim parameter moments are 0-dim too, and only clocks and scalar states stay."""
    p = torch.zeros((), device="meta")
    entry = {"m": torch.zeros(()), "step": torch.zeros((), dtype=torch.int64)}
    here, plain = sharded.readable(p, entry)
    assert [x.device.type for x in (here, plain["m"], plain["step"])] == ["meta", "meta", "cpu"]
