"""Param groups and state belong to the user: situation by situation, on every backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor

from signconv.runtime import compat
from signconv.verification.bits import different
from tests.support.doors import BACKENDS, Situation, settle
from tests.support.doors2 import GROUPS

SHAPES = ((2, 32), (5,))


def make(count: int = 2) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = [SHAPES[i % 2] for i in range(count)]
    return [torch.randn(s, generator=rng).requires_grad_() for s in shapes]


def step(optimizer: Any, params: list[Tensor], t: int) -> None:
    rng = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng)
    optimizer.step()


def assert_equal(a: Any, b: Any, ps: list[Tensor], qs: list[Tensor]) -> None:
    """Parameters and the state of the program, bit for bit."""
    for p, q in zip(ps, qs, strict=True):
        assert different(p, q) == 0
        for name in ("m", "v", "step", "offset"):
            assert different(a.state[p][name], b.state[q][name]) == 0, name


ACTS: dict[str, Callable[[str], None]] = {}


def act(name: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    def enter(f: Callable[[str], None]) -> Callable[[str], None]:
        ACTS[name] = f
        return f

    return enter


@act("params replaced")
def _(backend: str) -> None:
    """Replaced before the first step: the bits of an optimizer that was built from the new ones."""
    ps, qs = make(), make()
    a, b = AdamWStoSign(make(), backend=backend), AdamWStoSign(qs, backend=backend)
    a.param_groups[0]["params"] = ps
    for t in range(2):
        step(a, ps, t)
        step(b, qs, t)
    assert_equal(a, b, ps, qs)


@act("param replaced")
def _(backend: str) -> None:
    """The new one has the old one's place and a clock of its own, the other goes on."""
    ps, new = make(), make()[0]
    a = AdamWStoSign(ps, backend=backend)
    step(a, ps, 0)
    del a.state[ps[0]]
    a.param_groups[0]["params"][0] = new
    step(a, [new, ps[1]], 1)
    assert [int(a.state[p]["step"]) for p in (new, ps[1])] == [1, 2]
    assert [int(a.state[p]["offset"]) for p in (new, ps[1])] == [0, 64]


@act("param appended")
def _(backend: str) -> None:
    ps, qs = make(4), make(4)
    a = AdamWStoSign([{"params": ps[:1]}, {"params": ps[1:2]}], backend=backend)
    a.param_groups[0]["params"].append(ps[2])  # its place is taken: after all others
    a.param_groups[1]["params"].append(ps[3])
    b = AdamWStoSign(qs, backend=backend)
    step(a, ps, 0)
    step(b, qs, 0)
    assert_equal(a, b, ps, qs)


@act("param removed")
def _(backend: str) -> None:
    ps, qs = make(), make()
    a, b = (AdamWStoSign(x, backend=backend) for x in (ps, qs))
    step(a, ps, 0)
    step(b, qs, 0)
    del a.param_groups[0]["params"][0]
    step(a, ps, 1)
    assert int(a.state[ps[1]]["step"]) == 2 and int(a.state[ps[0]]["step"]) == 1
    step(b, qs, 1)
    assert different(ps[1], qs[1]) == 0 and different(ps[0], qs[0])


def grouped(backend: str) -> Iterator[tuple[Any, list[Tensor]]]:
    for _ in range(2):
        ps = make()
        yield AdamWStoSign([{"params": [p]} for p in ps], backend=backend), ps


@act("groups reordered")
def _(backend: str) -> None:
    (a, ps), (b, qs) = grouped(backend)
    for t in range(3):
        if t:
            a.param_groups.reverse()
        step(a, ps, t)
        step(b, qs, t)
    assert_equal(a, b, ps, qs)


@act("group removed")
def _(backend: str) -> None:
    (a, ps), (b, qs) = grouped(backend)
    step(a, ps, 0)
    step(b, qs, 0)
    del a.param_groups[0]
    step(a, ps[1:], 1)
    step(b, qs[1:], 1)
    assert_equal(a, b, ps[1:], qs[1:])


@act("not a parameter")
def _(backend: str) -> None:
    ps = make()
    a = AdamWStoSign(ps, backend=backend)
    a.param_groups[0]["params"].append("weight")
    a.step()


@act("own keys")
def _(backend: str) -> None:
    ps = make()
    own = {"lr_scale": 0.5, "name": "all", "rho": 0.05, "weight_decay_mult": 2}
    a = AdamWStoSign([{"params": ps, **own}], backend=backend)
    step(a, ps, 0)
    saved = a.state_dict()
    b = AdamWStoSign(make(), backend=backend)
    b.load_state_dict(saved)
    assert own.items() <= b.param_groups[0].items()


@act("misspelt key")
def _(backend: str) -> None:
    AdamWStoSign([{"params": make(), "weight_decy": 0.1}], backend=backend)


def same_as(backend: str, plain: dict[str, Any], given: dict[str, Any]) -> None:
    """Converted to plain numbers, and trains like them."""
    ps, qs = make(), make()
    a, b = AdamWStoSign(ps, backend=backend, **given), AdamWStoSign(qs, backend=backend, **plain)
    step(a, ps, 0)
    step(b, qs, 0)
    assert_equal(a, b, ps, qs)
    for key, value in plain.items():
        assert a.param_groups[0][key] == value and type(a.param_groups[0][key]) is type(value)


act("numpy lr")(lambda backend: same_as(backend, {"lr": 0.5}, {"lr": np.float32(0.5)}))
act("text lr")(lambda backend: same_as(backend, {"lr": 0.5}, {"lr": "0.5"}))
act("list of betas")(
    lambda backend: same_as(backend, {"betas": (0.5, 0.75)}, {"betas": [np.float64(0.5), "0.75"]})
)


@act("edited numpy lr")
def _(backend: str) -> None:
    ps, qs = make(), make()
    a, b = (AdamWStoSign(x, backend=backend) for x in (ps, qs))
    for t in range(2):
        step(a, ps, t)
        step(b, qs, t)
        a.param_groups[0]["lr"], b.param_groups[0]["lr"] = np.float64(0.25), 0.25
    step(a, ps, 2)
    step(b, qs, 2)
    assert type(a.param_groups[0]["lr"]) is float
    assert_equal(a, b, ps, qs)


def edited(backend: str, key: str, value: object) -> None:
    """After a step; whatever is refused changes nothing."""
    ps = make()
    a = AdamWStoSign(ps, backend=backend)
    step(a, ps, 0)
    before = [p.detach().clone() for p in ps]
    a.param_groups[0][key] = value
    try:
        step(a, ps, 1)
    except (TypeError, ValueError):
        assert all(torch.equal(p, q) for p, q in zip(ps, before, strict=True))
        raise


act("word")(lambda backend: edited(backend, "lr", "fast"))
act("outside")(lambda backend: edited(backend, "lr", -1.0))
act("negative tensor")(lambda backend: AdamWStoSign(make(), lr=torch.tensor(-1.0), backend=backend))


@act("key deleted")
def _(backend: str) -> None:
    ps = make()
    a = AdamWStoSign(ps, backend=backend)
    del a.param_groups[0]["maximize"]
    step(a, ps, 0)
    assert a.param_groups[0]["maximize"] is False


def counted(backend: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    ps = make(3)
    a = AdamWStoSign(ps, backend=backend)
    for t in range(3):
        step(a, ps, t)
    edit(a.state[ps[0]])
    step(a, ps, 3)
    assert [int(a.state[p]["step"]) for p in ps] == [1, 4, 4]
    assert all(a.state[p]["step"].dtype == torch.int64 for p in ps)


act("step zeroed")(lambda backend: counted(backend, lambda e: e["step"].zero_()))
act("step number")(lambda backend: counted(backend, lambda e: e.update(step=0)))
act("step float")(lambda backend: counted(backend, lambda e: e.update(step=torch.tensor(0.0))))
act("step half")(lambda backend: counted(backend, lambda e: e.update(step=0.5)))


@act("own entry")
def _(backend: str) -> None:
    ps, qs = make(), make()
    a, b = (AdamWStoSign(x, backend=backend) for x in (ps, qs))
    for p in ps:
        a.state[p]["slow"] = p.detach().clone()
    for t in range(2):
        step(a, ps, t)
        step(b, qs, t)
    assert_equal(a, b, ps, qs)
    assert all("slow" in a.state[p] for p in ps)


@act("frozen")
def _(backend: str) -> None:
    dtypes = (torch.float16, torch.uint8, torch.float64, torch.complex64, torch.bool)
    frozen = [torch.zeros(4, 32).to(d) for d in dtypes]
    ps = make()
    a = AdamWStoSign([*frozen, *ps], backend=backend)
    step(a, ps, 0)
    assert set(a.state) == set(ps)


@act("fused")
def _(backend: str) -> None:
    compat.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            AdamWStoSign(make(), fused=True, foreach=None, differentiable=False, backend=backend)
    assert [str(w.message) for w in said if "'fused'" in str(w.message)] != []
    assert len([w for w in said if "ignores it" in str(w.message)]) == 1


@act("amsgrad")
def _(backend: str) -> None:
    AdamWStoSign(make(), amsgrad=True, backend=backend)


@act("defaults")
def _(backend: str) -> None:
    a = AdamWStoSign(make(), lr=0.5, backend=backend)
    b = AdamWStoSign(make(), **a.defaults)
    assert b.defaults == a.defaults


@act("grad scaler")
def _(backend: str) -> None:
    ps, qs = make(), make()
    a, b = (AdamWStoSign(x, backend=backend) for x in (ps, qs))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for bad in (False, True):
        scaler.scale(sum((p.square().sum() for p in ps), torch.zeros(()))).backward()
        sum((q.square().sum() for q in qs), torch.zeros(())).backward()
        if bad:
            ps[0].grad[0, 0] = float("inf")  # type: ignore[index]
        scaler.unscale_(a)
        torch.nn.utils.clip_grad_norm_(ps, 0.5)
        torch.nn.utils.clip_grad_norm_(qs, 0.5)
        scaler.step(a)
        scaler.update()
        if not bad:
            b.step()
        a.zero_grad()
        b.zero_grad()
    assert_equal(a, b, ps, qs)
    assert scaler.get_scale() == 512.0


def test_every_situation_has_an_act() -> None:
    assert {s.name for s in GROUPS} == set(ACTS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("situation", GROUPS, ids=lambda s: s.name)
def test_groups_and_state(situation: Situation, backend: str, device: str) -> None:
    if backend == "triton" and device != "cpu":
        pytest.skip("the interpreter's test: parameters are on the CPU")
    settle(situation, backend, lambda: ACTS[situation.name](backend))
