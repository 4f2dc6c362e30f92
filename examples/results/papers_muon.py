"""Muon of a model's matrices beside AdamW, its momentum in 32, 8 and 4 bits, and torch's own.

    python examples/results/papers_muon.py [--quick]

42M parameters; both rules take one lr (updates of AdamW's size, arXiv 2502.16982) and AdamW's
storage is Muon's.  torch's two keep fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import papers
from claims import Record, Summary, main
from papers_speed import finish
from plan import Scale
from verdicts import (
    NOT_RUN,
    OPEN,
    Verdict,
    at,
    below,
    beside_text,
    borrow,
    line,
    row,
    settled,
    together,
)

CLAIM = "papers_muon"
TORCH, OURS = "torch-muon", "muon"
#: AdamW alone, at its best lr of the same setting.
ALONE = "adamw-ours"
#: The stage of arms without a sweep of their own.
LAST = next(s for s in papers.STAGES if s.claim == CLAIM and s.kind == "above")


def rows_of(records: Mapping[str, Record], part: papers.Part) -> dict[str, Summary | None]:
    """Arms by name: those of fewer lrs at the lr that is best on FP8."""
    made: dict[str, Summary | None] = {n: row(records, n, part, CLAIM) for n in (TORCH, OURS)}
    made |= {name: _beside(records, made[OURS], name) for name in LAST.arms}
    made |= {n: borrow(made[n], [made[OURS], made[TORCH]]) for n in LAST.arms}
    made[ALONE] = row(records, ALONE, part)
    return made


def _beside(records: Mapping[str, Record], tuned: Summary | None, name: str) -> Summary | None:
    """An arm without a sweep at the lr of ``tuned``."""
    found = None if tuned is None else at(records, name, CLAIM, tuned["lr"])
    if tuned is None or found is None:
        return None
    own = {k: tuned[k] for k in ("complete", "interior")}
    return {**found, **own, "lrs": [[found["lr"], found["held_out"]]]}


def no_worse(rows: Mapping[str, Summary | None], names: tuple[str, ...], than: str) -> Verdict:
    """The verdict on "ends no higher than ``than``, within the spreads"."""
    asked = [rows[n] for n in (*names, than)]
    if all(r is None for r in asked[:-1]):
        return NOT_RUN, ""
    if not settled(asked):
        return OPEN, "sweeps or seeds are missing"
    *own, other = (r for r in asked if r is not None)
    return together({n: below(other, r) is not True for n, r in zip(names, own)})


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per arm."""
    rows = rows_of(records, scale.papers)
    torchs = rows[TORCH]
    for name, found in rows.items():
        if found is not None:
            found["beside"] = "-" if name == TORCH else beside_text(found, torchs)
    where = "42 million parameters, each at the best lr of its sweep; momentum also at FP8's"
    return {
        "rows": [r for r in rows.values() if r is not None],
        "verdicts": [
            line("Muon on FP8 momentum ends no higher than torch.optim.Muon's fp32", where,
                 no_worse(rows, (OURS,), TORCH)),
            line("4 bits, and 32, end no higher than FP8", where,
                 no_worse(rows, ("muon-fp4", "muon-fp32"), OURS)),
            line("Muon with AdamW ends below AdamW alone", where,
                 of_alone(rows)),
        ],
    }  # fmt: skip


def of_alone(rows: Mapping[str, Summary | None]) -> Verdict:
    """The verdict on "ends below AdamW alone"."""
    asked = [rows[OURS], rows[ALONE]]
    if rows[OURS] is None:
        return NOT_RUN, ""
    if not settled(asked):
        return OPEN, "sweeps or seeds are missing"
    own, alone = (r for r in asked if r is not None)
    return together({"on FP8": below(own, alone)})


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Final loss by lr, and held-out loss against tokens at the best."""
    left, right = figure.subplots(1, 2)
    for i, found in enumerate(summary["rows"]):
        ends = [(lr, loss["median"]) for lr, loss in found["lrs"] if loss["median"] is not None]
        if ends:
            left.plot(*zip(*ends), "o-", color=f"C{i}", lw=1, ms=4, label=found["arm"])
        kind = "papers" if found["arm"] == ALONE else CLAIM
        record = records.get(f"{kind}/{found['arm']}/{found['lr']:g}/1")
        if record is not None:
            path = [(s * record["tokens_per_step"], x) for s, x in record["held_out"] if s]
            right.plot(*zip(*path), color=f"C{i}", lw=1, label=found["arm"])
    left.set(xscale="log", xlabel="lr", ylabel="final held-out loss (nats per token)")
    right.set(xlabel="tokens", ylabel="held-out loss (nats per token)")
    for axes in (left, right):
        finish(axes)


if __name__ == "__main__":
    main("papers_muon", __doc__, summarize, draw, (11, 4.2))
