"""Tokens to equal loss of StoSignSGD against the sign methods and AdamW, in both regimes of FP8.

    python examples/results/papers_speed.py [--quick]

The source: 1.44 to 2.14 times fewer tokens than the baselines in FP8 pretraining, where AdamW
fails (arXiv 2604.15416, abstract and Figure 2) because its state is all zeros (Table 12).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import papers
from claims import Record, Summary, main
from plan import Scale
from runs import COLLAPSE_STEP
from verdicts import (
    NOT_RUN,
    OPEN,
    Verdict,
    broken_down,
    by_lr,
    down,
    faster,
    line,
    row,
    settled,
    speedup,
    together,
)

LEAST = 1.44  # the source's smallest factor
OURSELVES = "stosignsgd"
BASELINES = ("signum", "lion", "adamw")
#: Regimes of FP8, and the conditions that they are.
REGIMES = {
    "ours": "state of FP8 with block scales, rounded without bias, fp32 masters",
    "theirs": "bf16 masters, E5M2 gradients, raw E4M3 state",
    "theirs64": "the same, gradients 64 times as large",
}
EMPTY = 0.9995  # share of zeros that Table 12 prints as 100.0 %
CLAIM = (
    "StoSignSGD needs 1.44 to 2.14 times fewer tokens than the baselines in FP8 (arXiv 2604.15416)"
)


def speedups(records: Mapping[str, Record], rows: Mapping[str, Summary | None]) -> dict[str, Any]:
    """Factors of the first row against each of the others that has runs."""
    own, *_ = rows.values()
    others = {n: r for n, r in rows.items() if r is not None and r is not own}
    return {} if own is None else {n: speedup(records, own, r) for n, r in others.items()}


def regime(records: Mapping[str, Record], name: str, part: papers.Part) -> Summary:
    """Rows, factors and the verdict of one regime."""
    rows = {n: row(records, f"{n}-{name}", part) for n in (OURSELVES, *BASELINES)}
    factors = speedups(records, rows)
    verdict, why = faster(rows, factors, LEAST)
    held = collapse(records, name)
    return {
        "rows": [r for r in rows.values() if r is not None],
        "factors": factors,
        "verdict": verdict,
        "why": why,
        "collapse": held,
        "zeros": zeros_table(held),
    }


# ---------------------------------------------------------------- what the state holds


def collapse(records: Mapping[str, Record], name: str) -> list[Summary]:
    """What state holds at the step of their Table 12, by layer, at the lr nearest to 3e-4."""
    made = []
    for n in (*BASELINES, OURSELVES):
        runs = [r for own in by_lr(records, f"{n}-{name}").values() for r in own if "layers" in r]
        if runs:
            run = min(runs, key=lambda r: abs(math.log(r["lr"] / 3e-4)))
            zeros = run["zero_shares"].get(str(COLLAPSE_STEP), {})
            made.append(
                {
                    "arm": f"{n}-{name}",
                    "lr": run["lr"],
                    "zeros": zeros,
                    "layers": run["layers"],
                    "histogram": run.get("histogram"),
                    "sign_means": run.get("sign_means"),
                    "broken": broken_down(run),
                }
            )
    return made


def zeros_table(held: Sequence[Summary]) -> Summary:
    """Shares of zeros, a line a layer and a column a moment of an arm; the largest abs(g) that any
    of them got which did not break down."""
    trained = [arm for arm in held if not arm["broken"]] or held
    columns = [(arm, m) for arm in held for m in arm["zeros"]]
    layers = held[0]["layers"] if held else ()
    return {
        "columns": [f"{arm['arm'].rpartition('-')[0]} {m}" for arm, m in columns],
        "rows": [
            {
                "layer": layer,
                "shares": [arm["layers"][layer][m] for arm, m in columns],
                "largest_g": max(arm["layers"][layer]["largest_g"] for arm in trained),
            }
            for layer in layers
        ],
        "lrs": {arm["arm"]: arm["lr"] for arm in held},
        "broken": [arm["arm"] for arm in held if arm["broken"]],
    }


def of_zeros(regimes: Mapping[str, Summary]) -> Verdict:
    """The verdict on Table 12: AdamW's moments of the token embedding are all zeros at step 103."""
    cases = {}
    for name, found in regimes.items():
        for arm in found["collapse"]:
            if arm["arm"] == f"adamw-{name}":
                shares = arm["layers"]["embedding"]
                cases[name] = all(shares[m] >= EMPTY for m in ("m", "v"))
    if len(cases) < len(regimes):
        return (OPEN, "not yet run in every regime") if cases else (NOT_RUN, "")
    return together(cases)


def of_failure(regimes: Mapping[str, Summary]) -> Verdict:
    """The verdict on "AdamW fails where StoSignSGD trains": at the best lr of each."""
    cases = {}
    for name, found in regimes.items():
        rows = {r["arm"]: r for r in found["rows"]}
        both = [rows.get(f"{n}-{name}") for n in ("adamw", OURSELVES)]
        if not settled(both):
            return (OPEN, "sweeps or seeds are missing") if any(rows) else (NOT_RUN, "")
        theirs, own = (r for r in both if r is not None)
        cases[name] = down(theirs) and not down(own)
    return together(cases)


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """By regime."""
    rows = {name: regime(records, name, scale.papers) for name in REGIMES}
    found = [line(CLAIM, REGIMES[n], (rows[n]["verdict"], rows[n]["why"])) for n in REGIMES]
    each = "each regime by its name below"
    found += [
        line("AdamW fails in FP8, where StoSignSGD trains (same)", each, of_failure(rows)),
        line(
            "AdamW's moments of the token embedding are all zeros at step 103 (same, Table 12)",
            each, of_zeros(rows),
        ),
    ]  # fmt: skip
    return {"rows": rows, "verdicts": found}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Held-out loss against tokens at the best lr, one panel a regime; below, sizes of m."""
    panels = figure.subplots(2, len(REGIMES), squeeze=False)
    for column, name in enumerate(REGIMES):
        above, under = panels[0][column], panels[1][column]
        for i, found in enumerate(summary["rows"][name]["rows"]):
            label = f"{found['arm']} (lr {found['lr']:g})" + (", broke down" if down(found) else "")
            curve(above, records, found, color=f"C{i}", label=label)
        for i, found in enumerate(summary["rows"][name]["collapse"]):
            kept = found["histogram"]
            if found["broken"]:  # what its m is at the end says nothing
                under.plot([], [], color=f"C{i}", label=f"{found['arm']}: broke down")
            elif kept:
                edges = kept["log2"]
                zero = f"{found['arm']}: {100 * kept['zero']:.0f} % zeros"
                under.step([edges[0] - 2, *edges], kept["shares"], color=f"C{i}", label=zero)
        above.set(title=name, xlabel="million tokens", ylabel="held-out loss (nats per token)")
        under.set(xlabel="log2 abs(m) at the end", ylabel="share of all m")
        for axes in (above, under):
            finish(axes)


def curve(axes: Any, records: Mapping[str, Record], found: Summary, **look: Any) -> None:
    """Held-out loss of a row's runs against million tokens, where it is not above its start; a
    label for the first alone."""
    label = look.pop("label")
    for j, r in enumerate(by_lr(records, found["arm"], found["kind"])[found["lr"]]):
        start = r["held_out"][0][1]
        steps, losses = zip(*r["held_out"][1:])
        tokens = [s * r["tokens_per_step"] / 1e6 for s in steps]
        ends = [math.nan if x is None or x > start else x for x in losses]
        axes.plot(tokens, ends, lw=1, label=label if j == 0 else None, **look)


def finish(axes: Any) -> None:
    """A grid, and a legend where there is something to say."""
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


if __name__ == "__main__":
    main("papers_speed", __doc__, summarize, draw, (13, 7))
