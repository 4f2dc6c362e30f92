"""Gradient release: the same numbers as ordinary steps, one parameter at a time."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor, nn

import signconv
from signconv.runtime import offload, release
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.support.failing import FailsInBackward


def make(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 3))
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    return model.to(device, dtype)


def loss_of(model: nn.Sequential, t: int, device: str = "cpu") -> Tensor:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(t))
    p = model[0].weight
    return model(x.to(device, p.dtype)).float().square().mean() + model[2](model[2].weight).sum()


def assert_same(a: FusedOptimizer, b: FusedOptimizer, one: nn.Module, two: nn.Module) -> None:
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert different(p, q) == 0
        for name, value in a.state[p].items():
            assert different(value, b.state[q][name]) == 0, name


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("master", [None, "split"])
def test_a_step_inside_backward_is_an_ordinary_step(
    backend: str, master: str | None, device: str
) -> None:
    where = device if backend == "triton" else "cpu"
    one = make(where)
    two = copy.deepcopy(one)
    arguments = {"lr": 1e-2, "master": master, "backend": backend}
    split = [{"params": one[0].parameters()}, {"params": one[2:].parameters(), "lr": 1e-3}]
    a = AdamWStoSign(split, **arguments)
    split = [{"params": two[0].parameters()}, {"params": two[2:].parameters(), "lr": 1e-3}]
    b = AdamWStoSign(split, **arguments)
    plans = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (a, b)]
    handle = signconv.gradient_release(b)
    for t in range(4):
        if t == 3:
            handle.remove()
        loss_of(one, t, where).backward()
        loss_of(two, t, where).backward()
        a.step()
        assert all((p.grad is None) == (t < 3) for p in two.parameters())
        b.step()
        a.zero_grad()
        b.zero_grad()
        for plan in plans:
            plan.step()
    assert int(b.state[two[0].weight]["step"]) == 4
    assert_same(a, b, one, two)


def test_gradients_do_not_exist_all_at_once() -> None:
    model = make()
    optimizer = AdamW(model.parameters())
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def count(p: Tensor) -> None:
        nonlocal most
        assert p.grad is not None
        alive.append(weakref.ref(p.grad))
        gc.collect()
        most = max(most, sum(r() is not None for r in alive))

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(count)
    with signconv.gradient_release(optimizer):
        loss_of(model, 0).backward()
    assert len(alive) == 6
    assert most <= 2
    most = 0
    alive.clear()
    loss_of(model, 1).backward()
    assert most == 6


def test_a_closure_and_a_loaded_state_go_on_inside_backward() -> None:
    model = make()
    optimizer = AdamW(model.parameters())
    signconv.gradient_release(optimizer)

    def closure() -> Tensor:
        loss = loss_of(model, 0)
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(closure)
    assert all(int(s["step"]) == 2 for s in optimizer.state.values())
    with pytest.raises(RuntimeError, match="already on"):
        signconv.gradient_release(optimizer)


@pytest.mark.parametrize("backend", ["reference", "triton", "cpu"])
def test_autograd_notices_a_weight_stepped_too_early(backend: str, device: str) -> None:
    """A node that holds the weight's old value must not go on with the new one."""
    if backend == "cpu":
        pytest.importorskip("llvmlite")
    where = device if backend == "triton" else "cpu"
    w = nn.Parameter(torch.randn(32, 32, device=where))
    x = torch.randn(32, 32, device=where, requires_grad=True)
    optimizer = AdamW([w], backend=backend)
    signconv.gradient_release(optimizer)
    early = x @ w.detach()  # needs the weight's value in backward, and is no part of its graph
    (early.detach() * w).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        early.sum().backward()


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    with pytest.raises(ValueError, match="skip_nonfinite=False"):
        signconv.gradient_release(AdamW(model.parameters(), skip_nonfinite=True))
    with pytest.raises(TypeError, match="generated by signconv"):
        signconv.gradient_release(torch.optim.AdamW(model.parameters()))  # type: ignore[arg-type]
    optimizer = AdamW(model.parameters())
    monkeypatch.setattr(release, "_several_ranks", lambda: True)
    with pytest.raises(RuntimeError, match="before DDP has averaged"):
        signconv.gradient_release(optimizer)
    assert not optimizer.released
    monkeypatch.undo()
    signconv.gradient_release(optimizer)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="GradScaler does not work"):
        optimizer.step()


def test_gradients_of_several_backwards_add_up() -> None:
    """Inside ``accumulate`` nothing is stepped; the next backward steps with the sums."""
    one = make()
    two = copy.deepcopy(one)
    a, b = (AdamW(m.parameters(), lr=1e-2, backend="reference") for m in (one, two))
    handle = signconv.gradient_release(b)
    for t in range(3):
        for micro in range(3):
            loss_of(one, 3 * t + micro).backward()
        with handle.accumulate():
            for micro in range(2):
                loss_of(two, 3 * t + micro).backward()
        assert all(p.grad is not None for p in two.parameters())
        loss_of(two, 3 * t + 2).backward()
        assert all(p.grad is None for p in two.parameters())
        a.step()
        a.zero_grad()
        b.step()
    assert_same(a, b, one, two)


@pytest.mark.parametrize("kept", [False, True])
def test_model_and_optimizer_are_freed(kept: bool) -> None:
    """Also where nobody removed the handle: what hangs on parameters is not seen by Python's
    collector, so it must not hold them."""
    model = make()
    optimizer = AdamW(model.parameters(), backend="reference")
    handle = signconv.gradient_release(optimizer)
    loss_of(model, 0).backward()
    assert model[0].weight.grad is None
    optimizer.step()
    alive = [weakref.ref(x) for x in (model[0].weight, optimizer)]
    if not kept:
        del handle
    del model, optimizer
    if kept:
        del handle
    gc.collect()
    assert [x() for x in alive] == [None, None]


def test_groups_may_be_edited_by_hand() -> None:
    """Reordered, removed, a parameter taken out: as with an ordinary step."""
    sides = []
    for released in (False, True):
        model = make(dtype=torch.float32)
        groups = [
            {"params": [*layer.parameters()], "lr": lr}
            for layer, lr in ((model[0], 0.5), (model[2], 0.1), (model[3], 0.01))
        ]
        optimizer = AdamW(groups, backend="reference")
        if released:
            signconv.gradient_release(optimizer)
        for t in range(5):
            if t == 1:
                optimizer.param_groups.reverse()
            if t == 2:
                optimizer.param_groups.pop(0)
            if t == 3:
                optimizer.param_groups[0]["params"] = [model[2].weight]
            loss_of(model, t).backward()
            optimizer.step()
            model.zero_grad()
        sides.append([p.detach() for p in model.parameters()])
    assert all(different(p, q) == 0 for p, q in zip(*sides, strict=True))


def test_an_old_handle_ends_nothing_of_a_new_one() -> None:
    optimizer = AdamW(make().parameters(), backend="reference")
    with signconv.gradient_release(optimizer) as first:
        first.remove()
        second = signconv.gradient_release(optimizer)
    assert optimizer.released
    second.remove()
    assert not optimizer.released


def test_what_is_neither_clipped_nor_measured_is_refused() -> None:
    model = make(dtype=torch.float32)
    optimizer = AdamW(model[:3].parameters(), backend="reference")
    handle = signconv.gradient_release(optimizer, max_norm=1.0)
    optimizer.add_param_group({"params": [*model[3].parameters()]})
    loss = loss_of(model, 0)
    with pytest.raises(RuntimeError, match="SC455"), handle.norm():
        loss.backward(retain_graph=True)
    model.zero_grad()
    with handle.accumulate():
        loss_of(model, 0).backward()
    for p in model[3].parameters():
        p.grad = None
    with pytest.raises(RuntimeError, match="SC441"):
        optimizer.step()


def test_a_backward_that_fails_leaves_nothing_behind() -> None:
    """Offloaded too: after zero_grad the next one is as any other."""
    sides = []
    for way in ("ordinary", "released", "offloaded"):
        model = make(dtype=torch.float32)
        optimizer = AdamW(model.parameters(), backend="reference")
        if way != "ordinary":
            signconv.gradient_release(optimizer)
        if way == "offloaded":
            offload._offload(optimizer, 1 << 20)
        for t in range(3):
            if t == 1 and way == "offloaded":
                x = torch.randn(4, 64)
                y = model[3](torch.tanh(FailsInBackward.apply(model[2](x)))).square().mean()
                with pytest.raises(RuntimeError, match="on the way"):
                    y.backward()
                model.zero_grad()
            loss_of(model, t).backward()
            optimizer.step()
            model.zero_grad()
        sides.append([p.detach() for p in model.parameters()])
    for side in sides[1:]:
        assert all(different(p, q) == 0 for p, q in zip(sides[0], side, strict=True))


def test_clipping_takes_two_backwards() -> None:
    """The first finds the norm, as clip_grad_norm_ does, and keeps no gradient; the second steps
    with what an ordinary step gets."""
    one = make(dtype=torch.float32)
    two = copy.deepcopy(one)
    a, b = (AdamWStoSign(m.parameters(), lr=1e-2, backend="reference") for m in (one, two))
    handle = signconv.gradient_release(b, max_norm=0.05)
    for t in range(3):
        loss_of(one, t).backward()
        loss = loss_of(two, t)
        with handle.norm():
            loss.backward(retain_graph=True)
        assert all(p.grad is None for p in two.parameters())
        loss.backward()
        assert all(p.grad is None for p in two.parameters())
        grads = [p.grad for p in one.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm(grads)
        assert handle.total_norm is not None and total > 0.05
        assert torch.allclose(handle.total_norm, total, rtol=1e-6)
        for g in grads:
            g.mul_(0.05 / (handle.total_norm + 1e-6))
        a.step()
        a.zero_grad()
        b.step()
    assert_same(a, b, one, two)
    with pytest.raises(RuntimeError, match="have no norm of their own"):
        loss_of(two, 9).backward()
    with pytest.raises(ValueError, match="above 0"):
        signconv.gradient_release(AdamW(make().parameters()), max_norm=-1.0)


def test_a_norm_does_not_lose_what_was_accumulated() -> None:
    model = make(dtype=torch.float32)
    handle = signconv.gradient_release(AdamW(model.parameters()), max_norm=1.0)
    with handle.accumulate():
        loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="SC443"), handle.norm():
        loss_of(model, 1).backward()
    assert all(p.grad is not None for p in model.parameters())
