"""eval() and train(): another point is swapped in, and the parameters come back bit for bit."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.schedulefree_adamw import ScheduleFreeAdamW
from torch import nn

import signconv
from signconv.verification.bits import different

BACKENDS = ["reference", "cpu", "triton"]


@cache
def built(spec: str, convert: str, state: str = "fp8") -> Any:
    return signconv.compile(spec, convert=convert, state=state)


KINDS = {
    "spec": lambda: ScheduleFreeAdamW,
    "schedulefree": lambda: built("adamw", "schedulefree,stosign", "fp4"),
    "ema": lambda: built("adamw", "ema:beta=0.5,clip", "fp4"),
}
every = pytest.mark.parametrize("kind", KINDS)


def params(dtype: torch.dtype) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=rng) for s in [(7, 64), (33,), (), (5, 40)]]
    made.append(torch.randn(48, 40, generator=rng).t())
    return [nn.Parameter(p.to(dtype)) for p in made]


def train(ps: list[nn.Parameter], optimizer: Any, steps: range) -> None:
    for t in steps:
        for i, p in enumerate(ps[:-1]):  # the last never has a gradient
            rng = torch.Generator().manual_seed(100 * t + i)
            p.grad = torch.randn(p.shape, generator=rng).to(p.dtype)
        optimizer.step()


def values(ps: list[nn.Parameter]) -> list[torch.Tensor]:
    return [p.detach().clone() for p in ps]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(different(p, q) == 0 for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("options", [{}, {"master": "split"}], ids=["", "split"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@every
def test_training_goes_on_as_if_nobody_had_evaluated(
    kind: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    sides = []
    for evaluates in (False, True):
        ps = params(dtype)
        optimizer = KINDS[kind]()(ps, lr=0.1, seed=1, **options)
        for t in range(3):
            train(ps, optimizer, range(t, t + 1))
            if evaluates:
                before = values(ps)
                optimizer.eval()
                # After one step of Schedule-Free all its points are one; split weights round down
                if not (t == 0 and options and dtype == torch.bfloat16):
                    assert same(values(ps), before) == (t == 0 and kind != "ema")
                assert same(values(ps)[-1:], before[-1:])
                optimizer.eval()  # twice is once
                optimizer.train()
                assert same(values(ps), before)
                optimizer.train()
        entries = [v for p in ps for v in optimizer.state.get(p, {}).values()]
        sides.append([*values(ps), *entries])
    assert same(*sides)


def test_it_is_the_average_of_iterates() -> None:
    """Schedule-Free SGD of one number, by hand: x is the mean of all z."""
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = built("sgd", "schedulefree:beta=0.5", "fp32")([p], lr=0.5)
    z, x, y = 1.0, 1.0, 1.0
    for t, g in enumerate((1.0, -2.0, 0.25), 1):
        p.grad = torch.tensor([g])
        optimizer.step()
        z -= 0.5 * g
        x += (z - x) / t
        y = 0.5 * z + 0.5 * x
        assert p.item() == pytest.approx(y, rel=1e-6)
        optimizer.eval()
        assert p.item() == pytest.approx(x, rel=1e-6)
        optimizer.train()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("convert", [
    "ema", "lookahead:k=2", "schedulefree,stosign", "cautious,schedulefree", "clip,cautious,ema",
])  # fmt: skip
def test_every_backend_has_the_bits_of_the_reference(convert: str, backend: str) -> None:
    if backend == "reference":
        pytest.skip("the others are held to it")
    sides = []
    for b in ("reference", backend):
        ps = params(torch.bfloat16)
        optimizer = built("adamw", convert)(ps, lr=0.1, seed=1, backend=b)
        train(ps, optimizer, range(5))
        optimizer.eval()
        entries = [v for p in ps for v in optimizer.state.get(p, {}).values()]
        sides.append([*values(ps), *entries])
    assert same(*sides)


@every
def test_a_step_in_evaluation_is_refused(kind: str) -> None:
    ps = params(torch.float32)
    optimizer = KINDS[kind]()(ps, lr=0.1, seed=1)
    train(ps, optimizer, range(1))
    optimizer.eval()
    held = values(ps)
    with pytest.raises(RuntimeError, match=r"optimizer.train\(\) before training.*\[SC460\]"):
        train(ps, optimizer, range(1, 2))
    assert same(values(ps), held)
    optimizer.train()
    train(ps, optimizer, range(1, 2))


@pytest.mark.parametrize("mode", ["eval", "train"])
@every
def test_a_checkpoint_goes_on_in_its_mode(kind: str, mode: str) -> None:
    ps = params(torch.bfloat16)
    optimizer = KINDS[kind]()(ps, lr=0.1, seed=1)
    train(ps, optimizer, range(3))
    getattr(optimizer, mode)()
    model, saved = values(ps), copy.deepcopy(optimizer.state_dict())
    others = [nn.Parameter(p) for p in model]
    fresh = KINDS[kind]()(others, lr=0.1, seed=2)
    fresh.load_state_dict(saved)
    if mode == "eval":
        with pytest.raises(RuntimeError, match="SC460"):
            train(others, fresh, range(3, 4))
    for side in (optimizer, fresh):
        side.train()
    train(ps, optimizer, range(3, 5))
    train(others, fresh, range(3, 5))
    assert same(values(ps), values(others))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_in_the_same_mode(copied: Any) -> None:
    ps = params(torch.float32)
    optimizer = ScheduleFreeAdamW(ps, lr=0.1)
    train(ps, optimizer, range(2))
    held = values(ps)
    optimizer.eval()
    other = copied(optimizer)
    theirs = other.param_groups[0]["params"]
    assert same(theirs, ps)
    other.train()
    assert same(theirs, held)


def test_evaluation_weights_without_training_ones_are_refused() -> None:
    """A loader that fills what the optimizer has now, as torch.distributed.checkpoint does, leaves
    the copies of training values out."""
    ps = params(torch.float32)
    optimizer = ScheduleFreeAdamW(ps, lr=0.1)
    train(ps, optimizer, range(2))
    optimizer.eval()
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        del entry["training"]
    fresh = ScheduleFreeAdamW([nn.Parameter(p) for p in values(ps)], lr=0.1)
    fresh.load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"has not the values of training.*\[SC459\]"):
        fresh.train()


def test_others_take_the_calls_and_do_nothing() -> None:
    """Trainers call both of every optimizer that has them."""
    ps = params(torch.float32)
    optimizer = AdamW(ps)
    train(ps, optimizer, range(1))
    held = values(ps)
    optimizer.eval()
    assert same(values(ps), held)
    train(ps, optimizer, range(1, 2))
    optimizer.train()
    assert "evaluating" not in optimizer.param_groups[0]


def test_out_of_memory_swaps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from signconv.runtime import evaluation

    ps = params(torch.float32)
    optimizer = ScheduleFreeAdamW(ps, lr=0.1)
    train(ps, optimizer, range(2))
    held, swap, calls = values(ps), evaluation._swap, []

    def failing(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("made here")
        swap(*arguments)

    monkeypatch.setattr(evaluation, "_swap", failing)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.eval()
    assert same(values(ps), held)
    train(ps, optimizer, range(2, 3))


def evaluated(kind: str = "spec") -> tuple[list[nn.Parameter], Any, list[torch.Tensor]]:
    """After two steps and eval(); what the parameters were."""
    ps = params(torch.float32)
    optimizer = KINDS[kind]()(ps, lr=0.1, seed=1)
    train(ps, optimizer, range(2))
    held = values(ps)
    optimizer.eval()
    return ps, optimizer, held


def test_what_would_be_lost_is_refused() -> None:
    """What is loaded while the model is evaluated would be gone with its end."""
    ps, optimizer, held = evaluated()
    model = nn.Module()
    model.weights = nn.ParameterList(ps)
    for act in (
        lambda: optimizer.load_moments(optimizer),
        lambda: optimizer.load_master_weights(model, model.state_dict()),
        lambda: optimizer.master_weights(model),
    ):
        with pytest.raises(RuntimeError, match="SC460"):
            act()
    optimizer.train()
    assert same(values(ps), held)


def test_a_parameter_of_another_shape_leaves_everything_as_it_was() -> None:
    ps, optimizer, _ = evaluated()
    ps[1].data = torch.zeros(5)
    seen = values(ps)
    with pytest.raises(RuntimeError, match="SC418"):
        optimizer.train()
    assert same(values(ps), seen) and optimizer.param_groups[0]["evaluating"]
    with pytest.raises(RuntimeError, match="SC460"):
        optimizer.step()
    ps, optimizer, held = evaluated()
    optimizer.train()
    ps[1].data = torch.zeros(5)
    with pytest.raises(RuntimeError, match="SC418"):
        optimizer.eval()
    assert same([ps[0]], held[:1]) and not optimizer.param_groups[0]["evaluating"]


def test_what_others_keep_in_the_state_is_left_alone() -> None:
    ps, optimizer, held = evaluated()
    optimizer.train()
    optimizer.state[ps[0]]["note"] = "mine"
    optimizer.eval()
    optimizer.train()
    assert optimizer.state[ps[0]]["note"] == "mine" and same(values(ps), held)


def test_hyperparameters_are_checked() -> None:
    ps, optimizer, held = evaluated()
    optimizer.train()
    optimizer.param_groups[0]["betas"] = (0.0, 0.9)
    with pytest.raises(ValueError, match=r"0 < beta1.*\[SC407\]"):
        optimizer.eval()
    assert same(values(ps), held)


def test_a_parameter_that_left_its_group_comes_back_too() -> None:
    ps, optimizer, held = evaluated()
    del optimizer.param_groups[0]["params"][0]
    optimizer.train()
    assert same(values(ps), held)


@pytest.mark.gpu
@every
def test_on_a_gpu(kind: str) -> None:
    """Offloaded state as well."""
    for offloaded in (False, True):
        ps = [nn.Parameter(p.detach().cuda()) for p in params(torch.bfloat16)]
        optimizer = KINDS[kind]()(ps, lr=0.1, seed=1)
        if offloaded:
            signconv.offload(optimizer)
        for _ in range(2):
            for p in ps:
                p.grad = torch.ones_like(p)
            optimizer.step()
            held = values(ps)
            optimizer.eval()
            seen = values(ps)
            optimizer.train()
            assert same(values(ps), held)
        assert not same(seen, held)
