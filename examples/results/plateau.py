"""Kinds of noise on the first plateau of a badly scaled initialization.

    python examples/results/plateau.py [--quick]

One layer of width 64 whose weights start six times smaller than their fan-in asks for (0.02 for
1/sqrt(64)); trained on a CPU, at four lrs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claims import Record, Summary, main
from noise import at_one_lr
from plan import Scale


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per kind."""
    return {"rows": at_one_lr(records, "plateau", scale.plateau)}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Final held-out loss against lr, a line per kind."""
    axes = figure.subplots()
    for row in summary["rows"]:
        points = sorted([*row["elsewhere"], [row["lr"], row["held_out"]]], key=lambda x: x[0])
        lrs, spreads = zip(*points, strict=True)
        means = [s["mean"] for s in spreads]
        axes.errorbar(lrs, means, [s["half_range"] for s in spreads], label=row["optimizer"])
    axes.set(xscale="log", xlabel="learning rate", ylabel="final held-out loss (nats per byte)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)


if __name__ == "__main__":
    main("plateau", __doc__, summarize, draw, (8, 4))
