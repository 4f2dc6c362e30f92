"""The quick check of every step: whatever moved or was replaced, the kernel steps what is there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor

from signconv.runtime.kernel import launch
from signconv.runtime.kernel.engine import Bucket, GroupEngine
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different

Change = Callable[[FusedOptimizer, list[Tensor]], object]
SHAPES = [(3, 64), (70,), (2, 2, 32)]


def params() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=rng).requires_grad_() for s in SHAPES]


def give_grads(ps: list[Tensor], t: int) -> None:
    rng = torch.Generator().manual_seed(100 + t)
    for p in ps:
        g = torch.randn(p.shape, generator=rng)
        if p.grad is not None:
            p.grad.copy_(g)  # where it is
        else:
            p.grad = g


def _first(opt: FusedOptimizer, ps: list[Tensor]) -> dict[str, Tensor]:
    return opt.state[ps[0]]


def moved_grad(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    ps[1].grad = ps[1].grad.clone()


def strided_grad(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    ps[0].grad = ps[0].grad.t().contiguous().t()


def missing_grad(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    ps[1].grad = None


def other_dtype(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    for p in ps:
        p.grad.data = p.grad.data.bfloat16()


def moved_param(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    ps[2].data = ps[2].data.clone()


def strided_param(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    ps[0].data = ps[0].data.t().contiguous().t()


def moved_state(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    _first(opt, ps)["m_scale"].data = _first(opt, ps)["m_scale"].data.clone()


def new_state_tensor(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    _first(opt, ps)["v"] = _first(opt, ps)["v"].clone()


def new_state_dict(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    opt.state[ps[0]] = {k: v.clone() for k, v in _first(opt, ps).items()}


def no_state(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    del opt.state[ps[0]]


def moved_clock(opt: FusedOptimizer, ps: list[Tensor]) -> None:
    _first(opt, ps)["step"] = _first(opt, ps)["step"] + 5


CHANGES: list[Change] = [
    moved_grad, strided_grad, missing_grad, other_dtype, moved_param, strided_param, moved_state,
    new_state_tensor, new_state_dict, no_state, moved_clock,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_moved_or_was_replaced_is_what_is_stepped(change: Change, device: str) -> None:
    """The kernel's optimizer is changed between steps as the reference's is, and old memory is
    overwritten: a stale pointer would show."""
    sides = []
    for backend, where in (("reference", "cpu"), ("triton", device)):
        ps = [p.detach().to(where).requires_grad_() for p in params()]
        opt = AdamWStoSign(ps, lr=0.01, seed=3, backend=backend)
        for t in range(2):
            give_grads(ps, t)
            opt.step()
        give_grads(ps, 2)
        old = [x for p in ps for x in (p.data, p.grad.data, *opt.state[p].values())]
        change(opt, ps)
        live = {x.data_ptr() for p in ps for x in (p, *opt.state[p].values())}
        live |= {p.grad.data_ptr() for p in ps if p.grad is not None}
        for x in old:
            if x.data_ptr() not in live and x.dim():
                x.fill_(7)
        opt.step()
        give_grads(ps, 3)
        opt.step()
        sides.append((ps, opt))
    (ps, opt), (qs, other) = sides
    for p, q in zip(ps, qs, strict=True):
        assert not different(p, q)
        for name, x in opt.state[p].items():
            assert not different(x, other.state[q][name]), name


def test_an_unchanged_step_does_no_more_than_follow(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with gradients in place nor with fresh ones, which only upload the table."""
    uploads: list[int] = []
    real = Bucket._upload
    monkeypatch.setattr(Bucket, "_upload", lambda b, x: (uploads.append(1), real(b, x)))
    ps = [p.detach().to(device).requires_grad_() for p in params()]
    opt = AdamWStoSign(ps, lr=0.01, backend="triton")
    give_grads(ps, 0)
    opt.step()
    made = len(uploads)
    monkeypatch.setattr(GroupEngine, "prepare", lambda *a: pytest.fail("prepared again"))
    opt.step()
    assert len(uploads) == made
    kept = [p.grad for p in ps]
    for p in ps:
        p.grad = torch.ones_like(p)
    opt.step()
    assert len(uploads) > made and len(kept) == len(ps)


def test_launches_go_to_the_device_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device; nothing is switched where it is the right one."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    other = launch.on_device(torch.device("cuda:1"))
    assert isinstance(other, torch.cuda.device) and other.idx == 1
    for same in ("cuda:0", "cpu"):
        assert isinstance(launch.on_device(torch.device(same)), nullcontext)


def test_a_launch_asks_triton_once_per_dtype_and_alignment() -> None:
    """What Triton compiled for one lr must not be launched with another kind of lr."""
    asked: list[tuple[Tensor, ...]] = []
    ran: list[tuple[object, ...]] = []

    class Kernel:
        arg_names = ("lr", "table", "ROWS", "TILES")

        def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., object]:
            assert grid == (5, 1, 1)
            return lambda *tensors, **constants: asked.append(tensors) or Compiled()

    class Compiled:
        def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., object]:
            return lambda *arguments: ran.append(arguments)

    launcher = launch.Launcher(Kernel(), 5, {"TILES": 2, "num_warps": 1, "ROWS": 8})
    memory, table = torch.zeros(5), torch.zeros(4)
    rates = [memory[:1], memory[4:], memory[1:2], memory[:1].double(), memory[4:], memory[2:3]]
    for lr in rates:
        launcher(lr, table)
    aligned = {lr.data_ptr() % 16 == 0 for lr in rates[:2]}
    assert aligned == {True} and len(asked) == 4  # fp32 at 0, 4 and 8 bytes past 16, and float64
    assert [a[0].data_ptr() for a in ran] == [memory[4:].data_ptr()] * 2
    assert all(a[1] is table and a[2:] == (8, 2) for a in ran)


@pytest.mark.parametrize("backend", ["triton", "auto", "reference"])
def test_a_hyperparameter_that_was_a_tensor_may_become_zero(backend: str, device: str) -> None:
    """Without a gradient only decay moves it; on each backend nothing does from then on."""
    p = torch.ones(64, device=device, requires_grad=True)
    p.grad = torch.zeros_like(p)
    optimizer = AdamW([p], lr=0.1, weight_decay=torch.tensor(0.5), backend=backend)
    optimizer.step()
    before = p.detach().clone()
    assert float(before.max()) < 1
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert different(p, before) == 0
