"""Every built-in spec: evaluator against an independent oracle, reference against evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from signconv.ir.evaluate import Evaluator
from signconv.pipeline import builtin_names, resolve
from signconv.verification.witnesses import SIZE, gradients, reference_row, shape_for
from tests.specs.oracles import ORACLES, adafactor, adalomo, by_hand, by_torch, draws, hessians
from tests.support.runs import OWN, Array, built, converted, keywords

STEPS, LR = 100, 7e-3
every = pytest.mark.parametrize("name", builtin_names())


def inputs(name: str = "sgd", shape: tuple[int, ...] | None = None) -> tuple[Array, list[Array]]:
    """Start and gradients; the scale differs by element, and each is zero now and then."""
    rng = np.random.default_rng(31)
    shape = shape_for(resolve(name)) if shape is None else shape
    return rng.standard_normal(SIZE).reshape(shape), gradients(rng, STEPS, shape=shape)


def evaluated(name: str, shape: tuple[int, ...] | None = None, **hypers: float) -> Array:
    """Where the float64 evaluator ends."""
    x, grads = inputs(name, shape)
    evaluator = Evaluator(resolve(name), **{"lr": LR, **ORACLES[name].hypers, **hypers})
    state = evaluator.initial_state(x)
    extras = passed(name)
    for t, (g, n) in enumerate(zip(grads, draws(STEPS, SIZE)), 1):
        x, state = evaluator.step(x, g, state, t, n.reshape(x.shape), extras=extras[t - 1])
    return x


def passed(name: str) -> list[dict[str, Array]]:
    """Extra inputs, step by step."""
    found = [{} if h is None else {"hessian": h} for h in hessians(STEPS, SIZE)]
    return found if resolve(name).extras else [{} for _ in found]


def test_every_spec_has_an_oracle() -> None:
    assert set(ORACLES) == set(builtin_names())


@every
def test_every_hyperparameter_is_off_its_default(name: str) -> None:
    hypers = {"lr": LR, **ORACLES[name].hypers}
    assert hypers.keys() == {h.name for h in resolve(name).hypers}
    assert all(
        hypers[h.name] != h.default and h.allows(hypers[h.name]) for h in resolve(name).hypers
    )


@every
def test_evaluator_follows_the_oracle(name: str) -> None:
    x, grads = inputs(name)
    wanted = ORACLES[name].run(x, grads, LR)
    assert np.median(np.abs(wanted - x)) > 1e-3
    assert np.max(np.abs(evaluated(name) - wanted)) < 1e-12


@pytest.mark.parametrize("name", ["adafactor", "adalomo", "adam_mini", "came", "sm3"])
@pytest.mark.parametrize("shape", [(SIZE,), (4, SIZE // 32, 8)], ids=["vector", "three dimensions"])
def test_other_shapes_than_matrices_are_the_papers(name: str, shape: tuple[int, ...]) -> None:
    """Of a vector each keeps a number an element, without a rule of its own: it is one row."""
    x, grads = inputs(name, shape)
    wanted = ORACLES[name].run(x, grads, LR)
    assert np.max(np.abs(evaluated(name, shape) - wanted)) < 1e-12
    cls = built(name)
    p = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    optimizer = cls([p], **keywords(cls, {"lr": LR, **ORACLES[name].hypers}))
    for g in grads:
        p.grad = torch.tensor(g, dtype=torch.float32)
        optimizer.step()
    assert np.max(np.abs(p.detach().double().numpy() - wanted)) < 1e-4


@pytest.mark.parametrize("name", ["adafactor", "adalomo"])
def test_steps_are_in_units_of_the_parameters_size(name: str) -> None:
    step = {"adafactor": adafactor, "adalomo": adalomo}[name]
    hypers = {**ORACLES[name].hypers, "eps2": 0.1}
    wanted = by_hand("", step, **hypers).run(*inputs(name), LR)
    assert np.max(np.abs(evaluated(name, eps2=0.1) - wanted)) < 1e-12


def test_adafactors_relative_step_falls_with_time() -> None:
    x, grads = inputs("adafactor")
    wanted = ORACLES["adafactor"].run(x, grads, 0.3)
    assert np.max(np.abs(evaluated("adafactor", lr=0.3) - wanted)) < 1e-11


@every
def test_oracle_notices_every_hyperparameter(name: str) -> None:
    """Each one moved by a little, and the two disagree."""
    wanted = ORACLES[name].run(*inputs(name), LR)
    for h, value in {"lr": LR, **ORACLES[name].hypers}.items():
        assert np.max(np.abs(evaluated(name, **{h: value * 0.97}) - wanted)) > 1e-6, h


@every
def test_reference_follows_the_evaluator(name: str) -> None:
    row = reference_row(converted(name), built(name))
    assert row.ok, row.detail


@pytest.mark.parametrize("name", [n for n in builtin_names() if resolve(n).link != "stosign"])
def test_reference_stays_near_the_oracle(name: str) -> None:
    """fp32 all the way: 100 steps of the built class, all hyperparameters off their defaults.

    Elements whose sign met a value near zero may be some whole steps away; they are few.
    """
    x, grads = inputs(name)
    cls = built(name)
    p = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    hypers = {"lr": LR, **ORACLES[name].hypers}
    optimizer = cls([p], backend="reference", **keywords(cls, hypers))
    for g, extras in zip(grads, passed(name), strict=True):
        p.grad = torch.tensor(g, dtype=torch.float32)
        optimizer.step(**{n: [torch.tensor(x).float()] for n, x in extras.items()})
    wanted = ORACLES[name].run(x, grads, LR)
    gap = np.abs(p.detach().double().numpy() - wanted)
    if any(r.kind == "msign" for r in cls.program.reductions):  # of products in bf16
        assert np.linalg.norm(gap) < 2**-8 * np.linalg.norm(wanted - x)
        return
    assert np.mean(gap > 2e-5) < 0.01
    assert np.max(gap) < 4 * LR


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_nesterov_is_torchs(momentum: float) -> None:
    """torch sums gradients where an EMA averages them: its lr is smaller by 1 - momentum."""
    x, grads = inputs()
    torchs = by_torch(
        lambda p, lr: torch.optim.SGD(p, lr, momentum, nesterov=momentum > 0), 0.0
    ).run(x, grads, LR * (1 - momentum))
    program = converted(OWN + "MomentumFromZero", "nesterov")
    evaluator = Evaluator(program, lr=LR, momentum=momentum, weight_decay=0.0)
    ours, state = x, evaluator.initial_state(x)
    for t, g in enumerate(grads, 1):
        ours, state = evaluator.step(ours, g, state, t)
    assert np.max(np.abs(ours - torchs)) < 1e-12
