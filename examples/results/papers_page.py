"""What docs/papers.md is written from: the plan as tables, and what the figures say so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import papers
from claims import Record
from gpt import GPT42, GPT110, GPT336, MODELS
from optimizers import CHOICES, rate
from verdicts import factor_text, lrs_text, middle, short

#: The scripts whose JSON the page reads.
CLAIMS = (
    "papers_speed",
    "papers_s3",
    "papers_settings",
    "papers_finetune",
    "papers_larger",
    "papers_muon",
)


def stage_rows(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """One row a stage: what it adds, what it costs, what of it is done."""
    rows = []
    for stage, least, most in papers.reckoned():
        known = {run.id for run in papers.wanted(records, stage, papers.ALL)}
        minutes = papers.seconds(stage) / 60
        rows.append(
            {
                "stage": stage,
                "runs": f"{least}" if least == most else f"{least} to {most}",
                "minutes": (least * minutes, most * minutes),
                "done": len(known & set(records)),
                "lrs": lrs_of(stage),
                "tokens": f"{stage.tokens / 1e6:.0f}M",
            }
        )
    return rows


def lrs_of(stage: papers.Stage) -> str:
    """Which lrs a stage runs, in words."""
    if stage.kind == "middle":
        return "the middle of the sweep"
    if stage.kind == "sweep":
        return "3 to 5, a half decade apart"
    if stage.kind == "seeds":
        return "the best"
    times = {0: "1", 1: "3", 2: "10"}
    return f"{' and '.join(times[f] for f in stage.factors)} times the best"


def arm_rows() -> list[dict[str, Any]]:
    """One row an arm: what an entry of optimizers.CHOICES says, in words."""
    rows = []
    for name in sorted(papers.arms()):
        choice = CHOICES[name]
        spec = choice.spec.rpartition("/")[2].removeprefix("s3_forms.py:")
        spec += " (a reconstruction)" if spec == "stosignsgd_v2" else ""
        hypers = ", ".join(f"{k} {v}" for k, v in choice.hypers.items())
        spec += f", {choice.rest} beside it" if choice.rest else ""
        state = "raw E4M3, nearest" if choice.raw else choice.state
        rows.append(
            {
                "name": name,
                "optimizer": spec + (f" --convert {choice.convert}" if choice.convert else ""),
                "hypers": hypers or "defaults",
                "state": state,
                "gradient": "E5M2" if choice.gradient == "e5m2" else "fp32",
                "masters": choice.masters,
                "clip": "1" if choice.clip else "no",
                "scale": f"{choice.scale:g}" if choice.scale != 1 else "-",
                "decay": f"{choice.decay:g}",
                "middle": f"{rate(choice.middle):g}",
            }
        )
    return rows


def context(records: Mapping[str, Record]) -> dict[str, Any]:
    """What the template needs beside the claims' summaries."""
    rows = stage_rows(records)
    return {
        "stages": rows,
        "together": tuple(sum(r["minutes"][i] for r in rows) for i in (0, 1)),
        "first_stages": tuple(
            sum(r["minutes"][i] for r in rows if r["stage"].number <= 11) for i in (0, 1)
        ),
        "arm_rows": arm_rows(),
        "sizes": {"gpt42": GPT42, "gpt110": GPT110, "gpt336": GPT336},
        "models": MODELS,
        "seeds": papers.SEEDS,
        "tokens": papers.TOKENS,
        "run_seconds": {m: papers.OVERHEAD + papers.TOKENS / r for m, r in papers.RATE.items()},
        "lrs_text": lrs_text,
        "middle": middle,
        "factor_text": factor_text,
        "short": short,
        "papers_claims": CLAIMS,
    }
