"""Kinds of noise of AdamW's stochastic sign, beside AdamW itself and the sign's mean.

    python examples/results/noise.py [--quick]

All on FP8 state, long runs at one lr, the best of AdamW and of its sign in earlier sweeps of long
runs; a sweep of each kind's own is not complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from claims import Record, Summary, main, of_kind, spread
from optimizers import CHOICES, rate
from plan import Scale
from runs import final_loss


def at_one_lr(
    records: Mapping[str, Record], claim: str, names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per name: held-out loss at the lr known for it, over the seeds, and at others."""
    rows = []
    for name in names:
        by_lr: dict[float, list[float]] = {}
        for r in of_kind(records, claim, name):
            by_lr.setdefault(r["lr"], []).append(final_loss(r))
        known = rate(CHOICES[name].long)
        if own := by_lr.pop(known, None):
            rows.append(
                {
                    "optimizer": name,
                    "lr": known,
                    "losses": own,
                    "held_out": spread(own),
                    "elsewhere": [[lr, spread(x)] for lr, x in sorted(by_lr.items())],
                }
            )
    return rows


def dots(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Final held-out loss of every seed, one line of marks per optimizer."""
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.plot(row["losses"], [place] * len(row["losses"]), "o", color="tab:blue", alpha=0.7)
    axes.set_yticks(range(len(rows)), [row["optimizer"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="final held-out loss (nats per byte), a mark a seed")
    axes.grid(alpha=0.25)


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per kind."""
    return {"rows": at_one_lr(records, "noise", scale.noise)}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    dots(summary["rows"], figure)


if __name__ == "__main__":
    main("noise", __doc__, summarize, draw, (8, 3))
