"""Extra inputs of ``step``: the same bits on every backend, checked as gradients are."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.sophia import Sophia
from torch import Tensor, nn

import signconv
from signconv.dsl import (
    Optimizer,
    abs,
    decoupled,
    ema,
    extra,
    given,
    grad,
    hyper,
    max,
    min,
    norm,
    sqrt,
    state,
    where,
)
from signconv.runtime import offload
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different

BACKENDS = ["reference", "cpu", "triton"]
every = pytest.mark.parametrize("backend", BACKENDS)


class Everything(Optimizer):
    """Every kind of extra input, inside a moment, a reduction, a scalar state and the update."""

    lr = hyper(1e-2, ge=0)
    a = extra(per="element", ge=0)
    b = extra(per="element")
    loss = extra(per="step")
    rate = extra(per="step")
    best = state(1e9)
    best.next = where(given(loss), min(best.prev, loss), best.prev)
    v = ema(a, 0.9)
    w = state(0)
    w.next = where(given(b), 0.9 * w.prev + 0.1 * b, w.prev)
    size = norm(a * grad)
    update = rate * grad / (sqrt(v) + 1e-3) + 1e-3 * size * w + min(best, 1) * max(a, abs(w))
    decay = decoupled(0.1)


class Divided(Optimizer):
    """A denominator that a pass replaces."""

    lr = hyper(1e-2, ge=0)
    hessian = extra(per="element", ge=0)
    m = ema(grad, 0.9)
    numerator = m
    denominator = hessian + 1e-3


class Polyak(Optimizer):
    """SPS_max (Loizou et al. 2021, arXiv 2002.10542): loss / (c * norm**2), at most ``most``."""

    lr = hyper(1.0, ge=0)
    c, most = hyper(0.5, gt=0), hyper(10.0, gt=0)
    loss = extra(per="step", ge=0)
    size = norm(grad, over="all")
    update = min(loss / (c * size**2), most) * grad


@cache
def built(spec: type[Optimizer], state: str = "fp8", convert: str | None = None) -> Any:
    return signconv.compile(spec, state=state, convert=convert)


def params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Rows that end in partial blocks, a strided one, one that is not aligned, one number."""
    rng = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=rng) for s in [(7, 64), (33,), (), (5, 40)]]
    made.append(torch.randn(48, 40, generator=rng).t())
    made = [p.to(dtype) for p in made]
    made.append(torch.randn(130, generator=rng).to(dtype)[1:])
    return [nn.Parameter(p) for p in made]


def drawn(ps: Iterable[Tensor], seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=rng) for p in ps]


def with_gradients(ps: list[nn.Parameter], t: int) -> None:
    for p, g in zip(ps, drawn(ps, t), strict=True):
        p.grad = g.to(p.dtype)


def tensors(ps: list[nn.Parameter], t: int) -> list[Tensor]:
    """fp32, bf16, both, not contiguous, expanded, not aligned: by turns."""
    made = drawn(ps, 1000 + t)
    if t % 4 == 1:
        made = [x.bfloat16() for x in made]
    elif t % 4 == 2:
        made = [x.bfloat16() if i % 2 else x for i, x in enumerate(made)]
    elif t % 4 == 3:
        made = [x.t().contiguous().t() if x.dim() == 2 else x for x in made]
        made[1] = torch.tensor(0.25).expand(33)
        made[3] = torch.cat([torch.zeros(1), made[3].reshape(-1)])[1:].view(5, 40)
    return made


def train(ps: list[nn.Parameter], optimizer: Any, steps: int) -> None:
    for t in range(steps):
        with_gradients(ps, t)
        given = {"a": [x.abs() for x in tensors(ps, t)], "rate": 0.5 + t}
        if t % 2:
            given["b"] = tensors(ps, t + 1)
            given["loss"] = torch.tensor(3.0 / (t + 1), dtype=torch.bfloat16)
        optimizer.step(**given)


def everything(ps: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    return [*(p.detach() for p in ps), *(x for p in ps for x in optimizer.state[p].values())]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(different(x, y) == 0 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("options", [{}, {"master": "split"}, {"maximize": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("state", ["fp8", "fp32"])
def test_every_backend_has_the_same_bits(
    state: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    found = []
    for backend in BACKENDS:
        ps = params(dtype)
        optimizer = built(Everything, state)(ps, backend=backend, **options)
        train(ps, optimizer, 6)
        found.append(everything(ps, optimizer))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@every
def test_what_is_passed_stays_as_it_was(backend: str) -> None:
    ps = params()
    optimizer = Sophia(ps, backend=backend)
    for t in range(4):
        with_gradients(ps, t)
        given = tensors(ps, t)
        before = [x.clone() for x in given]
        optimizer.step(hessian=given)
        assert same(given, before)


@every
def test_by_order_and_by_parameter(backend: str) -> None:
    """None, or nothing, stands for a parameter without gradient."""
    found = []
    for kind in ("list", "dict", "generator"):
        ps = params()
        groups = [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.1}]
        optimizer = Sophia(groups, backend=backend)
        for t in range(3):
            with_gradients(ps, t)
            ps[1].grad = None
            given: list[Tensor | None] = [*tensors(ps, t)]
            given[1] = None
            by = {p: x for p, x in zip(ps, given, strict=True) if x is not None}
            optimizer.step(hessian={"list": given, "dict": by, "generator": (*given,)}[kind])
        found.append([*ps, *(x for p in ps for x in optimizer.state.get(p, {}).values())])
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@every
def test_without_a_hessian_its_average_stays(backend: str) -> None:
    ps = params()
    optimizer = Sophia(ps, backend=backend)
    with_gradients(ps, 0)
    optimizer.step(hessian=[torch.full(p.shape, 3.0) for p in ps])
    before = [optimizer.state[p]["h"].clone() for p in ps]
    for none in ({}, {"hessian": None}):
        with_gradients(ps, 1)
        optimizer.step(**none)
        assert same(before, [optimizer.state[p]["h"] for p in ps])


@every
@pytest.mark.parametrize("kind", [float, torch.tensor, lambda x: torch.tensor([x]).double()])
def test_polyak_by_hand(backend: str, kind: Callable[[float], Any]) -> None:
    ps = [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([[3.0]]))]
    optimizer = built(Polyak)(ps, backend=backend)
    for loss, cap in ((0.75, False), (1e9, True), (0.75, False)):
        for p in ps:
            p.grad = p.detach().clone()
        norm = sum(float(p.grad.square().sum()) for p in ps)
        rate = 10.0 if cap else loss / (0.5 * norm)
        wanted = [p.detach() - rate * p.grad for p in ps]
        optimizer.step(loss=kind(loss))
        assert all(torch.allclose(p, w, rtol=1e-6) for p, w in zip(ps, wanted, strict=True))


@every
def test_closure_and_a_loss_that_requires_a_gradient(backend: str) -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = built(Polyak)([p], backend=backend)
    loss = p.square().sum()
    loss.backward()

    def closure() -> Tensor:
        return loss

    assert optimizer.step(closure, loss=loss) is loss
    assert torch.allclose(p.detach(), torch.zeros(2), atol=1e-6)  # f / (f'**2 / 2) * f' = p


@every
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nan_is_no_plausible_number(backend: str, wrong: float) -> None:
    ps = params()
    optimizer = Sophia(ps, backend=backend)
    with_gradients(ps, 0)
    given = [torch.ones(p.shape) for p in ps]
    given[0][2, 5] = float("nan")
    optimizer.step(hessian=given)
    assert optimizer.state[ps[0]]["h"].isnan().sum() == 1
    assert ps[0].isnan().sum() == 1
    assert ps[0][2, 5].isnan()
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    built(Polyak)([p], backend=backend).step(loss=torch.tensor(wrong))
    assert p.isnan().all() == (wrong != wrong)


# ---------------------------------------------------------------- what others do around a step


def whole(convert: Callable[[Any], Any] = lambda step: step, **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(32, 4)
    optimizer = Sophia(model.parameters(), lr=0.01, backend="cpu", **options)
    step = convert(optimizer.step)
    for t in range(4):
        model(torch.full((3, 32), t + 1.0)).square().mean().backward()
        ps = [*model.parameters()]
        step(**({"hessian": [x.abs() for x in drawn(ps, t)]} if t % 2 == 0 else {}))
        optimizer.zero_grad()
    return [*(p.detach() for p in model.parameters()), *_states(optimizer)]


def _states(optimizer: FusedOptimizer) -> list[Tensor]:
    return [x for entry in optimizer.state.values() for x in entry.values()]


def test_compiled_step_breaks_its_graph_and_has_the_bits() -> None:
    torch.compiler.reset()
    plain = whole()
    assert same(whole(lambda step: torch.compile(step, backend="eager")), plain)


def test_schedulers_hooks_and_frozen() -> None:
    def hooked(step: Any) -> Any:
        optimizer = step.__self__
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
        seen: list[Any] = []
        optimizer.register_step_pre_hook(lambda _, args, kwargs: seen.append(kwargs))
        optimizer.register_step_post_hook(lambda _, args, kwargs: seen.append(kwargs))
        return optimizer.step

    assert same(whole(hooked), whole())


def test_scaler_passes_it_on() -> None:
    """Gradients are unscaled; extra inputs are as they come."""
    ends = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(32, 4)
        optimizer = Sophia(model.parameters(), lr=0.01, backend="cpu")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for t in range(2):
            loss = model(torch.full((3, 32), t + 1.0)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer, hessian=[x.abs() for x in drawn(model.parameters(), t)])
            scaler.update()
            optimizer.zero_grad()
        ends.append([*(p.detach() for p in model.parameters()), *_states(optimizer)])
    assert same(*ends)


@every
def test_frozen_and_scaled_gradients(backend: str) -> None:
    found = []
    for freezes in (False, True):
        ps = params()
        optimizer = Sophia(ps, backend=backend)
        optimizer.grad_scale = torch.tensor(4.0)
        with_gradients(ps, 0)
        with optimizer.frozen() if freezes else nullcontext():
            for t in range(4):
                for p, g in zip(ps, drawn(ps, t), strict=True):
                    p.grad.copy_(g)
                optimizer.step(hessian=tensors(ps, t) if t != 2 else None)
        found.append(everything(ps, optimizer))
    assert same(*found)


def test_offloaded_state() -> None:
    found = []
    for away in (False, True):
        ps = params()
        optimizer = Sophia(ps, backend="reference")
        if away:
            offload._offload(optimizer, 1 << 10)  # several batches; on a CPU it is refused
        for t in range(4):
            with_gradients(ps, t)
            optimizer.step(hessian=tensors(ps, t) if t % 2 == 0 else None)
        found.append(everything(ps, optimizer))
    assert same(*found)


@pytest.mark.gpu
def test_captured_steps_with_and_without() -> None:
    """Two graphs and eager steps in turn: each has what was passed when it was captured."""
    sides = []
    for captures in (False, True):
        p = nn.Parameter(torch.linspace(-1, 1, 4096, device="cuda"))
        optimizer = Sophia([p], lr=torch.tensor(0.01, device="cuda"))
        p.grad, hessian = torch.zeros_like(p), torch.zeros_like(p)
        calls: dict[bool, Callable[[], Any]] = {
            which: functools.partial(optimizer.step, hessian=[hessian] if which else None)
            for which in (True, False)
        }
        steps = dict(calls)
        for t, kind in enumerate([True, False, True, False, False, True, True, False, True]):
            if captures and t == 2:  # after one step of each kind
                before = [p.detach().clone(), *(x.clone() for x in optimizer.state[p].values())]
                for which, call in calls.items():
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        call()
                    steps[which] = graph.replay
                assert same(before, [p.detach(), *optimizer.state[p].values()])
            p.grad.copy_(torch.linspace(-1, 1, 4096).roll(t))
            hessian.copy_(torch.linspace(0, 2, 4096).roll(7 * t))
            (calls if t == 6 else steps)[kind]()  # one of them eagerly
        sides.append(everything([p], optimizer))
    assert same(*sides)


def test_copies_and_checkpoints_hold_none() -> None:
    """What was passed is no state: a copy goes on as the original does."""
    ps = params()
    optimizer = Sophia(ps, backend="cpu")
    with_gradients(ps, 0)
    optimizer.step(hessian=tensors(ps, 0))
    others = [nn.Parameter(p.detach().clone()) for p in ps]
    other = Sophia(others, backend="reference", seed=1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, o in ((ps, optimizer), (others, other)):
        with_gradients(mine, 1)
        o.step(hessian=tensors(mine, 3))
    assert same(everything(ps, optimizer), everything(others, other))


# ---------------------------------------------------------------- what is refused


def one(**options: Any) -> tuple[list[nn.Parameter], Any]:
    ps = [nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.ones(3))]
    for p in ps:
        p.grad = torch.ones_like(p)
    return ps, Sophia(ps, backend="reference", **options)


def ones(*changes: Any) -> list[Any]:
    made: list[Any] = [torch.ones(4, 8), torch.ones(3)]
    made[: len(changes)] = changes
    return made


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "one tensor": (torch.ones(4, 8), ValueError, "each of the 2 parameters.*got one tensor"),
    "too few": ([torch.ones(4, 8)], ValueError, "it got 1 of them"),
    "a number": (3.0, ValueError, "it got 3.0"),
    "a key": ({"weight": torch.ones(4, 8)}, ValueError, "a key 'weight'"),
    "a stranger": ({torch.ones(4, 8): torch.ones(4, 8)}, ValueError, "in no param group"),
    "none": (ones(None), ValueError, "has a gradient and no hessian"),
    "missing": ({}, ValueError, "has a gradient and no hessian"),
    "no tensor": (ones(3.0), RuntimeError, "is float: give a tensor"),
    "shape": (ones(torch.ones(8, 4)), RuntimeError, r"has shape \[8, 4\]"),
    "dtype": (ones(torch.ones(4, 8).double()), RuntimeError, "float64: give fp32 or bf16"),
    "device": (ones(torch.ones(4, 8, device="meta")), RuntimeError, "is on meta: give it on cpu"),
    "layout": (ones(torch.ones(4, 8).to_sparse()), RuntimeError, "is torch.sparse_coo"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_changed(name: str) -> None:
    given, kind, words = REFUSED[name]
    ps, optimizer = one()
    with pytest.raises(kind, match=words):
        optimizer.step(hessian=given)
    assert all((p == 1).all() for p in ps)
    assert not optimizer.state
    optimizer.step(hessian=ones())


@pytest.mark.parametrize("name", ["lost", "hessain", "gamma"])
def test_unknown_names(name: str) -> None:
    ps, optimizer = one()
    with pytest.raises(TypeError, match=f"has no extra input '{name}'.*hessian"):
        optimizer.step(**{name: ones()})
    with pytest.raises(TypeError, match="has no extra input 'loss'; its step takes a closure"):
        AdamW(ps, backend="reference").step(loss=1.0)


@pytest.mark.parametrize("value", [True, "1", torch.ones(2), torch.tensor(3), [1.0], 1j])
def test_no_numbers(value: Any) -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match="is no number: give a float"):
        built(Polyak)([p], backend="reference").step(loss=value)


@pytest.mark.parametrize("given", [{}, {"loss": None}])
def test_what_is_read_at_every_step_has_to_be_passed(given: dict[str, Any]) -> None:
    """Known before the closure runs."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = built(Polyak)([p], backend="reference")
    with pytest.raises(TypeError, match="reads 'loss' at every step, and this one was not given"):
        optimizer.step(lambda: pytest.fail("the closure ran"), **given)
    assert not optimizer.state


def test_gradient_release_is_refused() -> None:
    _, optimizer = one()
    with pytest.raises(ValueError, match="inside backward, where nobody can pass it hessian"):
        signconv.gradient_release(optimizer)


def test_a_pass_that_drops_it_says_so() -> None:
    cls = built(Divided, convert="soft:p=2")
    p = nn.Parameter(torch.ones(4))
    p.grad = torch.ones(4)
    with pytest.raises(TypeError, match="has no extra input 'hessian': soft has one beta"):
        cls([p]).step(hessian=[torch.ones(4)])
