"""S3GD in fine-tuning, against clipped Adam and the sign methods.

    python examples/results/papers_finetune.py [--quick]

The sources: S3GD is nearly equivalent to Adam with aggressive clipping (the S3GD post); StoSignSGD
fine-tunes better than AdamW and SignSGD (arXiv 2604.15416, abstract: 7B models on mathematics).
Here the 42M model of AdamW's best run goes on with C headers in place of Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import papers
from claims import Record, Summary, main
from papers_speed import finish
from plan import Scale
from verdicts import (
    NOT_RUN,
    OPEN,
    Verdict,
    below,
    beside_text,
    by_lr,
    ends_below,
    line,
    row,
    settled,
    together,
)

CLAIM = "papers_finetune"
ADAM = "adamw-ours"
#: The storages of S3GD's m.
S3GD = {"FP8 with block scales": "s3gd-ours", "raw FP8, their form": "s3gd-raw-ours"}


def of_s3gd(rows: Mapping[str, Summary | None]) -> Verdict:
    """The verdict on "nearly equivalent to clipped Adam": ends no higher than within the spread."""
    asked = [rows[n] for n in (*S3GD.values(), ADAM)]
    if all(r is None for r in asked):
        return NOT_RUN, ""
    if not settled(asked):
        return OPEN, "sweeps or seeds are missing"
    *own, adam = (r for r in asked if r is not None)
    return together({n: below(r, adam) is not False for n, r in zip(S3GD, own)})


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per arm."""
    rows = {n: row(records, n, scale.papers, CLAIM) for n in papers.TUNED}
    adam = rows[ADAM]
    for name, found in rows.items():
        if found is None:
            continue
        own = by_lr(records, name, CLAIM)[found["lr"]]
        other = [r["other_held_out"]["python"] for r in own if "python" in r["other_held_out"]]
        lost = [after - before for before, after in other if None not in (before, after)]
        found["forgets"] = round(fmean(lost), 4) if lost else None
        found["beside"] = "-" if name == ADAM else beside_text(found, adam)
        found["before"] = own[0]["held_out"][0][1]
    own = "fine-tuning of 42 million parameters, each at its best lr; AdamW clipped at 1"
    others = {"AdamW": adam, "SignSGD": rows["signsgd-ours"]}
    return {
        "rows": [r for r in rows.values() if r is not None],
        "verdicts": [
            line("S3GD is nearly equivalent to clipped Adam (the S3GD post)",
                 f"{own}; no higher at the end than within the spread", of_s3gd(rows)),
            line("StoSignSGD fine-tunes better than AdamW and SignSGD (arXiv 2604.15416)", own,
                 ends_below(rows["stosignsgd-ours"], others)),
        ],
    }  # fmt: skip


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Final loss by lr, and what is lost of the first text at the best."""
    left, right = figure.subplots(1, 2)
    for i, found in enumerate(summary["rows"]):
        ends = [(lr, loss["median"]) for lr, loss in found["lrs"] if loss["median"] is not None]
        if ends:
            left.plot(*zip(*ends), "o-", color=f"C{i}", lw=1, ms=4, label=found["arm"])
        if found["forgets"] is not None and found["held_out"]["median"] is not None:
            place = (found["held_out"]["median"], found["forgets"])
            right.plot(*place, "o", color=f"C{i}", label=found["arm"])
    left.set(xscale="log", xlabel="lr", ylabel="final held-out loss (nats per token)")
    right.set(xlabel="final held-out loss (nats per token)",
              ylabel="loss on Python, after less before")  # fmt: skip
    for axes in (left, right):
        finish(axes)


if __name__ == "__main__":
    main("papers_finetune", __doc__, summarize, draw, (11, 4.2))
