"""Muon of a model's matrices beside AdamW, its momentum in 32, 8 and 4 bits, and torch's own.

    python examples/results/papers_muon.py [--quick]

42M parameters, and 110M; both rules take one lr (updates of AdamW's size, arXiv 2502.16982).
torch's two keep fp32.
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
TORCH, OURS, E4M3 = "torch-muon", "muon", "muon-e4m3"
#: AdamW alone, at its best lr of the same setting.
ALONE = "adamw-ours"
#: What is said of each model, by the claim of its runs.
SIZES = {CLAIM: "42 million parameters", "papers_muon_110": "110 million parameters"}
#: The arms with a sweep, and those at the lr that another one's sweep found best, by claim.
SWEPT = {s.claim: s.arms for s in papers.STAGES if s.claim in SIZES and s.kind == "sweep"}
LAST = {s.claim: s.arms for s in papers.STAGES if s.claim in SIZES and s.kind == "above"}

Rows = dict[str, Summary | None]


def rows_of(records: Mapping[str, Record], part: papers.Part, claim: str = CLAIM) -> Rows:
    """Arms by name: those without a sweep at the lr that is best on whole numbers."""
    made: Rows = {n: row(records, n, part, claim) for n in SWEPT[claim]}
    tuned = made[OURS]
    for name in LAST.get(claim, ()):
        made[name] = borrow(_like(records, tuned, name, claim), [tuned, made[TORCH]])
    if claim == CLAIM:
        made[ALONE] = row(records, ALONE, part)
    return made


def _like(
    records: Mapping[str, Record], tuned: Summary | None, name: str, claim: str
) -> Summary | None:
    """An arm without a sweep at the lr of ``tuned``."""
    found = None if tuned is None else at(records, name, claim, tuned["lr"])
    if tuned is None or found is None:
        return None
    own = {k: tuned[k] for k in ("complete", "interior")}
    return {**found, **own, "lrs": [[found["lr"], found["held_out"]]]}


def no_worse(rows: Rows, names: tuple[str, ...], than: str) -> Verdict:
    """The verdict on "ends no higher than ``than``, within the spreads", of those that ran."""
    asked = {n: r for n in names if (r := rows[n]) is not None}
    other = rows[than]
    if not asked:
        return NOT_RUN, ""
    if other is None or not settled([*asked.values(), other]):
        return OPEN, "sweeps or seeds are missing"
    return together({n: below(other, r) is not True for n, r in asked.items()})


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """By model: one row per arm."""
    sizes: dict[str, Any] = {}
    found = []
    for claim, said in SIZES.items():
        rows = rows_of(records, scale.papers, claim)
        for name, own in rows.items():
            if own is not None:
                own["beside"] = "-" if name == TORCH else beside_text(own, rows[TORCH])
        sizes[claim] = {"said": said, "rows": [r for r in rows.values() if r is not None]}
        where = f"{said}, each at the best lr of its sweep"
        one = "Muon and AdamW with one byte a moment end no higher than torch's with fp32"
        if claim != CLAIM:
            found.append(line(one, where, no_worse(rows, (OURS,), TORCH)))
            continue
        found += [
            line(one, f"{where}; momentum in whole numbers, and in E4M3",
                 no_worse(rows, (OURS, E4M3), TORCH)),
            line("Other storages end no higher than torch's", f"{where}; these at the lr of one "
                 "byte a moment", no_worse(rows, LAST[CLAIM], TORCH)),
            line("Muon with AdamW ends below AdamW alone", where, of_alone(rows)),
        ]  # fmt: skip
    return {"rows": sizes, "verdicts": found}


def of_alone(rows: Rows) -> Verdict:
    """The verdict on "ends below AdamW alone"."""
    asked = [rows[OURS], rows[ALONE]]
    if rows[OURS] is None:
        return NOT_RUN, ""
    if not settled(asked):
        return OPEN, "sweeps or seeds are missing"
    own, alone = (r for r in asked if r is not None)
    return together({"with one byte": below(own, alone)})


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """By model: final loss by lr, and held-out loss against tokens at the best."""
    panels = figure.subplots(2, 2)
    for (left, right), (claim, size) in zip(panels, summary["rows"].items()):
        for i, found in enumerate(size["rows"]):
            ends = [(lr, loss["median"]) for lr, loss in found["lrs"] if loss["median"] is not None]
            if ends:
                left.plot(*zip(*ends), "o-", color=f"C{i}", lw=1, ms=4, label=found["arm"])
            kind = "papers" if found["arm"] == ALONE else claim
            record = records.get(f"{kind}/{found['arm']}/{found['lr']:g}/1")
            if record is not None:
                path = [(s * record["tokens_per_step"], x) for s, x in record["held_out"] if s]
                right.plot(*zip(*path), color=f"C{i}", lw=1, label=found["arm"])
        left.set(xscale="log", xlabel="lr", ylabel="final held-out loss (nats per token)")
        left.set(title=size["said"])
        right.set(xlabel="tokens", ylabel="held-out loss (nats per token)", title=size["said"])
        for axes in (left, right):
            finish(axes)


if __name__ == "__main__":
    main("papers_muon", __doc__, summarize, draw, (11, 8))
