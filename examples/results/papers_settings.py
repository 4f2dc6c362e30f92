"""What settings change: StoSignSGD's own, the sources', noise of converted optimizers, S3's grid.

    python examples/results/papers_settings.py [--quick]

The sources: beta2 = 1 and m1 = g1, or v2, in FP8 pretraining (arXiv 2604.15416, Figures 2 and 6);
σ >= abs(m) holds for most optimizers (same, B.3 and Figure 4); AdamW's spikes grow with the lr, S3
needs no clipping, and is better than AdamW over its whole grid of p and beta (arXiv 2507.06464,
Figures 9 and 10).  Most arms have one seed: their spread is that of arms which have three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import papers
from claims import Record, Summary, main
from papers_speed import BASELINES, LEAST, OURSELVES, REGIMES, curve, finish, speedups
from plan import Scale
from runs import COLLAPSE_STEP
from verdicts import (
    NOT_RUN,
    OPEN,
    REFUTED,
    REPRODUCED,
    UNTESTABLE,
    Verdict,
    at,
    below,
    beside,
    beside_text,
    borrow,
    by_lr,
    down,
    faster,
    lent,
    line,
    row,
    settled,
    together,
)

STAGES = {stage.number: stage for stage in papers.STAGES}
EASILY = 0.01  # of "σ >= abs(m) can be easily satisfied": share of elements where it does not hold
#: Forms of StoSignSGD that a source has, tried in both regimes.
FORMS = {
    "stosignsgd-paper": "as its paper writes it, beta2 = 1 and m1 = g1",
    "stosignsgd-v2": "v2, a reconstruction",
}
OURS = ("stosignsgd-first-ours", "ie-stosignsgd-ours")  # what stages 12 and 13 have beside them
#: What the arms of stage 14 differ from.
PAIRS = {
    "adamw-noclip-ours": "adamw-ours",
    "adamw-fp32-ours": "adamw-ours",
    "adamw-decay-ours": "adamw-ours",
    "s3-fp32-ours": "s3-ours",
}
FACTORS = (0, 2)  # places of the grid above the best lr: 1 and 10 times it


# ---------------------------------------------------------------- StoSignSGD's own settings


def references(
    records: Mapping[str, Record], part: papers.Part, name: str
) -> dict[str, Summary | None]:
    """StoSignSGD and its baselines in a regime."""
    return {n: row(records, f"{n}-{name}", part) for n in (OURSELVES, *BASELINES)}


def forms(
    records: Mapping[str, Record], part: papers.Part
) -> tuple[list[Summary], dict[str, Any], list[dict[str, str]]]:
    """Rows of stages 12 and 13, each regime's StoSignSGD first, factors of the sources' forms by
    arm, and their verdicts."""
    rows: list[Summary] = []
    factors: dict[str, Any] = {}
    found = []
    for regime in ("ours", "theirs"):
        known = references(records, part, regime)
        own = known[OURSELVES]
        of_sources = {f"{n}-{regime}": n for n in FORMS}
        made = {
            name: borrow(row(records, name, part), list(known.values()))
            for name in (*of_sources, *(OURS if regime == "ours" else ()))
        }
        if own is not None and any(made.values()):
            rows.append(own | {"beside": "-"})
        rows += [r | {"beside": beside_text(r, own)} for r in made.values() if r is not None]
        for name, form in of_sources.items():
            compared = {form: made[name], **{n: known[n] for n in BASELINES}}
            factors[name] = speedups(records, compared)
            said = faster(compared, factors[name], LEAST) if made[name] else (NOT_RUN, "")
            what = f"StoSignSGD, {FORMS[form]}: 1.44 times fewer tokens (arXiv 2604.15416)"
            found.append(line(what, REGIMES[regime], said))
    return rows, factors, found


# ---------------------------------------------------------------- clipping, storage, decay


def pairs(records: Mapping[str, Record], part: papers.Part) -> list[Summary]:
    """Each arm of stage 14 beside what it differs from, at 1 and 10 times the best lr."""
    made = []
    for name, other in PAIRS.items():
        sweep = row(records, other, part)
        for factor in FACTORS:
            one = beside(records, STAGES[14], name, part, factor)
            two = at(records, other, "papers", one["lr"]) if one else None
            if one is not None:
                made.append(
                    {
                        "arm": name,
                        "against": other,
                        "lr": one["lr"],
                        "times": 10 if factor else 1,
                        "runs": [one, two],
                        "beside": beside_text(borrow(one, [sweep]), borrow(two, [sweep])),
                    }
                )
    return made


def of_growth(compared: Sequence[Summary]) -> Verdict:
    """The verdict on "AdamW has more loss spikes at 10 times the lr", clipped and not; seed 1."""
    counts: dict[str, list[int]] = {"unclipped": [], "clipped at 1": []}
    for pair in compared:
        if pair["arm"] == "adamw-noclip-ours" and None not in pair["runs"]:
            for told, run in zip(counts.values(), pair["runs"]):
                told.append(run["spikes"][0])
    if not any(counts.values()):
        return NOT_RUN, ""
    if any(len(told) < len(FACTORS) for told in counts.values()):
        return OPEN, "not yet run at 10 times the best lr"
    if not any(map(sum, counts.values())):
        return UNTESTABLE, "it has none at 1 and 10 times its best lr"
    verdict, _ = together({n: told[1] > told[0] for n, told in counts.items()})
    return verdict, ", ".join(f"{n} {told[0]} and {told[1]}" for n, told in counts.items())


# ---------------------------------------------------------------- noise of converted optimizers


def noise(records: Mapping[str, Record], part: papers.Part) -> list[Summary]:
    """The mean of the sign, r = m/σ, at the probed steps, of StoSignSGD and stage 15's arms.

    The noise's standard deviation is the root of 1 - r²; ``above``: share with abs(m) >= σ.
    """
    made = []
    for name in ("stosignsgd-ours", *STAGES[15].arms):
        found = beside(records, STAGES[15], name, part) if name in STAGES[15].arms else None
        found = found or row(records, name, part)
        if found is None:
            continue
        first = by_lr(records, name)[found["lr"]][0]
        probes = {int(k): v for k, v in first.get("sign_means", {}).items() if v}
        made.append({**found, "signs": {str(k): probes[k] for k in sorted(probes)}})
    return made if len(made) > 1 else []  # StoSignSGD alone is no comparison


def of_sigma(rows: Sequence[Summary]) -> Verdict:
    """The verdict on "σ >= abs(m) can be easily satisfied", from step 103 to the end."""
    cases = {}
    for found in rows:
        late = [v["above"] for k, v in found["signs"].items() if int(k) >= COLLAPSE_STEP]
        if found["arm"] in STAGES[15].arms and late:
            highest = max(late)
            cases[f"{found['arm']} {100 * highest:.2g} %"] = highest <= EASILY
    if len(cases) < len(STAGES[15].arms):
        return (OPEN, "not yet run for every optimizer") if cases else (NOT_RUN, "")
    return together(cases)


# ---------------------------------------------------------------- order and beta of S3


def grid(records: Mapping[str, Record], part: papers.Part) -> list[Summary]:
    """Each p and beta at S3's best lr, with the spread of S3's seeds."""
    s3 = row(records, "s3-ours", part)
    made = []
    for name in papers.GRID:
        found = borrow(beside(records, STAGES[19], name, part), [s3])
        if found is not None:
            p, beta = name.removeprefix("s3-p").split("-")
            made.append({**found, "p": int(p), "beta": float(beta)})
    return made


def of_grid(rows: Sequence[Summary], adamw: Summary | None) -> Verdict:
    """The verdict on "every p and beta is better than AdamW"."""
    if not rows:
        return NOT_RUN, ""
    if len(rows) < len(papers.GRID) or adamw is None or not settled([*rows, adamw]):
        return OPEN, "runs or seeds are missing"
    cases = {f"p {r['p']}, beta {r['beta']:g}": below(r, adamw) for r in rows}
    verdict, why = together(cases)
    if verdict == OPEN and False in cases.values():  # "every" is refuted by one
        verdict = REFUTED
    return verdict, ("each of them" if verdict == REPRODUCED else why) + lent(rows)


# ---------------------------------------------------------------- all of it


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """Rows of StoSignSGD's forms; pairs, noise and grid beside them."""
    part: papers.Part = scale.papers
    rows, factors, found = forms(records, part)
    compared, signs, orders = pairs(records, part), noise(records, part), grid(records, part)
    adamw = row(records, "adamw-ours", part)
    found += [
        line("AdamW has more loss spikes at 10 times the lr (arXiv 2507.06464, Figure 10)",
             "1 and 10 times its best lr", of_growth(compared)),
        line("σ >= abs(m) is easily satisfied by most optimizers (arXiv 2604.15416, B.3)",
             f"in all but {100 * EASILY:g} % of the elements, from step {COLLAPSE_STEP} on",
             of_sigma(signs)),
        line("S3 ends below AdamW at every p and beta of the grid (arXiv 2507.06464, Figure 9)",
             "at S3's best lr; AdamW clipped at 1, at its own", of_grid(orders, adamw)),
    ]  # fmt: skip
    return {
        "rows": rows,
        "factors": factors,
        "pairs": compared,
        "noise": signs,
        "grid": orders,
        "adamw": adamw,
        "verdicts": found,
    }


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Loss of StoSignSGD's forms; the sign's noise by step; loss by p and beta."""
    left, middle, right = figure.subplots(1, 3)
    for i, found in enumerate(r for r in summary["rows"] if r["arm"].endswith("-ours")):
        label = f"{found['arm']} (lr {found['lr']:g})" + (", broke down" if down(found) else "")
        curve(left, records, found, color=f"C{i}", label=label)
    for i, found in enumerate(summary["noise"]):
        steps = [int(k) for k in found["signs"]]
        rms = [(1 - v["rms"] ** 2) ** 0.5 for v in found["signs"].values() if v["rms"] is not None]
        middle.plot(steps[: len(rms)], rms, "o-", color=f"C{i}", lw=1, ms=4, label=found["arm"])
    for i, beta in enumerate(sorted({r["beta"] for r in summary["grid"]})):
        own_ = [r for r in summary["grid"] if r["beta"] == beta and not down(r)]
        ends = [(r["p"], r["held_out"]["median"]) for r in own_]
        if ends:
            right.plot(*zip(*ends), "o-", color=f"C{i}", lw=1, ms=4, label=f"beta {beta:g}")
    if summary["grid"] and summary["adamw"]:
        right.axhline(summary["adamw"]["held_out"]["median"], color="k", lw=1, ls=":",
                      label="AdamW")  # fmt: skip
    left.set(xlabel="million tokens", ylabel="held-out loss (nats per token)",
             title="StoSignSGD")  # fmt: skip
    middle.set(xscale="log", xlabel="step", title="noise of the sign",
               ylabel="standard deviation, root mean square")  # fmt: skip
    right.set(xlabel="p", ylabel="final held-out loss (nats per token)", title="S3's p and beta")
    for axes in (left, middle, right):
        if axes.lines:
            finish(axes)
        else:  # not yet run
            axes.remove()


if __name__ == "__main__":
    main("papers_settings", __doc__, summarize, draw, (15, 4.2))
