"""Why moments are rounded stochastically: an EMA that nearest rounding stops, and what that costs.

    python examples/results/ema_stall.py [--quick]

Two builds of Smoothed SignSGD (S3GD) see a gradient of one sign for ever, so that the momentum
m = b*m + (1 - b)*sign(g) goes to 1 in exact arithmetic.  One stores m as its authors ship it, in
raw FP8 rounded to nearest; the other in FP8 with block scales, rounded stochastically.  Beside it
the training runs of both storages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from claims import Record, Summary, main, of_kind, spread, sweep_table
from plan import Scale
from runs import final_loss
from signconv.generated.s3gd import S3GD
from signconv.generated.s3gd_fp8raw_mathbf16 import S3GDFP8RAWMathBF16

from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import ops as reference_ops

BETAS = (0.9, 0.99)
BUILDS: dict[str, type[FusedOptimizer]] = {"nearest": S3GDFP8RAWMathBF16, "stochastic": S3GD}
LABELS = {
    "nearest": "nearest, raw FP8 (as shipped)",
    "stochastic": "stochastic, FP8 with block scales",
}
#: Runs of either storage: (kind of run, name).
TRAINED = (
    ("full", "s3gd-raw"),
    ("full", "s3gd"),
    ("short", "s3gd-99-raw"),
    ("short", "s3gd-99"),
)


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
        m = reference_ops.load_moment(entry["m"], entry.get("m_scale"), slot.stored)
        path.append(round(float(m.double().mean()), 6))
    return path


def stalls(quick: bool) -> Summary:
    """The momentum of both builds, 600 steps, or 40 of them."""
    steps = 40 if quick else 600
    paths = {
        f"{beta:g}": {name: momentum(cls, beta, steps) for name, cls in BUILDS.items()}
        for beta in BETAS
    }
    return {"steps": steps, "paths": paths}


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per storage and beta."""
    rows = []
    for kind, name in TRAINED:
        if own := of_kind(records, kind, name):
            rows.append(
                {
                    "optimizer": name,
                    "momentum": 0.99 if "99" in name else 0.9,
                    "tokens": own[0]["steps"] * own[0]["tokens_per_step"],
                    "lr": own[0]["lr"],
                    "held_out": spread([final_loss(r) for r in own]),
                    "update_rms": own[0]["update_rms"],
                }
            )
    sweeps = {n: sweep_table(records, "sweep", n) for n in scale.stall}
    return {"rows": rows, "sweeps": sweeps}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """One panel per beta: exact arithmetic, and what each build stores."""
    panels = figure.subplots(1, len(summary["paths"]), sharey=True)
    for axes, (beta, builds) in zip(panels, summary["paths"].items()):
        steps = range(1, summary["steps"] + 1)
        exact = [1 - float(beta) ** t for t in steps]
        axes.plot(steps, exact, color="black", lw=4, alpha=0.25, label="exact arithmetic")
        for (name, path), colour in zip(builds.items(), ("tab:red", "tab:blue")):
            axes.plot(steps, path, color=colour, lw=1.5, label=f"{LABELS[name]}: {path[-1]:.3f}")
        axes.set(title=f"b = {beta}", xlabel="step", xscale="log", ylim=(0, 1.05))
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right" if float(beta) < 0.95 else "upper left", fontsize=8)
    panels[0].set(ylabel="momentum m under sign(g) = 1")
    figure.suptitle("S3GD: nearest rounding stalls the momentum, stochastic rounding does not")


if __name__ == "__main__":
    main("ema_stall", __doc__, summarize, draw, (9, 3.6), extra=stalls)
