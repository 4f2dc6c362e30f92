"""Sums over many tensors: the same bits on every backend, right on all tensors together, and states
that all parameters of a group share."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from signconv.generated.dadapt_adam import DAdaptAdam
from signconv.generated.prodigy import Prodigy
from torch import Tensor, nn

import signconv
from signconv.dsl import (
    Optimizer,
    abs,
    ema,
    grad,
    hyper,
    mean,
    norm,
    numel,
    param,
    sqrt,
    state,
    sum,
    where,
)
from signconv.ir.evaluate import Evaluator
from signconv.pipeline import resolve
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different

SHAPES = [(8, 64), (5, 33), (40,), (), (40, 64)]
every = pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])


class Trust(Optimizer):
    """One round before the step, beside a reduction over each tensor."""

    lr = hyper(1e-2, ge=0)
    m = ema(grad, 0.9)
    size = norm(m, over="all")
    trust = where(size > 0, norm(param, over="all") / size, 1)
    update = trust * m / (1 + norm(m))


class Spread(Optimizer):
    """Two rounds before the step, of which the second reads the first, and one sum on the way."""

    lr = hyper(1e-2, ge=0)
    m = ema(grad, 0.9)
    middle = mean(m, over="group")
    spread = mean((m - middle) ** 2, over="group")
    level = state(1.0)
    level.next = 0.9 * level.prev + 0.1 * sqrt(spread)
    past = state(0)
    past.next = 0.5 * past.prev + mean(abs(param) * norm(grad) + mean(grad, axis=-1), over="group")
    count = state(0)
    count.next = count.prev + 1
    total = state(0)
    total.next = sum(count * grad**2, over="group")
    update = m / (level + 0.1) + 0.01 * past.prev / (1 + total.prev)


class Own(Optimizer):
    """Sums of what each tensor has of its own: its shape, and states of a number or a row."""

    lr = hyper(1e-2, ge=0)
    level = state(0)
    level.next = 0.9 * level.prev + mean(grad)
    seen = state(0)
    seen.next = 0.5 * seen.prev + mean(level * grad, over="all")
    row = ema(mean(abs(grad), axis=-1), 0.9)
    summed = state(0)
    summed.next = sum(row * abs(grad) / numel, over="all")
    update = grad + seen.prev + 0.1 * summed.prev * row + sum(grad / numel, over="all")


class Named(Optimizer):
    """Reductions over dimensions that a sum over all tensors reads by their names."""

    lr = hyper(1e-2, ge=0)
    row = mean(grad**2, axis=-1)
    column = norm(grad, axis=0)
    size = mean(row, over="all")
    kept = state(0)
    kept.next = mean(column * abs(grad), over="all")
    update = grad / sqrt(size + 1e-3) + kept.prev * grad


class Grown(Optimizer):
    """A state of the norm of all gradients alone."""

    lr = hyper(1e-3, ge=0)
    size = state(0)
    size.next = size.prev + norm(grad, over="all")
    update = size.prev * grad


@cache
def compiled(spec: type[Optimizer], stored: str = "fp8") -> type[FusedOptimizer]:
    return signconv.compile(spec, state=stored)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in SHAPES]


def gradients(params: list[Any], t: int, without: int | None = None) -> None:
    """What pulls parameters towards 0, with noise."""
    rng = torch.Generator().manual_seed(10 + t)
    for i, p in enumerate(params):
        noise = 0.1 * torch.randn(p.shape, generator=rng)
        p.grad = None if i == without else (noise + p.detach().float()).to(p.dtype)


def run(optimizer: FusedOptimizer, params: list[Any], steps: range) -> None:
    """One parameter has no gradient in step 2."""
    for t in steps:
        gradients(params, t, 1 if t == 2 else None)
        optimizer.step()


def everything(optimizer: FusedOptimizer, params: list[Any]) -> list[Tensor]:
    return [x for p in params for x in (p.detach(), *optimizer.state[p].values())]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(different(x, y) == 0 for x, y in zip(a, b, strict=True))


def made(spec: Any, backend: str, dtype: torch.dtype, **options: Any) -> Any:
    params = parameters(dtype)
    cls = spec if issubclass(spec, FusedOptimizer) else compiled(spec)
    lr = 1.0 if spec in (Prodigy, DAdaptAdam) else 1e-2
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": lr / 2}]
    return params, cls(groups, lr=lr, backend=backend, seed=3, **options)


SPECS = (Prodigy, DAdaptAdam, Trust, Spread, Own, Named)
#: Each with one of the two, the rest in `make test-long`.
PAIRS = [
    pytest.param(spec, dtype, id=f"{spec.__name__}-{name}", marks=[pytest.mark.long] * (i % 2 != j))
    for i, spec in enumerate(SPECS)
    for j, (name, dtype) in enumerate((("bf16", torch.bfloat16), ("fp32", torch.float32)))
]


@pytest.mark.parametrize(("spec", "dtype"), PAIRS)
def test_every_backend_has_the_same_bits(spec: Any, dtype: torch.dtype) -> None:
    options = {"master": "split"} if dtype == torch.bfloat16 else {}
    params, optimizer = made(spec, "reference", dtype, **options)
    run(optimizer, params, range(4))
    wanted = everything(optimizer, params)
    assert any(x.dtype == torch.float64 for x in wanted) == bool(optimizer.program.scalar_states)
    for backend in ("cpu", "triton"):
        params, optimizer = made(spec, backend, dtype, **options)
        run(optimizer, params, range(4))
        assert same(everything(optimizer, params), wanted), backend


@every
@pytest.mark.parametrize("spec", ["prodigy", "dadapt_adam"])
def test_all_tensors_together_are_one_long_one(spec: str, backend: str) -> None:
    """The evaluator on what they are next to each other, in float64."""
    program = resolve(spec)
    hypers = {"lr": 1.0, "d0": 1e-3, "beta2": 0.9}
    evaluator = Evaluator(program, **hypers)
    params = parameters()
    cls = {"prodigy": Prodigy, "dadapt_adam": DAdaptAdam}[spec]
    optimizer = signconv.compile(spec, state="fp32")(
        params, lr=1.0, d0=1e-3, betas=(0.9, 0.9), backend=backend
    )
    assert cls.program.totals == optimizer.program.totals or cls.program.storage != "fp32"

    def flat(tensors: list[Tensor]) -> Any:
        return np.concatenate([x.detach().double().reshape(-1).numpy() for x in tensors])

    x = flat([p.data for p in params])
    memory = evaluator.initial_state(x)
    for t in range(1, 11):
        gradients(params, t)
        grads = flat([p.grad for p in params])  # type: ignore[misc]
        x, memory = evaluator.step(x, grads, memory, t)
        optimizer.step()
    d = float(memory["d"].reshape(-1)[0])
    assert d > 2e-3  # it grew
    for p in params:
        assert math.isclose(float(optimizer.state[p]["d"]), d, rel_tol=1e-5)
    assert np.max(np.abs(flat([p.data for p in params]) - x)) < 1e-5


@pytest.mark.parametrize("spec", [Trust, Spread, Own, Named, Grown], ids=lambda s: s.__name__)
def test_of_one_tensor_the_sums_are_its_own(spec: type[Optimizer]) -> None:
    evaluator = Evaluator(spec.program)
    p = nn.Parameter(torch.randn(6, 33, generator=torch.Generator().manual_seed(1)))
    optimizer = compiled(spec, "fp32")([p], backend="reference")
    x = p.detach().double().numpy().copy()
    memory = evaluator.initial_state(x)
    for t in range(1, 6):
        gradients([p], t)
        assert p.grad is not None
        x, memory = evaluator.step(x, p.grad.double().numpy(), memory, t)
        optimizer.step()
    assert np.max(np.abs(p.detach().double().numpy() - x)) < 1e-5
    for name, _ in optimizer.program.scalar_states:
        number = float(memory[name].reshape(-1)[0])
        assert math.isclose(float(optimizer.state[p][name]), number, rel_tol=1e-5), name


def test_a_state_of_the_norm_alone_is_shared_too() -> None:
    params = parameters()
    optimizer = compiled(Grown)(params, backend="reference")
    run(optimizer, params, range(1, 4))
    assert len({float(optimizer.state[p]["size"]) for p in params}) == 1


@every
def test_a_group_has_one_of_what_it_shares(backend: str) -> None:
    """Whoever has no gradient, or comes later, has it too; t is each one's own."""
    params = parameters()
    optimizer = Prodigy(params, lr=1.0, d0=1e-2, backend=backend)
    for t in range(6):
        gradients(params, t, 1 if t == 3 else None)
        if t < 4:
            params[0].grad = None
        optimizer.step()
        shared = [optimizer.state[p]["d"] for p in params if p in optimizer.state]
        assert len({float(x) for x in shared}) == 1
        assert len(shared) == (4 if t < 4 else 5)
    assert [int(optimizer.state[p]["step"]) for p in params] == [2, 5, 6, 6, 6]
    assert float(optimizer.state[params[0]]["d"]) > 1e-2


@every
def test_a_group_that_comes_later_has_the_distance_of_the_others(backend: str) -> None:
    """Whether it is added later or has no gradients at first."""
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[2:3]}]
    optimizer = Prodigy(groups, lr=1.0, d0=1e-2, backend=backend)
    for t in range(6):
        if t == 3:
            optimizer.add_param_group({"params": params[3:]})
        gradients(params, t, 2 if t < 4 else None)
        optimizer.step()
        found = [float(optimizer.state[p]["d"]) for p in params if "d" in optimizer.state[p]]
        assert len({*found}) == 1
        assert len(found) == (2 if t < 3 else 4 if t < 4 else 5)
    assert found[0] > 1e-2


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_devices_skip_a_step_together(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over two devices, one of which has an Inf, is no sum: as if both were one."""

    def halves(params: list[Tensor]) -> dict[torch.device, list[Tensor]]:
        return {torch.device("cpu"): params[:2], torch.device("cpu", 0): params[2:]}

    monkeypatch.setattr("signconv.runtime.optimizer.by_device", halves)
    params = parameters()
    optimizer = Prodigy(params, lr=1.0, d0=1e-2, backend=backend, skip_nonfinite=True)
    for t in range(5):
        gradients(params, t)
        if t == 2:
            assert params[0].grad is not None
            params[0].grad[0, 0] = torch.inf
            before = copy.deepcopy(everything(optimizer, params))
        optimizer.step()
        if t == 2:
            assert same(everything(optimizer, params), before)
    assert len({float(optimizer.state[p]["d"]) for p in params}) == 1
    assert [int(optimizer.state[p]["step"]) for p in params] == [4] * 5


def test_groups_are_summed_apart_where_the_spec_says_so() -> None:
    params, optimizer = made(Spread, "reference", torch.float32)
    run(optimizer, params, range(3))
    alone = parameters()[:2]
    other = compiled(Spread)(alone, lr=1e-2, backend="reference", seed=3)
    run(other, [*alone, *parameters()[2:]], range(3))
    assert same(everything(optimizer, params[:2]), everything(other, alone))
    levels = {float(optimizer.state[p]["level"]) for p in params}
    assert len(levels) == 2


@every
def test_a_skipped_step_moves_nothing(backend: str) -> None:
    params = parameters()
    optimizer = Prodigy(params, lr=1.0, d0=1e-2, backend=backend, skip_nonfinite=True)
    gradients(params, 0)
    optimizer.step()
    before = copy.deepcopy(everything(optimizer, params))
    gradients(params, 1)
    assert params[0].grad is not None
    params[0].grad[0, 0] = torch.inf
    optimizer.step()
    assert same(everything(optimizer, params), before)
    gradients(params, 1)
    optimizer.step()
    assert not same(everything(optimizer, params), before)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.long)])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(backend: str) -> None:
    params, optimizer = made(Spread, backend, torch.float32)
    run(optimizer, params, range(2))
    others, second = made(Spread, backend, torch.float32)
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for x, mine in ((optimizer, params), (second, others)):
        run(x, mine, range(2, 5))
    assert same(everything(optimizer, params), everything(second, others))


@every
def test_scaled_gradients_are_summed_unscaled(backend: str) -> None:
    """What GradScaler does by hand: a power of two that is divided out."""
    params, optimizer = made(Trust, backend, torch.float32)
    others, scaled = made(Trust, backend, torch.float32)
    scaled.grad_scale = torch.tensor(1024.0)  # type: ignore[attr-defined]
    for t in range(3):
        gradients(params, t)
        gradients(others, t)
        for q in others:
            q.grad *= 1024.0
        optimizer.step()
        scaled.step()
    assert same(everything(optimizer, params), everything(scaled, others))


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [Prodigy, DAdaptAdam, Trust, Spread], ids=lambda s: s.__name__)
def test_captured_steps_are_the_references(spec: Any) -> None:
    """Passes, sums and what follows from them are launches that a CUDA graph holds."""
    host, wanted = made(spec, "reference", torch.bfloat16)
    params = [nn.Parameter(p.detach().cuda()) for p in host]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    for ours, theirs in zip(groups, wanted.param_groups, strict=True):
        ours["lr"] = theirs["lr"]
    optimizer = type(wanted)(groups, seed=3)
    for p in params:
        p.grad = torch.zeros_like(p)

    def fill(t: int) -> None:
        gradients(host, t)
        for p, q in zip(params, host, strict=True):
            p.grad.copy_(q.grad)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for t in range(2):
            fill(t)
            optimizer.step()
            wanted.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for t in range(2, 5):
        fill(t)
        graph.replay()
        wanted.step()
    found = [x.cpu() for x in everything(optimizer, params)]
    assert same(found, everything(wanted, host))
