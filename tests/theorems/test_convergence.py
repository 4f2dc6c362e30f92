"""C5 and C6: StoSignSGD converges where SignSGD stalls, and at the rate O(1/sqrt(T))."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from signconv.ir.evaluate import Evaluator
from tests.support.runs import OWN, built, converted, keywords

T = 10_000
SEEDS = 100


def objective(x: torch.Tensor) -> torch.Tensor:
    """|x1 + x2| + 2|x1 - x2| of every row."""
    x = x.double()
    return (x[:, 0] + x[:, 1]).abs() + 2 * (x[:, 0] - x[:, 1]).abs()


def subgradient(x: torch.Tensor) -> torch.Tensor:
    """Its oracle, s(0) = +1: sign(g) is (s2, -s2), so SignSGD keeps x1 + x2 for ever."""
    s1, s2 = (torch.where(z >= 0, 1.0, -1.0) for z in (x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]))
    return torch.stack([s1 + 2 * s2, s1 - 2 * s2], dim=1)


def descend(name: str, convert: str | None = None, steps: int = T, **hypers: float):
    """f at every step, and of the average point, of each row from (1.0, 0.3); lr = 0.5/sqrt(t).

    Rows draw independently, so they are as many seeds.
    """
    cls = built(name, convert, "fp32")
    x = torch.tensor([[1.0, 0.3]]).repeat(SEEDS, 1).requires_grad_()
    optimizer = cls([x], backend="reference", seed=1, **keywords(cls, hypers))
    total = torch.zeros(SEEDS, 2, dtype=torch.float64)
    lowest = torch.full((SEEDS,), torch.inf, dtype=torch.float64)
    for t in range(1, steps + 1):
        total += x.detach()
        optimizer.param_groups[0]["lr"] = 0.5 / t**0.5
        x.grad = subgradient(x.detach())
        optimizer.step()
        lowest = torch.minimum(lowest, objective(x.detach()))
    return lowest, objective(x.detach()), objective(total / steps)


def test_signsgd_stalls() -> None:
    """Above 1.29 everywhere, as |x1 + x2| = 1.3 never changes; all rows are the same."""
    lowest, last, average = descend("signsgd", steps=5000)
    assert lowest.min() > 1.29 and average.min() > 1.29
    assert last.min() < 1.34
    assert last.unique().numel() == 1


@pytest.mark.parametrize("kind", ["antithetic", "golden"])
def test_other_kinds_of_noise_converge_too(kind: str) -> None:
    """Every seed, although the martingale argument is for fresh noise."""
    _, last, average = descend("sgd", f"stosign:noise={kind}", steps=5000, momentum=0.0)
    assert average.max() < 0.05 and average.mean() < 0.01
    assert last.max() < 0.1


def test_stosignsgd_converges() -> None:
    """Every seed; SignSGD's point is 25 times as far."""
    _, last, average = descend("stosignsgd", momentum=0.0, beta2=1.0)
    assert average.max() < 0.05
    assert average.mean() < 0.006
    assert last.max() < 0.1
    assert average.unique().numel() > 90


@pytest.mark.parametrize(
    ("name", "convert", "hypers"),
    [
        ("stosignsgd", None, {"momentum": 0.0, "beta2": 0.999}),
        ("stosignsgd", None, {"momentum": 0.0}),
        ("sgd", "expected", {"momentum": 0.0}),
        ("signum", None, {"momentum": 0.9}),
    ],
)
def test_what_else_converges(name: str, convert: str | None, hypers: dict) -> None:
    """StoSignSGDv2 as read, the mean update, and momentum (here it cures SignSGD as well)."""
    _, _, average = descend(name, convert, 2000, **hypers)
    assert average.max() < 0.05


# ---------------------------------------------------------------- C6

D, DIMENSION = 2.0, 10
HORIZONS = 2 ** np.arange(6, 15)


@pytest.fixture(scope="module")
def regret() -> np.ndarray:
    """(1/T) sum of E f(x_t) - f*, at every horizon: 100 runs of online StoSignSGD on a box.

    f = sum of max(x_i - c_i, -3(x_i - c_i)), so f* = 0 and |g_i| <= 3.
    """
    rng = np.random.default_rng(12)
    c = np.tile(rng.uniform(-0.5, 0.5, DIMENSION), SEEDS)
    x = np.ones(DIMENSION * SEEDS)
    # The theorem is of a G that never forgets
    evaluator = Evaluator(converted(OWN + "PlainSGD", "stosign"), weight_decay=0.0, beta2=1.0)
    state = evaluator.initial_state(x)
    values = np.empty(HORIZONS[-1])
    for t in range(1, HORIZONS[-1] + 1):
        values[t - 1] = np.maximum(x - c, -3 * (x - c)).sum() / SEEDS
        evaluator.hypers["lr"] = D / (2 * t) ** 0.5
        g = np.where(x >= c, 1.0, -3.0)
        x, state = evaluator.step(x, g, state, t, rng.uniform(-1, 1, x.size))
        x = np.clip(x, -1, 1)
    return np.cumsum(values)[HORIZONS - 1] / HORIZONS


def test_rate_bound(regret: np.ndarray) -> None:
    """sqrt(2)*D*||L||_1/sqrt(T) at every T, with room to spare but not for any bound at all."""
    ratio = regret / (2**0.5 * D * 3 * DIMENSION / HORIZONS**0.5)
    assert (ratio <= 0.55).all()
    assert (ratio > 0.2).all()


def test_rate_slope(regret: np.ndarray) -> None:
    slope = np.polyfit(np.log(HORIZONS), np.log(regret), 1)[0]
    assert -0.55 <= slope <= -0.38
