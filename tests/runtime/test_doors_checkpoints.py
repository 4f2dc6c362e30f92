"""Checkpoints from anywhere: equal values load to equal bits, another program is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor

from tests.runtime.test_doors_groups import assert_equal, make, step
from tests.support.doors import BACKENDS, Situation, settle
from tests.support.doors2 import CHECKPOINTS

Change = Callable[[dict[str, Any]], Any]


def saved(backend: str, cls: Any = AdamWStoSign) -> tuple[dict[str, Any], list[Tensor]]:
    ps = make()
    a = cls(ps, lr=0.25, backend=backend)
    for t in range(2):
        step(a, ps, t)
    return copy.deepcopy(a.state_dict()), ps


def trains_alike(backend: str, change: Change) -> Any:
    """The changed state_dict and the original train to the same bits."""
    state, ps = saved(backend)
    changed = copy.deepcopy(state)
    change(changed)
    made = []
    for each in (state, changed):
        qs = [p.detach().clone().requires_grad_() for p in ps]
        optimizer = AdamWStoSign(qs, lr=0.25, backend=backend)
        optimizer.load_state_dict(each)
        step(optimizer, qs, 2)
        made.append((optimizer, qs))
    (a, x), (b, y) = made
    assert_equal(a, b, x, y)
    return b


def transposed(state: dict[str, Any]) -> None:
    for name in ("m", "v"):
        x = state["state"][0][name]
        state["state"][0][name] = x.t().contiguous().t()
        assert not state["state"][0][name].is_contiguous()


def aliased(state: dict[str, Any]) -> None:
    """Both clocks are one tensor, and moments and their scales views of one memory."""
    entries = state["state"]
    entries[1]["step"] = entries[0]["step"]
    one = torch.cat([entries[0][n].flatten() for n in ("m", "v")])
    for i, name in enumerate(("m", "v")):
        entries[0][name] = one.view(2, 2, 32)[i]


def own(state: dict[str, Any]) -> None:
    state["state"][0].update(slow=torch.ones(2, 32), note="kept")
    state["param_groups"][0]["lr_scale"] = 2


ACTS: dict[str, Callable[[str, Path], object]] = {
    "strides": lambda backend, _: trains_alike(backend, transposed),
    "aliases": lambda backend, _: trains_alike(backend, aliased),
    "lacking keys": lambda backend, _: trains_alike(
        backend,
        lambda s: [s["param_groups"][0].pop(k) for k in ("betas", "seed", "maximize", "lr0", "lr")],
    ),
    "number for step": lambda backend, _: trains_alike(
        backend, lambda s: s["state"][0].update(step=2.0)
    ),
}


def loaded_own(backend: str, _: Path) -> None:
    b = trains_alike(backend, own)
    entry = b.state_dict()["state"][0]
    assert torch.equal(entry["slow"], torch.ones(2, 32)) and entry["note"] == "kept"
    assert b.param_groups[0]["lr_scale"] == 2


def other_program(backend: str, _: Path) -> None:
    state, _ps = saved(backend, AdamW)
    AdamWStoSign(make(), backend=backend).load_state_dict(state)


def safetensors(backend: str, folder: Path) -> None:
    files = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    ps = make()
    a = AdamWStoSign(ps, backend=backend)
    step(a, ps, 0)
    state = a.state_dict()
    flat = {f"{i}.{n}": x for i, e in state["state"].items() for n, x in e.items()}
    files.save_file(flat, folder / "state.safetensors")
    back: dict[int, dict[str, Tensor]] = {}
    for key, x in files.load_file(folder / "state.safetensors").items():
        back.setdefault(int(key[0]), {})[key[2:]] = x
    qs = [p.detach().clone().requires_grad_() for p in ps]
    b = AdamWStoSign(qs, backend=backend)
    b.load_state_dict({"state": back, "param_groups": state["param_groups"]})
    step(a, ps, 1)
    step(b, qs, 1)
    assert_equal(a, b, ps, qs)


def names(backend: str, _: Path) -> None:
    ps, qs = make(), make()
    a = AdamWStoSign(list(zip(("w", "b"), ps, strict=True)), backend=backend)
    step(a, ps, 0)
    plain = AdamWStoSign(qs, backend=backend)
    plain.load_state_dict(a.state_dict())
    assert plain.param_groups[0]["param_names"] == ["w", "b"]
    unnamed = AdamWStoSign(qs, backend=backend).state_dict()
    a.load_state_dict(unnamed)
    assert a.param_groups[0]["param_names"] == ["w", "b"]


ACTS |= {
    "loaded own": loaded_own,
    "other program": other_program,
    "safetensors": safetensors,
    "names": names,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("situation", CHECKPOINTS, ids=lambda s: s.name)
def test_checkpoints(situation: Situation, backend: str, device: str, tmp_path: Path) -> None:
    if backend == "triton" and device != "cpu":
        pytest.skip("the interpreter's test: parameters are on the CPU")
    settle(situation, backend, lambda: ACTS[situation.name](backend, tmp_path))
