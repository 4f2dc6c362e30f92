"""What a page may say of a claim, from runs at the best lr of each arm; shared by papers_*.py.

Four verdicts, and two ways of having none yet; never "not reproduced" without the condition that
was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import papers
from claims import Record, Summary, of_kind, spread
from fp8_state import steps_to
from runs import final_loss, per_byte

NOT_RUN = "not yet run"
OPEN = "not settled yet"
REPRODUCED = "reproduced"
CONDITION = "reproduced under a named condition"
REFUTED = "refuted by more than the spread"
UNTESTABLE = "not testable at this scale"


def by_lr(records: Mapping[str, Record], name: str, kind: str = "papers") -> dict[float, Any]:
    """The runs of an arm by lr, ascending."""
    made: dict[float, list[Record]] = {}
    for r in sorted(of_kind(records, kind, name), key=lambda r: (r["lr"], r["seed"])):
        made.setdefault(r["lr"], []).append(r)
    return made


def row(
    records: Mapping[str, Record], name: str, part: papers.Part, claim: str = "papers"
) -> Summary | None:
    """An arm at the lr that is best so far: seed 1 decides, since every lr has it."""
    runs = by_lr(records, name)
    first = {lr: final_loss(own[0]) for lr, own in runs.items() if own[0]["seed"] == 1}
    if not first:
        return None
    missing, chosen = papers.sweep(records, name, part, claim)
    best = chosen if chosen in runs else min(first, key=lambda lr: first[lr])
    lrs = sorted(first)
    own = runs[best]
    return {
        "arm": name,
        "lr": best,
        "lrs": [[lr, spread([final_loss(r) for r in runs[lr]])] for lr in lrs],
        "complete": not missing,
        "interior": lrs[0] < best < lrs[-1],
        "held_out": spread([final_loss(r) for r in own]),
        "per_byte": spread([per_byte(r) for r in own]),
        "steps": own[0]["steps"],
        "tokens": own[0]["steps"] * own[0]["tokens_per_step"],
        "tokens_per_second": max(r["tokens_per_second"] for r in own),
        "peak_gib": max((r.get("peak_gib", 0) for r in own), default=0),
        "state_bytes": round(own[0]["state_bytes_per_parameter"], 2),
        "spikes": [r["spikes"] for r in own],
    }


def speedup(
    records: Mapping[str, Record], ours: Summary, baseline: Summary
) -> dict[str, Any] | None:
    """How many times sooner the one arm is at the other's mean final loss; None where either has
    no finite loss.  reached: seeds that get there."""
    target = baseline["held_out"]["mean"]
    if target is None or ours["held_out"]["mean"] is None:
        return None
    runs = by_lr(records, ours["arm"])[ours["lr"]]
    steps = [steps_to(r, target) for r in runs]
    factors = [baseline["steps"] / s for s in steps if s]
    return {
        "factor": spread(factors) if factors else None,
        "reached": f"{len(factors)} of {len(runs)}",
        "gap": round(baseline["held_out"]["mean"] - ours["held_out"]["mean"], 4),
        "spread": round(ours["held_out"]["half_range"] + baseline["held_out"]["half_range"], 4),
    }


def settled(rows: Sequence[Summary | None], seeds: int = len(papers.SEEDS)) -> bool:
    """Whether each arm has a best lr inside its sweep and all seeds at it."""
    return all(
        r is not None
        and r["complete"]
        and r["interior"]
        and r["held_out"]["seeds"] + r["held_out"]["diverged"] >= seeds
        for r in rows
    )


def faster(
    rows: Mapping[str, Summary | None], speedups: Mapping[str, Any], least: float
) -> tuple[str, str]:
    """The verdict on "at least ``least`` times fewer tokens than each baseline", and its reason.

    rows: the arm itself and its baselines; speedups: by baseline.
    """
    if all(r is None for r in rows.values()):
        return NOT_RUN, ""
    if not settled(list(rows.values())):
        return OPEN, "sweeps or seeds are missing"
    factors = {}
    for name, found in speedups.items():
        if found is not None:
            factors[name] = found["factor"]["mean"] if found["factor"] else 0.0
    if not factors:
        return UNTESTABLE, "no baseline, or not the arm itself, ended with a finite loss"
    enough = [n for n, f in factors.items() if f >= least and speedups[n]["gap"] > 0]
    some = [n for n, f in factors.items() if speedups[n]["gap"] > speedups[n]["spread"]]
    if len(enough) == len(factors):
        return REPRODUCED, f"at least {min(factors.values()):.2f} times"
    if enough:
        return CONDITION, f"against {', '.join(enough)} alone"
    if some:
        return REFUTED, f"faster than {', '.join(some)}, by less than {least:g} times"
    return REFUTED, f"{max(factors.values()):.2f} times at most"


def lrs_text(row_: Summary) -> str:
    """Final losses by lr, the best in bold."""
    parts = []
    for lr, loss in row_["lrs"]:
        text = "diverged" if loss["mean"] is None else f"{loss['mean']:.3f}"
        parts.append(f"{lr:g}: **{text}**" if lr == row_["lr"] else f"{lr:g}: {text}")
    return ", ".join(parts)


def no_runs(records: Mapping[str, Record], names: Sequence[str]) -> bool:
    """Whether no arm has any run."""
    return not any(of_kind(records, "papers", name) for name in names)
