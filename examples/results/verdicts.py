"""What a page may say of a claim, from runs at the best lr of each arm; shared by papers_*.py.

Four verdicts, and two ways of having none yet; never "not reproduced" without the condition that
was tried.  A difference counts where it exceeds the spreads of both arms together: half the range
over the seeds.  An arm of one seed borrows the spread of arms that have all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import papers
from claims import Record, Summary, of_kind, spread
from fp8_state import steps_to
from optimizers import rate
from runs import final_loss, per_byte

NOT_RUN = "not yet run"
OPEN = "not settled yet"
REPRODUCED = "reproduced"
CONDITION = "reproduced under a named condition"
REFUTED = "refuted by more than the spread"
UNTESTABLE = "not testable at this scale"

#: Nats per token at the end above a run's own lowest held-out loss: it broke down.
BREAKDOWN = 0.5
#: Whether a claim holds in each of several cases; None where the spread leaves it open.
Cases = Mapping[str, bool | None]
Verdict = tuple[str, str]  # and its reason, or ""

# ---------------------------------------------------------------- figures of an arm


def by_lr(records: Mapping[str, Record], name: str, kind: str = "papers") -> dict[float, Any]:
    """The runs of an arm by lr, ascending."""
    made: dict[float, list[Record]] = {}
    for r in sorted(of_kind(records, kind, name), key=lambda r: (r["lr"], r["seed"])):
        made.setdefault(r["lr"], []).append(r)
    return made


def kind_of(claim: str) -> str:
    """What the ids of a claim's runs begin with."""
    return papers.make(claim, papers.BASE, 1e-3, 1, papers.TOKENS).id.partition("/")[0]


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """``claims.spread`` and the median, None where half of the runs diverged."""
    middle = statistics.median(values)
    return {**spread(values), "median": round(middle, 5) if math.isfinite(middle) else None}


def broken_down(record: Record) -> bool:
    """Whether a run's held-out loss is not finite at the end, or BREAKDOWN above its lowest."""
    lowest = min(x for _, x in record["held_out"] if x is not None)
    return final_loss(record) > lowest + BREAKDOWN


def at(records: Mapping[str, Record], name: str, kind: str, lr: float) -> Summary | None:
    """An arm's runs at one lr.  ``spread``: half the range over the seeds once all are there."""
    own = by_lr(records, name, kind).get(lr)
    if not own:
        return None
    held_out = over_seeds([final_loss(r) for r in own])
    whole = {r["seed"] for r in own} >= set(papers.SEEDS)
    return {
        "arm": name,
        "kind": kind,
        "lr": lr,
        "held_out": held_out,
        "per_byte": over_seeds([per_byte(r) for r in own]),
        "spread": (held_out["half_range"] or 0.0) if whole else None,
        "borrowed": "",
        "runs": len(own),
        "broken": sum(map(broken_down, own)),
        "steps": own[0]["steps"],
        "tokens": own[0]["steps"] * own[0]["tokens_per_step"],
        "seconds": max(r["seconds"] for r in own),
        "tokens_per_second": max(r["tokens_per_second"] for r in own),
        "optimizer_ms": min((r["optimizer_ms"] for r in own if r["optimizer_ms"]), default=None),
        "peak_gib": max((r.get("peak_gib", 0) for r in own), default=0),
        "state_bytes": round(own[0]["state_bytes_per_parameter"], 2),
        "spikes": [r["spikes"] for r in own],
    }


def row(
    records: Mapping[str, Record], name: str, part: papers.Part, claim: str = "papers"
) -> Summary | None:
    """An arm at the lr of its sweep that is best so far: seed 1 decides, since every lr has it."""
    kind = kind_of(claim)
    runs = by_lr(records, name, kind)
    first = {lr: final_loss(own[0]) for lr, own in runs.items() if own[0]["seed"] == 1}
    if not first:
        return None
    missing, chosen = papers.sweep(records, name, part, claim)
    best = papers.make(claim, name, chosen, 1, 1).lr if chosen else None
    if best not in runs:
        best = min(first, key=lambda lr: first[lr])
    made = at(records, name, kind, best)
    assert made is not None
    lrs = sorted(first)
    return made | {
        "lrs": [[lr, over_seeds([final_loss(r) for r in runs[lr]])] for lr in lrs],
        "complete": not missing,
        "interior": lrs[0] < best < lrs[-1],
    }


def beside(
    records: Mapping[str, Record],
    stage: papers.Stage,
    name: str,
    part: papers.Part,
    factor: int = 0,
) -> Summary | None:
    """An arm of a stage without a sweep, ``factor`` places of the grid above the best lr of the
    sweep that it waits for."""
    place = papers.at(records, stage, name, part)
    if place is None:
        return None
    made = at(records, name, kind_of(stage.claim), rate(place + factor))
    tuned = row(records, stage.like.get(name, name), part)
    if made is None or tuned is None:
        return None
    lrs = [[made["lr"], made["held_out"]]]
    return made | {"lrs": lrs, "complete": True, "interior": tuned["interior"]}


def down(row_: Summary) -> bool:
    """Whether every run at the best lr broke down."""
    return bool(row_["broken"] == row_["runs"])


def borrow(row_: Summary | None, references: Sequence[Summary | None]) -> Summary | None:
    """A row of too few seeds with the largest spread of the references; ``borrowed`` says whose."""
    if row_ is None or row_["spread"] is not None:
        return row_
    have = [r for r in references if r and r["spread"] is not None and not down(r)]
    if not have:
        return row_
    widest = max(have, key=lambda r: float(r["spread"]))
    return {**row_, "spread": widest["spread"], "borrowed": widest["arm"]}


# ---------------------------------------------------------------- differences


def difference(a: Summary, b: Summary) -> dict[str, Any] | None:
    """How far a ends below b, medians; None where either did not end or a spread is missing."""
    ends = [r["held_out"]["median"] for r in (a, b)]
    if None in (*ends, a["spread"], b["spread"]):
        return None
    both = round(a["spread"] + b["spread"], 4)
    return {"gap": round(ends[1] - ends[0], 4), "spread": both}


def below(a: Summary, b: Summary) -> bool | None:
    """Whether a ends below b by more than the spreads; None within them.  What broke down is
    above what did not."""
    if down(a) or down(b):
        return None if down(a) and down(b) else down(b)
    found = difference(a, b)
    if found is None or abs(found["gap"]) <= found["spread"]:
        return None
    return bool(found["gap"] > 0)


def speedup(
    records: Mapping[str, Record], ours: Summary, baseline: Summary
) -> dict[str, Any] | None:
    """How many times sooner the one arm is at the other's median final loss; None where either
    breaks down.

    reached: seeds that get there; range: the factors to losses that the spreads of both move it to.
    """
    target = baseline["held_out"]["median"]
    if target is None or ours["held_out"]["median"] is None or down(ours) or down(baseline):
        return None
    runs = by_lr(records, ours["arm"], ours["kind"])[ours["lr"]]
    both = (ours["spread"] or 0.0) + (baseline["spread"] or 0.0)

    def factors(goal: float) -> list[float]:
        steps = [steps_to(r, goal) for r in runs]
        return [baseline["steps"] / s if s else 0.0 for s in steps]

    reached = [f for f in factors(target) if f]
    ends = [statistics.median(factors(target + shift)) for shift in (-both, both)]
    return {
        "factor": over_seeds(reached) if reached else None,
        "range": [round(f, 4) for f in ends],
        "reached": f"{len(reached)} of {len(runs)}",
        "gap": round(target - ours["held_out"]["median"], 4),
        "spread": round(both, 4),
    }


def settled(rows: Sequence[Summary | None]) -> bool:
    """Whether each arm has a spread, and a best lr inside its sweep unless it breaks down."""
    return all(
        r is not None
        and r["complete"]
        and (r["interior"] or down(r))
        and (r["spread"] is not None or down(r))
        for r in rows
    )


# ---------------------------------------------------------------- verdicts


def together(cases: Cases) -> Verdict:
    """The verdict on a claim that says the same of several cases."""
    held = [n for n, holds in cases.items() if holds]
    open_ = [n for n, holds in cases.items() if holds is None]
    not_ = [n for n, holds in cases.items() if holds is False]
    if not cases:
        return NOT_RUN, ""
    if len(held) == len(cases):
        return REPRODUCED, ", ".join(held)
    rest = [f"not {', '.join(not_)}"] if not_ else []
    rest += [f"within the spread: {', '.join(open_)}"] if open_ else []
    if held:
        return CONDITION, "; ".join([", ".join(held), *rest])
    return (OPEN if open_ else REFUTED), "; ".join(rest)


def ends_below(
    ours: Summary | None, others: Mapping[str, Summary | None], said: str = "below"
) -> Verdict:
    """The verdict on "ends below each of the others"."""
    rows = [ours, *others.values()]
    if all(r is None for r in rows):
        return NOT_RUN, ""
    if not settled(rows):
        return OPEN, "sweeps or seeds are missing"
    assert ours is not None
    cases = {f"{said} {n}": below(ours, r) for n, r in others.items() if r is not None}
    verdict, why = together(cases)
    return verdict, why + lent(rows)


def lent(rows: Sequence[Summary | None]) -> str:
    """A remark on spreads that are borrowed, all of them from the sweeps of 42M."""
    names = sorted({r["borrowed"] for r in rows if r and r["borrowed"]})
    return f" (one seed; spread of {', '.join(names)} at 42M)" if names else ""


def faster(
    rows: Mapping[str, Summary | None], speedups: Mapping[str, Any], least: float
) -> Verdict:
    """The verdict on "at least ``least`` times fewer tokens than each baseline", and its reason.

    rows: the arm itself first, then its baselines; speedups: by baseline.  A factor is refuted
    where the spreads do not bring it to ``least``.
    """
    if all(r is None for r in rows.values()):
        return NOT_RUN, ""
    if not settled(list(rows.values())):
        return OPEN, "sweeps or seeds are missing"
    ours, *others = (r for r in rows.values() if r is not None)
    broke = [n for n, r in rows.items() if r is not None and down(r)]
    remark = f"; {', '.join(broke)} breaks down" if broke else ""
    remark += lent([ours, *others])
    if down(ours):
        return REFUTED, "breaks down itself"
    factors, cases = {}, {}
    for name, found in speedups.items():
        if found is not None:
            factors[name] = found["factor"]["median"] if found["factor"] else 0.0
            clear = found["gap"] > found["spread"]
            holds = factors[name] >= least and clear
            within = factors[name] >= least or found["range"][1] >= least
            cases[name] = True if holds else None if within else False
    if not factors:
        return UNTESTABLE, "every baseline breaks down"
    some = [n for n in factors if speedups[n]["gap"] > speedups[n]["spread"]]
    verdict, _ = together(cases)
    if verdict == REPRODUCED:
        why = f"at least {min(factors.values()):.2f} times"
    elif verdict == CONDITION:
        why = f"against {', '.join(n for n, holds in cases.items() if holds)} alone"
    elif verdict == OPEN:
        near = ", ".join(n for n, holds in cases.items() if holds is None)
        why = f"{least:g} times lies within the spread against {near}"
    elif some:
        why = f"faster than {', '.join(some)}, by less than {least:g} times"
    else:
        why = f"{max(factors.values()):.2f} times at most"
    return verdict, why + remark


def line(claim: str, condition: str, found: Verdict) -> dict[str, str]:
    """A line of the page's table of verdicts."""
    return {"claim": claim, "condition": condition, "verdict": found[0], "why": found[1]}


# ---------------------------------------------------------------- as text


def lrs_text(row_: Summary) -> str:
    """Final losses by lr, the best in bold."""
    parts = []
    for lr, loss in row_["lrs"]:
        end = loss["median"]
        text = "diverged" if end is None else f"{end:.3f}" if end < 100 else f"{end:.2g}"
        parts.append(f"{lr:g}: **{text}**" if lr == row_["lr"] else f"{lr:g}: {text}")
    return ", ".join(parts)


def middle(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Median ± half the range over the seeds; the value alone of a single one."""
    if value is None or value["median"] is None:
        return "diverged" if value else "-"
    if value["seeds"] + value["diverged"] == 1:
        return f"{value['median']:.{digits}f}"
    text = f"{value['median']:.{digits}f} ± {value['half_range']:.{digits}f}"
    return text + (f", {value['diverged']} diverged" if value["diverged"] else "")


def beside_text(a: Summary | None, b: Summary | None) -> str:
    """How a ends beside b, in words."""
    if a is None or b is None:
        return "not yet run"
    if down(a) or down(b):
        return "both break down" if down(a) and down(b) else f"{(b, a)[down(a)]['arm']} breaks down"
    ends = [r["held_out"]["median"] for r in (a, b)]
    gap = ends[0] - ends[1]
    text = f"{abs(gap):.4f} {'above' if gap > 0 else 'below'}"
    found = difference(a, b)
    if found is None:
        return f"{text} (no spread yet)"
    return text if abs(gap) > found["spread"] else f"within the spread ({gap:+.4f})"


def factor_text(found: Mapping[str, Any] | None, seconds: float | None = None) -> str:
    """What ``speedup`` found, in words; seconds: its factor as one of time."""
    if not found:
        return "one of the two breaks down"
    text = "its final loss is not reached"
    if found["factor"]:
        least, most = found["range"]
        text = f"at its final loss {middle(found['factor'], 2)} times sooner"
        text += f" ({found['reached']} seeds reach it"
        text += f"; {least:.2f} to {most:.2f} times with the spreads)" if found["spread"] else ")"
        text += f", {seconds:.2f} times in seconds" if seconds else ""
    side = "below" if found["gap"] > 0 else "above"
    return f"{text}; {abs(found['gap']):.4f} {side} it at the end, the spreads together " + (
        f"{found['spread']:.4f}" if found["spread"] else "not known yet"
    )


def short(found: Mapping[str, Any] | None) -> str:
    """The factor of ``speedup`` alone, for a table."""
    if not found:
        return "one breaks down"
    if not found["factor"]:
        return "not reached"
    least, most = found["range"]
    text = f"{found['factor']['median']:.2f}"
    return f"{text} ({least:.2f} to {most:.2f})" if found["spread"] else text
