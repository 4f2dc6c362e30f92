"""Hooks and profiles of a step: as torch.optim has them, with torch's wrapper or without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from torch import nn
from torch.optim import optimizer as optimizers
from torch.profiler import ProfilerActivity, profile

BACKENDS = ("auto", "reference")


def made(backend: str, cls: Any = AdamW) -> Any:
    p = nn.Parameter(torch.ones(33))
    p.grad = torch.ones_like(p)
    return cls([p], lr=0.1, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_run_once_while_they_are_there(backend: str) -> None:
    optimizer, seen = made(backend), []
    steps = [
        optimizer.register_step_pre_hook(lambda o, a, k: seen.append("before")),
        optimizer.register_step_post_hook(lambda o, a, k: seen.append("after")),
    ]
    optimizer.step()
    assert seen == ["before", "after"]
    for handle in steps:
        handle.remove()
    optimizer.step()
    assert seen == ["before", "after"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_of_all_optimizers_run(backend: str) -> None:
    optimizer, seen = made(backend), []
    handles = [
        optimizers.register_optimizer_step_pre_hook(lambda o, a, k: seen.append(("before", o))),
        optimizers.register_optimizer_step_post_hook(lambda o, a, k: seen.append(("after", o))),
    ]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [("before", optimizer), ("after", optimizer)]


def test_a_hook_may_give_other_arguments() -> None:
    optimizer = made("auto")
    optimizer.register_step_pre_hook(lambda o, a, k: ((o, lambda: 7.0), {}))
    assert optimizer.step() == 7.0


@pytest.mark.parametrize("first", [False, True], ids=["alone", "after its base"])
def test_hooks_of_a_subclass_with_its_own_step(first: bool) -> None:
    """As of a subclass of torch.optim.SGD: once, or twice where torch wrapped both."""

    def count(base: Any, make: Any) -> int:
        class Base(base):
            def step(self, closure: Any = None) -> Any:
                return super().step(closure)

        class Own(Base):
            def step(self, closure: Any = None) -> Any:
                return super().step(closure)

        if first:
            make(Base)
        optimizer, seen = make(Own), []
        optimizer.register_step_pre_hook(lambda o, a, k: seen.append(1))
        optimizer.step()
        return len(seen)

    def sgd(cls: Any) -> Any:
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.ones_like(p)
        return cls([p], lr=0.1)

    made("auto"), sgd(torch.optim.SGD)
    assert count(AdamW, lambda cls: made("auto", cls)) == count(torch.optim.SGD, sgd)


def test_a_profile_names_the_step() -> None:
    optimizer = made("auto")
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        optimizer.step()
    assert "Optimizer.step#AdamW.step" in [e.name for e in seen.events()]
