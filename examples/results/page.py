"""Write docs/results.md, docs/papers.md and docs/advice.md from the JSON of the claims.

    python examples/results/page.py            # after the scripts of the claims
    python examples/results/page.py --check    # exit code 1 if a page is not what the JSON says

The prose lies in the templates *.md.j2 beside this file; every figure in it is looked up.
``expect`` in a template stops the page where the figures no longer say what the sentence says.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import again
import papers
import papers_page
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from records import RESULTS, committed, read_lines

HERE = Path(__file__).parent
PAGES = {"results.md.j2": "results.md", "advice.md.j2": "advice.md", "papers.md.j2": "papers.md"}
CLAIMS = (
    "converge", "fp8_state", "noise", "stosignsgd", "four_bits", "large", "plateau", "spikes",
    "finetune", "ema_stall", "ablation", "digits", *papers_page.CLAIMS,
)  # fmt: skip


def pm(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Mean ± half the range over the seeds; the value alone of a single one."""
    if value is None or value["mean"] is None:
        return "diverged" if value else "-"
    mean, half = value["mean"], value["half_range"]
    if value.get("seeds") == 1:
        return f"{mean:.{digits}f}"
    if abs(mean) >= 100:
        return f"{mean:.0f} ± {half:.0f}"
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def gap(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """How much larger a's mean is than b's, if that exceeds both spreads together; else 0."""
    difference = a["mean"] - b["mean"]
    return float(difference) if abs(difference) > a["half_range"] + b["half_range"] else 0.0


def at(row: Mapping[str, Any], place: int) -> float:
    """Held-out loss at one of the lrs beside a row's own."""
    loss: float = row["elsewhere"][place][1]["mean"]
    return loss


def interior(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every row's lr is better than the two beside it."""
    return all(r["held_out"]["mean"] < min(at(r, 0), at(r, 1)) for r in rows)


def below(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether one row ends below another at all three lrs."""
    here = a["held_out"]["mean"] < b["held_out"]["mean"]
    return here and all(at(a, i) < at(b, i) for i in (0, 1))


def against(value: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """The difference to the reference, or that there is none larger than the spread."""
    difference = gap(value, reference)
    return f"{difference:+.3f}" if difference else "within the spread"


def versus(
    value: Mapping[str, Any], reference: Mapping[str, Any], what: str, digits: int = 3
) -> str:
    """The difference to what the reference is called, in words."""
    difference = gap(value, reference)
    if not difference:
        return f"within the spread of {what}"
    return f"{abs(difference):.{digits}f} {'above' if difference > 0 else 'below'} {what}"


def by_chance(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """The chance that b has at most its share of all spikes if a and b had one rate.

    Fisher's exact test, one-sided; each spike counts as a run of its own.
    """
    runs, spikes = a["runs"] + b["runs"], a["spikes"] + b["spikes"]
    ways = [
        math.comb(b["runs"], k) * math.comb(a["runs"], spikes - k) for k in range(b["spikes"] + 1)
    ]
    return sum(ways) / math.comb(runs, spikes)


def losses_by_lr(rows: Sequence[Mapping[str, Any]], best: float | None) -> str:
    """Mean losses and spreads by lr with the number of seeds, the best lr's in bold."""
    parts = []
    for row in rows:
        loss = row["held_out"]
        text = f"**{pm(loss)}**" if row["lr"] == best else pm(loss)
        parts.append(f"{row['lr']:g}: {text} ({loss['seeds']})")
    return ", ".join(parts)


def best_lr(sweep: Sequence[Sequence[float | None]]) -> float:
    """The lr of the least loss of one sweep."""
    return min((loss, lr) for lr, loss in sweep if lr and loss is not None)[1]


def sweep_line(sweep: Sequence[Sequence[float | None]]) -> str:
    """Losses by lr, the least in bold."""
    best = best_lr(sweep)
    parts = []
    for lr, loss in sweep:
        text = "diverged" if loss is None else f"{loss:.0f}" if loss > 20 else f"{loss:.3f}"
        parts.append(f"{lr:g}: **{text}**" if lr == best else f"{lr:g}: {text}")
    return ", ".join(parts)


def expect(truth: bool, what: str) -> str:
    """Nothing, or ValueError: a sentence of the page is not what the figures say any more."""
    if not truth:
        raise ValueError(f"the figures no longer say: {what}")
    return ""


def context() -> dict[str, Any]:
    """The claims' summaries by name, rows by optimizer, and the environments."""
    made: dict[str, Any] = {}
    for claim in CLAIMS:
        whole = json.loads((RESULTS / f"{claim}.json").read_text("utf-8"))
        summary = {**whole["summary"], "facts": whole["facts"]}
        rows = summary["rows"]
        if isinstance(rows, list):
            summary["by_name"] = {row.get("arm") or row["optimizer"]: row for row in rows}
        made[claim] = summary
    short = made["fp8_state"]["short_rows"]
    made["fp8_state"]["short_by_name"] = {row["optimizer"]: row for row in short}
    paths = sorted(RESULTS.glob("environment*.json"), key=lambda p: int(p.stem[11:]))
    made["environments"] = [json.loads(p.read_text("utf-8")) for p in paths]
    for other in made["environments"][1:]:
        same = [t["sha256"] for t in other["texts"]] == [
            t["sha256"] for t in made["environments"][0]["texts"]
        ]
        expect(same, "all runs have one text")
    machines = [f"{len(e['gpus'])} {e['gpus'][0]}" for e in made["environments"]]
    made["machines"] = list(dict.fromkeys(machines))
    every = [record for path in committed() for record in read_lines(path)]
    elsewhere = {"plateau", *papers.MODELS}  # trained on a CPU; docs/papers.md
    made["records"] = [r for r in every if r["claim"] not in elsewhere]
    made["papers_of"] = {claim: made[claim]["verdicts"] for claim in papers_page.CLAIMS}
    made["papers_verdicts"] = [x for claim in papers_page.CLAIMS for x in made[claim]["verdicts"]]
    made["again"] = json.loads(again.KEPT.read_text("utf-8")) if again.KEPT.exists() else []
    made |= papers_page.context({r["id"]: r for r in every if r["id"].startswith("papers")})
    return made


def render() -> dict[str, str]:
    """Name and text of every page."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"pm": pm, "sweep": sweep_line, "best_lr": best_lr}
    environment.globals |= {
        "against": against,
        "by_chance": by_chance,
        "expect": expect,
        "gap": gap,
        "at": at,
        "interior": interior,
        "below": below,
        "losses_by_lr": losses_by_lr,
        "versus": versus,
    }
    values = context()
    made = {name: environment.get_template(source).render(values) for source, name in PAGES.items()}
    # What sets and expects in a template leave behind
    return {name: re.sub(r"\n{3,}", "\n\n", text).lstrip() for name, text in made.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    given = parser.parse_args()
    stale = []
    for name, text in render().items():
        path = RESULTS.parent / name
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(f"docs/{name}")
            if not given.check:
                path.write_text(text, "utf-8")
    print(f"{'not up to date' if given.check else 'written'}: {', '.join(stale) or 'none'}")
    if given.check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
