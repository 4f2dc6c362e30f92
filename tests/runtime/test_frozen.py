"""``frozen()``: the same bits with fewer looks, and broken promises that are noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from torch import Tensor, nn

from signconv.runtime.kernel.bucket import Bucket
from signconv.verification.bits import different

SHAPES = ((33, 7), (130,), ())
STEPS = 7


def values(seed: int, device: str) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=rng).to(device) for s in SHAPES]


def place(backend: str, device: str) -> str:
    """Where parameters lie: kernels run on ``device``, "auto" and the reference are tried on it."""
    return device if backend in ("triton", "auto") else "cpu"


def made(cls: Any, backend: str, device: str, **options: Any) -> tuple[list[nn.Parameter], Any]:
    ps = [nn.Parameter(x) for x in values(0, place(backend, device))]
    for p in ps:
        p.grad = torch.zeros_like(p)
    groups = [{"params": ps[:2]}, {"params": ps[2:], "weight_decay": 0.0}]
    return ps, cls(groups, lr=0.01, seed=3, backend=backend, **options)


def give(ps: list[nn.Parameter], t: int) -> None:
    for p, g in zip(ps, values(100 + t, str(ps[0].device)), strict=True):
        assert p.grad is not None
        p.grad.copy_(g)


def image(ps: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    return [x.detach().clone() for p in ps for x in (p, *optimizer.state[p].values())]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and not any(different(x, y) for x, y in zip(a, b, strict=True))


def trained(
    cls: Any,
    backend: str,
    device: str,
    frozen: bool,
    between: Callable[[int, list[nn.Parameter], Any], None] | None = None,
    **options: Any,
) -> list[Tensor]:
    ps, optimizer = made(cls, backend, device, **options)
    with optimizer.frozen() if frozen else nullcontext():
        for t in range(STEPS):
            give(ps, t)
            if between is not None:
                between(t, ps, optimizer)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return image(ps, optimizer)


def schedule(t: int, ps: list[nn.Parameter], optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01 / (1 + t)
        if t == 5:
            group["betas"] = (0.5, 0.9)


def infinite(t: int, ps: list[nn.Parameter], optimizer: Any) -> None:
    if t in (1, 5):
        assert ps[0].grad is not None
        ps[0].grad[0] = float("inf")


def scaled(t: int, ps: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.grad_scale = torch.tensor(2.0 + t, device=ps[0].device)
    optimizer.found_inf = torch.tensor(float(t == 5), device=ps[0].device)


@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
@pytest.mark.parametrize(
    ("between", "options"),
    [
        (None, {}),
        (schedule, {}),
        (infinite, {"skip_nonfinite": True}),
        (scaled, {}),
        (None, {"maximize": True}),
    ],
    ids=["plain", "schedule", "infinite", "scaled", "maximize"],
)
def test_the_same_bits(between: Any, options: dict[str, Any], backend: str, device: str) -> None:
    wanted = trained(AdamWStoSign, "reference", "cpu", False, between, **options)
    assert same(trained(AdamWStoSign, backend, device, True, between, **options), wanted)


def test_a_program_with_reductions(device: str) -> None:
    assert same(trained(LAMB, "triton", device, True), trained(LAMB, "reference", "cpu", False))


def test_nothing_is_looked_at_once_a_step_found_nothing_changed(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Bucket] = []
    follow = Bucket.follow
    monkeypatch.setattr(Bucket, "follow", lambda b: (looks.append(b), follow(b))[1])
    counts = []

    def count(t: int, ps: list[nn.Parameter], optimizer: Any) -> None:
        counts.append(len(looks))

    trained(AdamWStoSign, "triton", device, True, count)
    seen = [b - a for a, b in pairwise(counts)]
    assert any(seen) and not any(seen[2:])
    counts.clear()
    trained(AdamWStoSign, "triton", device, False, count)
    seen = [b - a for a, b in pairwise(counts)]
    assert all(seen[1:])


def freed_gradient(ps: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.zero_grad()
    for p, g in zip(ps, values(5, str(ps[0].device)), strict=True):
        p.grad = g


def moved_parameter(ps: list[nn.Parameter], optimizer: Any) -> None:
    ps[0].data = ps[0].data.clone()


def moved_state(ps: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.state[ps[0]]["m"].data = optimizer.state[ps[0]]["m"].data.clone()


def replaced_state(ps: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.state[ps[1]]["v"] = optimizer.state[ps[1]]["v"].clone()


def one_more(ps: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones_like(ps[0])))


def replaced_in_its_list(ps: list[nn.Parameter], optimizer: Any) -> None:
    """The old parameter lives on in ``ps``, so no memory is freed."""
    optimizer.param_groups[0]["params"][1] = nn.Parameter(torch.ones_like(ps[1]))


def another_list(ps: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.param_groups[0]["params"] = [*optimizer.param_groups[0]["params"]]


def one_group_less(ps: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.param_groups.pop()


@pytest.mark.parametrize(
    "broken",
    [
        freed_gradient, moved_parameter, moved_state, replaced_state, one_more,
        replaced_in_its_list, another_list, one_group_less,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_a_broken_promise_is_refused_before_anything_is_written(broken: Any, device: str) -> None:
    ps, optimizer = made(AdamWStoSign, "triton", device)
    with optimizer.frozen():
        for t in range(4):
            give(ps, t)
            optimizer.step()
        assert optimizer._promise is not None
        broken(ps, optimizer)
        before = image(ps, optimizer)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"frozen\(\).*\[SC439\]$"):
                optimizer.step()
        assert same(image(ps, optimizer), before)
    optimizer.step()  # looked at again
    assert not same(image(ps, optimizer), before)


def test_outside_of_it_everything_is_followed_again(device: str) -> None:
    runs = []
    for frozen in (True, False):
        ps, optimizer = made(AdamWStoSign, "triton", device)
        with optimizer.frozen() if frozen else nullcontext():
            for t in range(4):
                give(ps, t)
                optimizer.step()
        moved_parameter(ps, optimizer)
        replaced_state(ps, optimizer)
        freed_gradient(ps, optimizer)
        optimizer.step()
        runs.append(image(ps, optimizer))
    assert same(*runs)


def test_what_the_library_itself_replaces_is_no_broken_promise(device: str) -> None:
    """Checkpoints and groups that come in the middle; copies are not frozen."""
    runs = []
    for frozen in (True, False):
        ps, optimizer = made(AdamWStoSign, "triton", device)
        more = nn.Parameter(torch.ones(40, device=ps[0].device))
        more.grad = torch.ones_like(more)
        with optimizer.frozen() if frozen else nullcontext():
            for t in range(4):
                give(ps, t)
                optimizer.step()
            assert (copy.deepcopy(optimizer)._promise is None) and not copy.deepcopy(
                optimizer
            )._frozen
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for _ in range(3):
                optimizer.step()
            optimizer.add_param_group({"params": [more]})
            for _ in range(3):
                optimizer.step()
        runs.append(image([*ps, more], optimizer))
    assert same(*runs)


def test_one_inside_another_and_an_error_inside(device: str) -> None:
    ps, optimizer = made(AdamWStoSign, "triton", device)
    with optimizer.frozen():
        with optimizer.frozen():
            for t in range(4):
                give(ps, t)
                optimizer.step()
        assert optimizer._promise is not None
    assert optimizer._promise is None
    with pytest.raises(KeyError), optimizer.frozen():
        raise KeyError
    assert not optimizer._frozen
