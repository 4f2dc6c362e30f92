"""StoSignSGD converges where SignSGD does not, and at the rate O(1/sqrt(T)).

    python examples/results/converge.py [--quick]

f(x) = |x1 + x2| + 2 |x1 - x2| with the oracle s(z) = 1 if z >= 0 else -1: both signs of the
gradient come from x1 - x2, so that SignSGD keeps x1 + x2 for ever.  The rate is measured on
sum_i max(x_i - c_i, -3 (x_i - c_i)) in the box [-1, 1]^10, with lr = D / sqrt(2 t).  The source:
arXiv 2604.15416, Theorem 4.  Every seed is one row of the parameter; steps are the generated
optimizers' own, fp32 state, no momentum.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from claims import Summary, picture, write
from gpu_all import environment
from records import RESULTS
from torch import Tensor

SEEDS = 100
START = (1.0, 0.3)
OPTIMIZERS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "signsgd": ("signsgd", None, {}),
    "stosignsgd": ("stosignsgd", None, {"momentum": 0.0, "beta2": 1.0}),
    "sgd-expected": ("sgd", "expected", {"momentum": 0.0, "beta2": 1.0}),
    "signum": ("signum", None, {"momentum": 0.9}),
}
DRAWN_STEPS = 300  # of the trajectories
DRAWN_SEEDS = 5
D, DIMENSION, SLOPE = 2.0, 10, 3.0  # the box's width, and the second problem
BOUND = math.sqrt(2) * D * DIMENSION * SLOPE  # times 1/sqrt(T): sqrt(2) * D * ||L||_1


def _make(name: str, x: Tensor) -> torch.optim.Optimizer:
    import signconv

    spec, convert, hypers = OPTIMIZERS[name]
    cls = signconv.compile(spec, convert=convert, state="fp32")
    arguments: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0, "seed": 7, **hypers}
    return cls([x], **arguments)


# ---------------------------------------------------------------- the two problems


def value(x: Tensor) -> Tensor:
    """f of (n, 2) points."""
    return (x[:, 0] + x[:, 1]).abs() + 2 * (x[:, 0] - x[:, 1]).abs()


def oracle(x: Tensor) -> Tensor:
    """A subgradient of f, never 0."""
    first = torch.where(x[:, 0] + x[:, 1] >= 0, 1.0, -1.0)
    second = torch.where(x[:, 0] - x[:, 1] >= 0, 2.0, -2.0)
    return torch.stack((first + second, first - second), 1)


def descend(
    x: Tensor,
    name: str,
    gradient: Callable[[Tensor], Tensor],
    lr: Callable[[int], float],
    steps: int,
    look: Callable[[int, Tensor], None],
    box: float | None = None,
) -> None:
    """Step ``x``; look(t, x_t) is called before step t, for t = 1 … steps + 1."""
    optimizer = _make(name, x)
    for t in range(1, steps + 1):
        look(t, x.detach())
        x.grad = gradient(x.detach())
        optimizer.param_groups[0]["lr"] = lr(t)
        optimizer.step()
        if box is not None:
            x.data.clamp_(-box, box)
    look(steps + 1, x.detach())


def valley(name: str, steps: int) -> dict[str, Any]:
    """f at the end, at the average point, and its least value on the path, over the seeds."""
    x = torch.tensor(START).repeat(SEEDS, 1).requires_grad_()
    total = torch.zeros(SEEDS, 2, dtype=torch.float64)
    least = torch.full((SEEDS,), math.inf)
    paths: list[list[list[float]]] = []

    def look(t: int, x: Tensor) -> None:
        nonlocal total, least
        if t <= steps:
            total += x
        least = torch.minimum(least, value(x))
        if t <= DRAWN_STEPS:
            paths.append([[round(float(v), 4) for v in row] for row in x[:DRAWN_SEEDS]])

    descend(x, name, oracle, lambda t: 0.5 / math.sqrt(t), steps, look)
    end, average = value(x.detach()), value(total / steps)
    return {
        "end": _over_seeds(end),
        "average": _over_seeds(average),
        "least": round(float(least.min()), 4),
        "paths": [[step[i] for step in paths] for i in range(DRAWN_SEEDS)],
    }


def _over_seeds(values: Tensor) -> dict[str, float]:
    return {
        "mean": round(float(values.double().mean()), 5),
        "min": round(float(values.min()), 5),
        "max": round(float(values.max()), 5),
    }


def rate(octaves: range) -> dict[str, Any]:
    """Mean regret / T and f(average) - f* of StoSignSGD at T = 2^k, beside the bound."""
    c = torch.rand(DIMENSION, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5
    x = torch.ones(SEEDS, DIMENSION).requires_grad_()
    total = torch.zeros(SEEDS, DIMENSION, dtype=torch.float64)
    regret = torch.zeros(SEEDS, dtype=torch.float64)
    rows = []

    def f(x: Tensor) -> Tensor:
        return torch.maximum(x - c, -SLOPE * (x - c)).sum(1)

    def look(t: int, x: Tensor) -> None:
        nonlocal total, regret
        done = t - 1
        if done in {2**k for k in octaves}:
            rows.append(
                {
                    "steps": done,
                    "regret": float((regret / done).mean()),
                    "average": float(f(total / done).mean()),
                    "bound": BOUND / math.sqrt(done),
                }
            )
        total += x
        regret += f(x.double())

    def gradient(x: Tensor) -> Tensor:
        return torch.where(x >= c, 1.0, -SLOPE)

    descend(
        x, "stosignsgd", gradient, lambda t: D / math.sqrt(2 * t), 2 ** octaves[-1], look, box=1.0
    )
    steps = [math.log(r["steps"]) for r in rows]
    slopes = {
        k: statistics.linear_regression(steps, [math.log(r[k]) for r in rows]).slope
        for k in ("regret", "average")
    }
    return {
        "rows": [{k: round(v, 6) for k, v in r.items()} for r in rows],
        "slopes": {k: round(v, 3) for k, v in slopes.items()},
        "largest_share_of_bound": round(max(r["regret"] / r["bound"] for r in rows), 3),
    }


# ---------------------------------------------------------------- the claim


def summarize(quick: bool) -> Summary:
    """Both experiments; --quick takes a tenth of the steps."""
    steps, octaves = (1_000, range(6, 12)) if quick else (10_000, range(6, 15))
    return {
        "seeds": SEEDS,
        "steps": steps,
        "rows": {name: valley(name, steps) for name in OPTIMIZERS},
        "rate": rate(octaves),
    }


def draw(summary: Summary, figure: Any) -> None:
    """Left trajectories over the level lines of f, right the rate."""
    left, right = figure.subplots(1, 2)
    grid = torch.linspace(-1.0, 1.5, 200)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    levels = value(torch.stack((x.flatten(), y.flatten()), 1)).view(200, 200)
    left.contour(grid, grid, levels, levels=12, colors="0.8", linewidths=0.7)
    for name, colour in (("stosignsgd", "tab:blue"), ("signsgd", "tab:red")):
        for i, path in enumerate(summary["rows"][name]["paths"]):
            label = f"{name}: f ends at {summary['rows'][name]['end']['mean']:.3f} (mean)"
            left.plot(*zip(*path), color=colour, lw=0.8, label=label if i == 0 else None)
    left.plot(0, 0, "k*", ms=10, label="minimum")
    left.set(xlabel="x1", ylabel="x2", title=f"the first {DRAWN_STEPS} steps")
    steps = [r["steps"] for r in summary["rate"]["rows"]]
    for key, label in (
        ("bound", "bound of Theorem 4"),
        ("regret", "mean of f - f* over the steps"),
        ("average", "f(average) - f*"),
    ):
        slope = summary["rate"]["slopes"].get(key, -0.5)
        ys = [r[key] for r in summary["rate"]["rows"]]
        right.plot(steps, ys, marker="o", ms=3, label=f"{label}: slope {slope:.2f}")
    right.set(xscale="log", yscale="log", xlabel="steps T", title="StoSignSGD, 10 dimensions")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)


def main() -> None:
    """Command line; no GPU and no text is needed."""
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON and the PNG")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.out or (Path("build/results") if given.quick else RESULTS)
    summary = summarize(given.quick)
    write("converge", out, environment(), summary)
    picture(out / "converge.png", lambda figure: draw(summary, figure), (11, 4.5))
    print(f"written: {out / 'converge'}.json and .png")


if __name__ == "__main__":
    main()
