"""Tokens to equal loss of StoSignSGD against the sign methods and AdamW, in both regimes of FP8.

    python examples/results/papers_speed.py [--quick]

The source: 1.44 to 2.14 times fewer tokens than the baselines in FP8 pretraining, where AdamW
fails (arXiv 2604.15416, abstract and Figure 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import papers
from claims import Record, Summary, main
from plan import Scale
from runs import COLLAPSE_STEP
from verdicts import by_lr, faster, row, speedup

LEAST = 1.44  # the source's smallest factor
OURSELVES = "stosignsgd"
BASELINES = ("signum", "lion", "adamw")
REGIMES = ("ours", "theirs", "theirs64")


def regime(records: Mapping[str, Record], name: str, part: papers.Part) -> Summary:
    """Rows, factors and the verdict of one regime."""
    rows = {n: row(records, f"{n}-{name}", part) for n in (OURSELVES, *BASELINES)}
    own = rows[OURSELVES]
    factors: dict[str, Any] = {}
    for n in BASELINES:
        other = rows[n]
        if own is not None and other is not None:
            factors[n] = speedup(records, own, other)
    verdict, why = faster(rows, factors, LEAST)
    return {
        "rows": [r for r in rows.values() if r is not None],
        "factors": factors,
        "verdict": verdict,
        "why": why,
        "collapse": collapse(records, name),
    }


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
                    "status": run["status"],
                }
            )
    return made


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """By regime."""
    return {"rows": {name: regime(records, name, scale.papers) for name in REGIMES}}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Held-out loss against tokens at the best lr, one panel a regime; below, sizes of m."""
    panels = figure.subplots(2, len(REGIMES), squeeze=False)
    for column, name in enumerate(REGIMES):
        above, under = panels[0][column], panels[1][column]
        for i, found in enumerate(summary["rows"][name]["rows"]):
            for j, r in enumerate(by_lr(records, found["arm"])[found["lr"]]):
                steps, losses = zip(*r["held_out"][1:])
                tokens = [s * r["tokens_per_step"] / 1e6 for s in steps]
                curve = [math.nan if x is None else x for x in losses]
                label = f"{found['arm']} (lr {found['lr']:g})" if j == 0 else None
                above.plot(tokens, curve, color=f"C{i}", lw=1, label=label)
        for i, found in enumerate(summary["rows"][name]["collapse"]):
            if kept := found["histogram"]:
                edges = kept["log2"]
                zero = f"{found['arm']}: {100 * kept['zero']:.0f} % zeros"
                under.step([edges[0] - 2, *edges], kept["shares"], color=f"C{i}", label=zero)
        above.set(title=name, xlabel="million tokens", ylabel="held-out loss (nats per token)")
        under.set(xlabel="log2 abs(m) at the end", ylabel="share of all m")
        for axes in (above, under):
            axes.grid(alpha=0.25)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7)


if __name__ == "__main__":
    main("papers_speed", __doc__, summarize, draw, (13, 7))
