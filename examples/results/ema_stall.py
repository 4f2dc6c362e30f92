"""Why moments are rounded stochastically: an EMA that nearest rounding stops, drawn.

Two builds of Smoothed SignSGD (S3GD) see a gradient of one sign for ever, so that the momentum
m = b*m + (1 - b)*sign(g) goes to 1 in exact arithmetic.  One stores m as its authors ship it, in
raw FP8 rounded to nearest; the other in FP8 with block scales, rounded stochastically.

    python examples/ema_stall.py [--steps 600 | --quick] [--out docs/ema_stall.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from signconv.generated.s3gd import S3GD
from signconv.generated.s3gd_fp8raw_mathbf16 import S3GDFP8RAWMathBF16

from signconv.runtime import torch_ops
from signconv.runtime.optimizer import FusedOptimizer

BETAS = (0.9, 0.99)
BUILDS: dict[str, type[FusedOptimizer]] = {
    "nearest, raw FP8 (as shipped)": S3GDFP8RAWMathBF16,
    "stochastic, FP8 with block scales": S3GD,
}


def momentum(cls: type[FusedOptimizer], beta: float, steps: int) -> list[float]:
    """The stored momentum after every step, the mean over 2,048 elements."""
    p = torch.zeros(64, 32, requires_grad=True)
    optimizer = cls([p], lr=0.0, momentum=beta, backend="reference")  # type: ignore[call-arg]
    p.grad = torch.ones_like(p)
    (slot,) = cls.program.moments
    path = []
    for _ in range(steps):
        optimizer.step()
        entry = optimizer.state[p]
        m = torch_ops.load_moment(entry["m"], entry.get("m_scale"), slot.format_for(True))
        path.append(float(m.double().mean()))
    return path


def draw(paths: dict[float, dict[str, list[float]]], out: Path) -> None:
    """One panel per beta: exact arithmetic, and what each build stores."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(paths), sharey=True)
    for axes, (beta, builds) in zip(panels, paths.items()):
        steps = range(1, len(next(iter(builds.values()))) + 1)
        exact = [1 - beta**t for t in steps]
        axes.plot(steps, exact, color="black", lw=4, alpha=0.25, label="exact arithmetic")
        for (label, path), colour in zip(builds.items(), ("tab:red", "tab:blue")):
            axes.plot(steps, path, color=colour, lw=1.5, label=f"{label}: {path[-1]:.3f}")
        axes.set(title=f"b = {beta:g}", xlabel="step", xscale="log", ylim=(0, 1.05))
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right" if beta < 0.95 else "upper left", fontsize=8)
    panels[0].set(ylabel="momentum m under sign(g) = 1")
    figure.suptitle("S3GD: nearest rounding stalls the momentum, stochastic rounding does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def main() -> None:
    """Run both builds, print where they end, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--quick", action="store_true", help="40 steps: seconds, for the tests")
    parser.add_argument("--out", type=Path, default=Path("docs/ema_stall.png"))
    arguments = parser.parse_args()
    steps = 40 if arguments.quick else arguments.steps
    paths = {
        beta: {name: momentum(cls, beta, steps) for name, cls in BUILDS.items()} for beta in BETAS
    }
    for beta, builds in paths.items():
        print(f"b = {beta:g}, step {steps}: exact {1 - beta**steps:.4f}")
        for name, path in builds.items():
            print(f"    {name}: {path[-1]:.4f}")
    draw(paths, arguments.out)
    print(f"drawn: {arguments.out}")


if __name__ == "__main__":
    main()
