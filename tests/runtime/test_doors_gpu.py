"""Doors that only a GPU has: a default device, conversion after construction, offloading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from torch import Tensor, nn

from signconv.verification.bits import different

pytestmark = pytest.mark.gpu
SHAPES = ((33, 7), (4100,), ())
STEPS = 4
BACKENDS = ("auto", "reference")
Between = Callable[[Any, nn.ParameterList], None]


def values(seed: int) -> list[Tensor]:
    rng = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(s, generator=rng, device="cpu") for s in SHAPES]


def give(model: nn.ParameterList, t: int) -> None:
    for p, g in zip(model, values(100 + t), strict=True):
        p.grad = g.to(p.device, p.dtype)


def trained(
    cls: Any, device: str, backend: str, between: Between | None = None, **options: Any
) -> list[Tensor]:
    """Parameters and state after STEPS, on the CPU; ``between`` runs before each but the first."""
    model = nn.ParameterList(nn.Parameter(x.to(device)) for x in values(0))
    optimizer = cls(model.parameters(), lr=0.01, seed=3, backend=backend, **options)
    for t in range(STEPS):
        if t and between is not None:
            between(optimizer, model)
        give(model, t)
        optimizer.step()
    if between is not None:
        between(optimizer, model)
    state = [x for p in model for x in optimizer.state[p].values()]
    return [x.detach().cpu() for x in [*model, *state]]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and not any(different(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", [AdamWStoSign, LAMB])
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_a_default_device_changes_no_bit(place: str, cls: Any, backend: str) -> None:
    wanted = trained(cls, "cpu", "reference")
    torch.set_default_device("cuda" if place == "cpu" else "cpu")
    try:
        across = trained(cls, place, backend)
        torch.set_default_device("cuda")
        assert same(across, wanted)
        assert same(trained(cls, place, backend, skip_nonfinite=True), wanted)
    finally:
        torch.set_default_device(None)


def offload(optimizer: Any, model: nn.ParameterList) -> None:
    """Parameters and state to the host and back, as trainers free a GPU between phases."""
    for device in ("cpu", "cuda"):
        model.to(device)
        for entry in optimizer.state.values():
            for key, x in entry.items():
                entry[key] = x.to(device)


def offload_in_place(optimizer: Any, model: nn.ParameterList) -> None:
    """The same by way of ``data``, which keeps every tensor object."""
    for device in ("cpu", "cuda"):
        for p in model:
            p.data = p.data.to(device)
            for x in optimizer.state[p].values():
                x.data = x.data.to(device)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", [AdamWStoSign, LAMB])
@pytest.mark.parametrize("act", [offload, offload_in_place])
def test_offloaded_back_and_forth(act: Between, cls: Any, backend: str) -> None:
    assert same(trained(cls, "cuda", backend, act), trained(cls, "cpu", "reference"))


@pytest.mark.parametrize("cls", [AdamWStoSign, LAMB])
def test_some_steps_on_the_host_and_some_on_the_gpu(cls: Any) -> None:
    def move(optimizer: Any, model: nn.ParameterList) -> None:
        there = "cpu" if model[0].is_cuda else "cuda"
        model.to(there)
        for entry in optimizer.state.values():
            for key, x in entry.items():
                entry[key] = x.to(there)

    assert same(trained(cls, "cuda", "auto", move), trained(cls, "cpu", "reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_left_behind_is_refused(backend: str) -> None:
    model = nn.ParameterList(nn.Parameter(x.cuda()) for x in values(0))
    optimizer = AdamWStoSign(model.parameters(), lr=0.01, seed=3, backend=backend)
    give(model, 0)
    optimizer.step()
    before = [p.detach().clone() for p in model]
    model.to("cpu")
    give(model, 1)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"\[SC426\]"):
        optimizer.step()
    assert same([p.detach() for p in model], [x.cpu() for x in before])


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_half_after_construction_is_refused(dtype: torch.dtype, backend: str, later: bool) -> None:
    model = nn.ParameterList(nn.Parameter(x.cuda()) for x in values(0))
    optimizer = AdamWStoSign(model.parameters(), lr=0.01, seed=3, backend=backend)
    if later:
        give(model, 0)
        optimizer.step()
    model.to(dtype)
    give(model, 1)
    before = [p.detach().clone() for p in model]
    entries = [x.clone() for p in model for x in optimizer.state[p].values()]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"\[SC412\]"):
        optimizer.step()
    torch.cuda.synchronize()
    assert same([p.detach() for p in model], before)
    assert same([x for p in model for x in optimizer.state[p].values()], entries)


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_and_device_after_construction(backend: str, later: bool) -> None:
    def run(device: str, backend: str) -> list[Tensor]:
        model = nn.ParameterList(nn.Parameter(x) for x in values(0))
        optimizer = AdamWStoSign(model.parameters(), lr=0.01, seed=3, backend=backend)
        for t in range(3):
            if t == int(later):
                model.bfloat16()
            if t == 0:
                model.to(device)
            give(model, t)
            optimizer.step()
        state = [x for p in model for x in optimizer.state[p].values()]
        return [x.detach().cpu() for x in [*model, *state]]

    assert same(run("cuda", backend), run("cpu", "reference"))
