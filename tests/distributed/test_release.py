"""Gradient release that averages by itself against DistributedDataParallel, on two gloo ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import signconv
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.distributed.training import join
from tests.support.failing import FailsInBackward

RANKS = 2


def model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64), nn.Linear(64, 3))


def loss_of(net: nn.Module, t: int, rank: int) -> Tensor:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(10 * t + rank))
    return net(x).square().mean()


def start(net: nn.Module) -> FusedOptimizer:
    return AdamWStoSign(net.parameters(), lr=1e-2, seed=0, backend="reference")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(different(p, q) == 0 for p, q in zip(a.parameters(), b.parameters(), strict=True))


def run(rank: int, folder: str) -> None:
    """Steps as ordinary ones behind DDP: plain, accumulated, clipped; then what is refused."""
    join(rank, RANKS, Path(folder), "cpu")
    one, two = model(0), model(rank)  # the second rank's start is not that of the first
    ddp = DistributedDataParallel(one)
    a, b = start(one), start(two)
    with pytest.raises(RuntimeError, match=r"average=True.*\[SC434\]"):
        signconv.gradient_release(b)
    handle = signconv.gradient_release(b, average=True)
    assert same(one, two)
    for t in range(3):
        loss_of(ddp, t, rank).backward()
        loss_of(two, t, rank).backward()
        assert all(p.grad is None for p in two.parameters())
        a.step()
        a.zero_grad()
        b.step()
        assert same(one, two), t
    with ddp.no_sync(), handle.accumulate():
        loss_of(ddp, 3, rank).backward()
        loss_of(two, 3, rank).backward()
    loss_of(ddp, 4, rank).backward()
    loss_of(two, 4, rank).backward()
    a.step()
    a.zero_grad()
    b.step()
    assert same(one, two)

    handle.remove()
    handle = signconv.gradient_release(b, average=dist.group.WORLD, max_norm=0.05)
    for t in range(5, 7):
        loss_of(ddp, t, rank).backward()
        loss = loss_of(two, t, rank)
        with handle.norm():
            loss.backward(retain_graph=True)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in one.parameters()])
        assert norm > 0.05 and torch.allclose(handle.total_norm, norm, rtol=1e-6)
        for p in one.parameters():
            p.grad.mul_(0.05 / (handle.total_norm + 1e-6))
        a.step()
        a.zero_grad()
        b.step()
        assert same(one, two), t

    handle.remove()
    handle = signconv.gradient_release(b, average=None)
    with ddp.no_sync(), handle.accumulate():  # all of it, left to the step
        loss_of(ddp, 7, rank).backward()
        loss_of(two, 7, rank).backward()
    loss_of(ddp, 8, rank).backward()
    with handle.accumulate():
        loss_of(two, 8, rank).backward()
    a.step()
    a.zero_grad()
    b.step()
    b.zero_grad()
    assert same(one, two)
    _in_another_order(rank)
    _failing(rank)
    _other_parameters(rank)

    inside = model(0)
    c = start(inside)
    signconv.gradient_release(c, average=True)
    wrapped = DistributedDataParallel(inside)
    loss_of(wrapped, 0, rank).backward()
    with pytest.raises(RuntimeError, match=r"take it off.*\[SC453\]"):
        c.step()
    handle.remove()
    del handle, ddp  # their threads end before the group does
    dist.barrier()
    dist.destroy_process_group()


def _weights(count: int) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(8, 32, generator=rng)) for _ in range(count)]


def _pull(params: list[nn.Parameter], t: int, rank: int, order: list[int]) -> Tensor:
    """A loss whose gradients differ by rank, with a graph that is built in the given order."""
    total = torch.zeros(())
    for i in order:
        rng = torch.Generator().manual_seed(1000 * t + 10 * i + rank)
        total = total + (params[i] * torch.randn(8, 32, generator=rng)).sum()
    return total


def _ordinary(params: list[nn.Parameter], optimizer: FusedOptimizer, t: int) -> None:
    """One step with the average of both ranks' gradients, taken here."""
    for rank in range(RANKS):
        (_pull(params, t, rank, [*range(len(params))]) / RANKS).backward()
    optimizer.step()
    optimizer.zero_grad()


def agree(params: list[nn.Parameter], others: list[nn.Parameter]) -> None:
    for p, q in zip(params, others, strict=True):
        assert different(p, q) == 0
        every = [torch.empty_like(p) for _ in range(RANKS)]
        dist.all_gather(every, p.detach())
        assert different(every[0], every[1]) == 0


def _in_another_order(rank: int) -> None:
    """Gradients of one shape, which the second rank computes in another order."""
    mine, plain = _weights(7), _weights(7)
    b = start_of(mine)
    a = start_of(plain)
    signconv.gradient_release(b, average=True)
    orders = [[*range(7)], [3, 1, 6, 2, 0, 5, 4]]
    for t in range(4):
        _pull(mine, t, rank, orders[(rank + t // 2) % 2]).backward()
        assert all(p.grad is None for p in mine)
        b.step()
        _ordinary(plain, a, t)
        agree(mine, plain)


def _failing(rank: int) -> None:
    """A backward that fails on all ranks, thrown away; then others."""
    mine = _weights(6)
    b = start_of(mine)
    signconv.gradient_release(b, average=True)
    for t in range(4):
        if t == 1:
            bad = FailsInBackward.apply(mine[0] * 1.0).sum() + _pull(mine[1:], 9, rank, [*range(5)])
            with pytest.raises(RuntimeError, match="on the way"):
                bad.backward()
            b.zero_grad()
            b.step()
        _pull(mine, t, rank, [*range(6)]).backward()
        assert all(p.grad is None for p in mine)
        b.step()
        agree(mine, mine)
    assert {int(b.state[p]["step"]) for p in mine} <= {4, 5}


def _other_parameters(rank: int) -> None:
    """Each rank leaves out another one: said at the next backward."""
    mine = _weights(3)
    b = start_of(mine)
    handle = signconv.gradient_release(b, average=True)
    _pull(mine, 0, rank, [0, 1] if rank else [0, 2]).backward()
    with pytest.raises(RuntimeError, match=r"used different parameters.*\[SC456\]"):
        _pull(mine, 1, rank, [0, 1, 2]).backward()
    handle.remove()
    late = nn.Parameter(torch.ones(8, 32))
    b.zero_grad()
    handle = signconv.gradient_release(b, average=True)
    b.add_param_group({"params": [late]})
    late.sum().backward()
    with pytest.raises(RuntimeError, match=r"\[SC455\]"):
        b.step()


def start_of(params: list[nn.Parameter]) -> FusedOptimizer:
    return AdamW(params, lr=1e-2, seed=0, backend="reference")


def test_gradients_are_averaged_inside_backward(tmp_path: Path) -> None:
    mp.spawn(run, args=(str(tmp_path),), nprocs=RANKS)
