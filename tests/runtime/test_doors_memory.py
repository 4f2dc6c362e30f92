"""Memory that reaches a kernel: stepped rightly, or refused before anything is written."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor, nn

from signconv.runtime import memory
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.support.doors import BACKENDS, LATER, MEMORY, STEPS, Situation, settle

SHAPES = [(4, 32), (5,)]
Params = list[Any]


class Wrapped(Tensor):
    """Codes and a scale that look like an fp32 tensor, as torchao's quantized weights do."""

    @staticmethod
    def __new__(cls, codes: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(function)


class Own(nn.Parameter):
    """A subclass with memory of its own."""


def values(seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=rng) for s in SHAPES]


def params() -> Params:
    return [nn.Parameter(x) for x in values(0)]


def give(ps: Params, t: int) -> None:
    for p, g in zip(ps, values(100 + t), strict=True):
        p.grad = None
        p.grad = g.to(p.dtype)


def made(ps: Any, backend: str) -> FusedOptimizer:
    return AdamWStoSign(ps, lr=0.01, seed=3, backend=backend)


def image(opt: FusedOptimizer, ps: Params) -> list[Any]:
    """Everything a refused step must leave: bytes of parameters that have some, and the state."""
    kept = [None if memory.foreign(p) else p.detach().resolve_neg().clone() for p in ps]
    entries = [{k: x.clone() for k, x in e.items()} for e in opt.state.values()]
    return [kept, entries]


def alike(a: list[Any], b: list[Any]) -> bool:
    for x, y in zip(a[0], b[0], strict=True):
        if x is not None and y is not None and different(x, y):
            return False
    return len(a[1]) == len(b[1]) and all(
        e.keys() == f.keys() and not any(different(e[k], f[k]) for k in e)
        for e, f in zip(a[1], b[1], strict=True)
    )


# ---------------------------------------------------------------- what is done to the tensors


def _data(change: Callable[[Tensor], Tensor]) -> Callable[[Params], None]:
    def act(ps: Params) -> None:
        ps[0].data = change(ps[0].data)

    return act


def _convert(dtype: torch.dtype) -> Callable[[Params], None]:
    def act(ps: Params) -> None:
        for p in ps:
            g, p.grad = p.grad, None
            p.data = p.data.to(dtype)
            p.grad = g.to(dtype)

    return act


def _gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Params], None]:
    def act(ps: Params) -> None:
        made = change(ps[0].grad)
        if made.dtype == ps[0].dtype:
            ps[0].grad = made
        else:
            ps[0].grad.data = made

    return act


def _free(ps: Params) -> None:
    ps[0].untyped_storage().resize_(0)


def _free_gradient(ps: Params) -> None:
    ps[0].grad.untyped_storage().resize_(0)


def _shorten(ps: Params) -> None:
    ps[0].untyped_storage().resize_(64)


def _transpose(ps: Params) -> None:
    ps[0].data = ps[0].data.t().contiguous().t()
    ps[0].grad = ps[0].grad.t().contiguous().t()


def _expand(ps: Params) -> None:
    ps[0].data = torch.ones(1, 32).expand(4, 32)


def _share(ps: Params) -> None:
    whole = torch.zeros(8, 32)
    ps[0].data, ps[1].data = whole[:4], whole.view(-1)[120:125]


def _columns(ps: Params) -> None:
    whole = torch.zeros(5, 40)
    whole[:4, :32], whole[:, 39] = ps[0].data, ps[1].data
    ps[0].data, ps[1].data = whole[:4, :32], whole[:, 39]


def _zero(ps: Params) -> None:
    ps[0].grad = torch._efficientzerotensor(ps[0].shape)


ACTS: dict[str, Callable[[Params], None]] = {
    "half": _convert(torch.float16),
    "double": _convert(torch.float64),
    "bf16": _convert(torch.bfloat16),
    "resized": _data(lambda x: torch.zeros(40, 32)),
    "reshaped": _data(lambda x: x.reshape(2, 64)),
    "half gradient": _gradient(lambda g: g.half()),
    "bf16 gradient": _gradient(lambda g: g.bfloat16()),
    "freed parameter": _free,
    "freed gradient": _free_gradient,
    "short storage": _shorten,
    "negated gradient": _gradient(lambda g: torch._neg_view(-g)),
    "negated parameter": _data(lambda x: torch._neg_view(-x)),
    "zero gradient": _zero,
    "transposed": _transpose,
    "expanded": _expand,
    "shared": _share,
    "columns": _columns,
}
#: The same values without the situation.
PLAIN: dict[str, Callable[[Params], None]] = {
    "bf16": _convert(torch.bfloat16),
    "bf16 gradient": _gradient(lambda g: g.bfloat16()),
    "zero gradient": _gradient(torch.zeros_like),
}


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("s", [s for s in MEMORY if s.name in ACTS], ids=lambda s: s.name)
def test_changed_between_steps(s: Situation, backend: str, later: bool, device: str) -> None:
    """What was checked at construction changes before the first step, or after one."""
    ps = params()
    opt = made(ps, backend)
    if later:
        give(ps, 0)
        opt.step()
    give(ps, 1)
    ACTS[s.name](ps)
    before = image(opt, ps)
    outcome = settle(s, backend, opt.step)
    if outcome != STEPS:
        assert alike(image(opt, ps), before)
        return
    qs = params()
    other = made(qs, "reference")
    if later:
        give(qs, 0)
        other.step()
    give(qs, 1)
    PLAIN.get(s.name, lambda qs: None)(qs)
    other.step()
    assert alike(image(opt, ps), image(other, qs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "s",
    [s for s in MEMORY if s.name in ("wrapper subclass", "listed twice", "inference parameter")],
    ids=lambda s: s.name,
)
def test_refused_as_they_are(s: Situation, backend: str, device: str) -> None:
    def act() -> None:
        if s.name == "wrapper subclass":
            ps = [nn.Parameter(Wrapped(torch.zeros(4, 32, dtype=torch.int8)))]
        elif s.name == "listed twice":
            ps = params()[:1] * 2
        else:
            with torch.inference_mode():
                ps = params()
        opt = made(ps, backend)
        for p in ps:
            p.grad = torch.ones(p.shape)
        opt.step()

    settle(s, backend, act)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_subclass_with_memory_of_its_own_is_a_parameter(backend: str, device: str) -> None:
    (s,) = (s for s in MEMORY if s.name == "subclass with memory")

    def act() -> None:
        sides = []
        for cls, where in ((Own, backend), (nn.Parameter, "reference")):
            ps = [cls(x) for x in values(0)]
            opt = made(ps, where)
            give(ps, 0)
            opt.step()
            sides.append(image(opt, ps))
        assert alike(*sides)

    settle(s, backend, act)


def _swap(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def act(entry: dict[str, Tensor]) -> None:
        entry[key] = change(entry[key])

    return act


CHANGED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "state converted": _swap("m", lambda x: x.float()),
    "state of another shape": _swap("v", lambda x: x[:2].clone()),
    "scales of another shape": _swap("v_scale", lambda x: x[:1].clone()),
    "state missing": lambda entry: entry.pop("m"),
    "state moved": _swap("m", lambda x: x.to("meta")),
    "state offloaded": lambda entry: entry.update({k: x.clone() for k, x in entry.items()}),
}


@pytest.mark.parametrize("in_place", [False, True], ids=["replaced", "data"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("s", LATER, ids=lambda s: s.name)
def test_state_that_is_not_as_it_was_left(
    s: Situation, backend: str, in_place: bool, device: str
) -> None:
    if in_place and s.name in ("state missing", "state moved"):
        pytest.skip("data cannot be missing, nor go to another kind of device")
    ps = params()
    opt = made(ps, backend)
    give(ps, 0)
    opt.step()
    entry = opt.state[ps[0]]
    if in_place:
        old = dict(entry)
        CHANGED[s.name](entry)
        for k, x in old.items():
            if k in entry and entry[k] is not x:
                x.data = entry[k]
                entry[k] = x
    else:
        CHANGED[s.name](entry)
    give(ps, 1)
    weights = [p.detach().clone() for p in ps]
    clocks = [int(opt.state[p]["step"]) for p in ps]
    if settle(s, backend, opt.step) != STEPS:
        assert clocks == [int(opt.state[p]["step"]) for p in ps] == [1, 1]
        assert all(not different(p.detach(), w) for p, w in zip(ps, weights, strict=True))
        return
    qs = params()
    other = made(qs, "reference")
    for t in range(2):
        give(qs, t)
        other.step()
    assert alike(image(opt, ps), image(other, qs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_notices_a_step(backend: str, device: str) -> None:
    """Once more backward through the graph would use the new weights for the old ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 4, bias=False), nn.Linear(4, 1, bias=False))
    model[0].weight.data = model[0].weight.data.t().contiguous().t()  # a strided one
    opt = made(model.parameters(), backend)
    loss = model(torch.randn(4, 32)).sum()
    for _ in range(2):  # prepared, then followed
        loss = model(torch.randn(4, 32)).sum()
        versions = [p._version for p in model.parameters()]
        loss.backward(retain_graph=True)
        opt.step()
        assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("private", [True, False], ids=["one call", "one by one"])
def test_a_watch_sees_every_change(private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not private:
        monkeypatch.setattr(memory, "TensorGuards", None)
    x, y = torch.zeros(4, 32), nn.Parameter(torch.zeros(4))
    watch = memory.Watch([x, y])
    assert watch.same([x, y]) and watch.same([torch.ones(4, 32), nn.Parameter(torch.ones(4))])
    others: list[Any] = [
        x.half(), x.double(), x[:2], torch.zeros(32, 4).t(), x.view(2, 64), torch._neg_view(x),
        torch._efficientzerotensor((4, 32)), x.to("meta"), x.to_sparse(), None, y, 7,
        x.clone().requires_grad_(), Wrapped(torch.zeros(4, 32)), nn.Parameter(x),
    ]  # fmt: skip
    for i, z in enumerate(others):
        assert not watch.same([z, y]), i
    assert not watch.same([x]) and not watch.same([]) and not watch.same([x, y, y])


def test_memory_of_the_state_that_was_given_away_is_not_followed(device: str) -> None:
    """Between two steps the state's memory is freed and comes back as something smaller, at the
    same address: a table of addresses alone would not tell."""
    ps = params()[:1]
    opt = made(ps, "triton")
    ps[0].grad = torch.ones(4, 32)
    opt.step()
    (engine,) = (e for b in opt._backends.values() for e in b._engines.values())  # type: ignore[attr-defined]
    (bucket,) = engine.buckets
    assert bucket.follow()
    kept = opt.state[ps[0]]["m"].data
    opt.state[ps[0]]["m"].data = kept.clone()
    opt.state[ps[0]]["m"].data = kept  # the same memory again: nothing was freed but a copy
    assert bucket.follow()
    address = kept.data_ptr()
    del kept
    opt.state[ps[0]]["m"].data = torch.zeros(0, dtype=torch.uint8)
    gc.collect()
    assert bucket.died and not bucket.follow() and address


def test_overlaps() -> None:
    w = torch.zeros(8, 40)
    assert memory.sharing([w[:4], w[4:], w[:0]][:2]) is None
    assert memory.sharing([w[:, :32], w[:, 32:]]) is None
    assert memory.sharing([w[:, :33], w[:, 32:]]) == (0, 1)
    assert memory.sharing([w[::2], w[1::2], w[3]]) == (1, 2)
    assert memory.sharing([w, torch.zeros(3), w]) == (0, 2)
    assert memory.overlaps_itself(torch.zeros(1).expand(3))
    assert memory.overlaps_itself(torch.zeros(9).as_strided((3, 3), (2, 1)))
    assert not memory.overlaps_itself(w[::2, ::3]) and not memory.overlaps_itself(w.t())
