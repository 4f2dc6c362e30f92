"""Gradient release that averages by itself against DistributedDataParallel, on two gloo ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import signconv
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.distributed.training import join

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

    inside = model(0)
    c = start(inside)
    signconv.gradient_release(c, average=True)
    wrapped = DistributedDataParallel(inside)
    loss_of(wrapped, 0, rank).backward()
    with pytest.raises(RuntimeError, match=r"take it off.*\[SC453\]"):
        c.step()
    dist.destroy_process_group()


def test_gradients_are_averaged_inside_backward(tmp_path: Path) -> None:
    mp.spawn(run, args=(str(tmp_path),), nprocs=RANKS)
