"""S3 against clipped AdamW, NAdam, Adan and Lion, and loss spikes at 1, 3 and 10 times the lr.

    python examples/results/papers_s3.py [--quick]

The source: S3 matches AdamW's loss in half of the steps and has no spikes at 10 times the lr
(arXiv 2507.06464, Table II, Figures 10 and 11).  Baselines are clipped at 1, S3 is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import papers
from claims import Record, Summary, main
from optimizers import rate
from papers_speed import finish, speedups
from plan import Scale
from runs import final_loss
from verdicts import (
    CONDITION,
    NOT_RUN,
    OPEN,
    REFUTED,
    REPRODUCED,
    UNTESTABLE,
    Verdict,
    by_lr,
    faster,
    line,
    row,
)

LEAST = 1.8  # of "2 times the steps", for a measured factor
OURSELVES = "s3-ours"
BASELINES = ("adamw-ours", "nadam-ours", "adan-ours", "lion-ours")
BESIDE = ("adamw-expected-ours",)
FACTORS = (0, 1, 2)  # places of the grid above the best lr: 1, 3 and 10 times it


def spikes(records: Mapping[str, Record], found: Summary) -> list[Summary]:
    """Spikes and final loss at multiples of an arm's best lr."""
    runs = by_lr(records, found["arm"])
    grid = [rate(i) for i in range(-30, 10)]
    made = []
    for factor in FACTORS:
        own = runs.get(grid[grid.index(found["lr"]) + factor], [])
        losses = [final_loss(r) for r in own]
        made.append(
            {
                "times": (1, 3, 10)[factor],
                "spikes": [r["spikes"] for r in own],
                "loss": [round(x, 4) if math.isfinite(x) else None for x in losses],
            }
        )
    return made


def of_spikes(rows: Mapping[str, Summary | None]) -> Verdict:
    """The verdict on "no spikes at 10 times the lr, where clipped AdamW has them"."""
    ours, theirs = rows[OURSELVES], rows["adamw-ours"]
    if ours is None or theirs is None:
        return NOT_RUN, ""
    if not ours["multiples"][-1]["spikes"] or not theirs["multiples"][-1]["spikes"]:
        return OPEN, "not yet run at 10 times the best lr"
    own, other = (sum(r["multiples"][-1]["spikes"]) for r in (ours, theirs))
    if own == 0 and other > 0:
        return REPRODUCED, f"none, clipped AdamW has {other}"
    if own == 0:
        return UNTESTABLE, "clipped AdamW has none at 10 times its best lr either"
    return REFUTED, f"S3 has {own} at 10 times its best lr, clipped AdamW {other}"


def of_updates(rows: Mapping[str, Summary | None]) -> Verdict:
    """The verdict on their Figure 10: fewer spikes where updates are clipped to ±1, but not none.

    Spikes at 1, 3 and 10 times each one's best lr, seed 1, which every place has.
    """
    counts = []
    for n in ("adamw-ours", BESIDE[0]):
        found = rows[n]
        if found is None:
            return NOT_RUN, ""
        if not all(m["spikes"] for m in found["multiples"]):
            return OPEN, "not yet run at 3 and 10 times the best lr"
        counts.append(sum(m["spikes"][0] for m in found["multiples"]))
    plain, clipped = counts
    if plain == 0:
        return UNTESTABLE, "AdamW has none at 1, 3 and 10 times its best lr"
    if clipped >= plain:
        return REFUTED, f"{clipped} against {plain}"
    if clipped == 0:
        return CONDITION, f"none are left of {plain}"
    return REPRODUCED, f"{clipped} against {plain}"


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per arm."""
    part: papers.Part = scale.papers
    names = (OURSELVES, *BASELINES, *BESIDE)
    rows = {n: row(records, n, part) for n in names}
    for found in rows.values():
        if found is not None:
            found["multiples"] = spikes(records, found)
    factors = speedups(records, {n: rows[n] for n in (OURSELVES, *BASELINES)})
    decided = {n: rows[n] for n in (OURSELVES, "adamw-ours")}
    sooner = faster(decided, {k: v for k, v in factors.items() if k in decided}, LEAST)
    if rows[OURSELVES] is None:
        sooner = NOT_RUN, ""
    return {
        "rows": [r for r in rows.values() if r is not None],
        "factors": factors,
        "verdicts": [
            line(
                "S3 reaches AdamW's loss in half of the steps (arXiv 2507.06464)",
                "AdamW clipped at 1, each at its best lr", sooner,
            ),
            line(
                "S3 has no loss spikes at 10 times the lr (same)",
                "of its own best lr; AdamW clipped at 1", of_spikes(rows),
            ),
            line(
                "AdamW's updates clipped to ±1 bring fewer loss spikes, not none (same, Figure 10)",
                "at 1, 3 and 10 times the best lr", of_updates(rows),
            ),
        ],
    }  # fmt: skip


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Final loss by lr; training loss at 10 times the best lr, median and largest."""
    left, right = figure.subplots(1, 2)
    for i, found in enumerate(summary["rows"]):
        lrs = [(lr, loss["mean"]) for lr, loss in found["lrs"] if loss["mean"] is not None]
        left.plot(*zip(*lrs), "o-", color=f"C{i}", lw=1, ms=4, label=found["arm"])
        high = rate(next(k for k in range(-30, 10) if rate(k) == found["lr"]) + FACTORS[-1])
        for r in by_lr(records, found["arm"]).get(high, [])[:1]:
            kept = r["train_loss"]
            x = range(1, len(kept["median"]) + 1)
            middle, top = ([math.nan if y is None else y for y in kept[k]] for k in kept)
            right.plot(x, middle, color=f"C{i}", lw=1, label=f"{found['arm']}, lr {high:g}")
            right.fill_between(x, middle, top, color=f"C{i}", alpha=0.15)
    left.set(xscale="log", xlabel="lr", ylabel="final held-out loss (nats per token)")
    right.set(xlabel="twentieth of the run", ylabel="training loss: median, up to the largest")
    for axes in (left, right):
        finish(axes)


if __name__ == "__main__":
    main("papers_s3", __doc__, summarize, draw, (12, 4.2))
