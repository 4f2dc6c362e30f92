"""What 42 million parameters say, on other models: 110M, FP8 matrix products, 336M.

    python examples/results/papers_larger.py [--quick]

Each arm runs once, at the best lr of its sweep at 42M; its spread is that of its seeds there, or
the largest of the others.  The sources trained 124M (arXiv 2604.15416), 345M and 7B (arXiv
2507.06464) parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import papers
import papers_s3
from claims import Record, Summary, main
from papers_speed import LEAST, OURSELVES, curve, finish, speedups
from plan import Scale
from verdicts import (
    NOT_RUN,
    OPEN,
    Verdict,
    beside,
    borrow,
    by_lr,
    down,
    faster,
    line,
    row,
    settled,
    together,
)

#: The stage of each model, and what is said of it.
LARGER = {
    "papers_110": "110 million parameters",
    "papers_matmul": "matrix products in FP8 as well",
    "papers_336": "336 million parameters",
}
STAGES = {stage.claim: stage for stage in papers.STAGES if stage.claim in LARGER}
TOKENS = f"StoSignSGD needs {LEAST:g} times fewer tokens (arXiv 2604.15416)"
STEPS = "S3 reaches AdamW's loss in half of the steps (arXiv 2507.06464)"
#: Claim, what it says, the arm and its baselines, the least factor.
CASES = (
    ("papers_110", TOKENS, ("stosignsgd-ours", "signum-ours", "adamw-ours"), LEAST),
    ("papers_110", TOKENS, ("stosignsgd-theirs", "signum-theirs", "adamw-theirs"), LEAST),
    ("papers_110", STEPS, ("s3-ours", "adamw-ours"), papers_s3.LEAST),
    ("papers_matmul", TOKENS, ("stosignsgd-ours", "signum-ours", "adamw-ours"), LEAST),
    ("papers_matmul", TOKENS, ("stosignsgd-theirs", "signum-theirs", "adamw-theirs"), LEAST),
    ("papers_336", TOKENS, ("stosignsgd-ours", "adamw-fp32-ours"), LEAST),
    ("papers_336", STEPS, ("s3-ours", "adamw-fp32-ours"), papers_s3.LEAST),
)


def rows_of(
    records: Mapping[str, Record], claim: str, part: papers.Part
) -> dict[str, Summary | None]:
    """The arms of a model by name, with the spreads of 42M."""
    stage = STAGES[claim]
    small = {n: row(records, stage.like.get(n, n), part) for n in stage.arms}
    made = {}
    for n in stage.arms:
        own = borrow(beside(records, stage, n, part), [small[n]])
        made[n] = borrow(own, list(small.values()))
    return made


def of_failure(rows: Mapping[str, Summary | None]) -> Verdict:
    """The verdict on "AdamW fails where StoSignSGD trains", with products in FP8."""
    cases: dict[str, bool | None] = {}
    for regime in ("ours", "theirs"):
        both = [rows[f"{n}-{regime}"] for n in ("adamw", OURSELVES)]
        if not settled(both):
            return (OPEN, "runs are missing") if any(rows.values()) else (NOT_RUN, "")
        theirs, own = (r for r in both if r is not None)
        cases[regime] = down(theirs) and not down(own)
    return together(cases)


def in_seconds(found: Summary, ours: Summary, baseline: Summary) -> float | None:
    """A factor of steps as one of seconds, by the tokens per second of the whole training."""
    if not found or not found["factor"]:
        return None
    speed = ours["tokens_per_second"] / baseline["tokens_per_second"]
    return round(found["factor"]["median"] * speed, 3)


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """By model: rows, factors and seconds by arm and baseline."""
    models: dict[str, Any] = {}
    found = []
    for claim, said in LARGER.items():
        rows = rows_of(records, claim, scale.papers)
        made: dict[str, Any] = {
            "said": said,
            "rows": [r for r in rows.values() if r is not None],
            "factors": [],
        }
        for name, what, (arm, *others), least in CASES:
            if name != claim:
                continue
            compared = {n: rows[n] for n in (arm, *others)}
            factors = speedups(records, compared)
            for n, factor in factors.items():
                ours, theirs = rows[arm], rows[n]
                assert ours is not None and theirs is not None
                seconds = in_seconds(factor, ours, theirs)
                made["factors"].append(
                    {"arm": arm, "against": n, "found": factor, "seconds": seconds}
                )
            regime = arm.rpartition("-")[2]
            condition = f"{said}, *{regime}*, at the best lrs of 42 million, against "
            condition += ", ".join(n.removesuffix(f"-{regime}") for n in others)
            found.append(line(what, condition, faster(compared, factors, least)))
        if claim == "papers_matmul":
            failure = "AdamW fails in FP8, where StoSignSGD trains (arXiv 2604.15416)"
            found.append(line(failure, said, of_failure(rows)))
        models[claim] = made
    return {"rows": models, "verdicts": found}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Loss against tokens, and for the largest against seconds."""
    panels = figure.subplots(1, len(LARGER) + 1)
    for axes, (claim, said) in zip(panels, LARGER.items()):
        for i, found in enumerate(summary["rows"][claim]["rows"]):
            label = found["arm"] + (", broke down" if down(found) else "")
            style = "--" if found["arm"].endswith("-theirs") else "-"
            curve(axes, records, found, color=f"C{i}", ls=style, label=label)
        axes.set(title=said, xlabel="million tokens", ylabel="held-out loss (nats per token)")
    last = panels[-1]
    for i, found in enumerate(summary["rows"]["papers_336"]["rows"]):
        for r in by_lr(records, found["arm"], found["kind"])[found["lr"]]:
            pace = r["tokens_per_step"] / r["tokens_per_second"]
            ends = [(s * pace, x) for s, x in r["held_out"][1:] if x is not None]
            last.plot(*zip(*ends), color=f"C{i}", lw=1, label=found["arm"])
    last.set(title=LARGER["papers_336"], xlabel="seconds",
             ylabel="held-out loss (nats per token)")  # fmt: skip
    for axes in panels:
        finish(axes)


if __name__ == "__main__":
    main("papers_larger", __doc__, summarize, draw, (18, 4.2))
