"""What the scripts of the claims share: their command line, where records come from, what is kept.

    python examples/results/fp8_state.py           # draws from docs/results/runs_*.jsonl
    python examples/results/fp8_state.py --quick   # trains a tiny model on the CPU, then draws

A script writes OUT/<claim>.json and OUT/<claim>.png.  With --quick the JSON has its raw records in
it; without, they stay in docs/results/runs_*.jsonl and the JSON names them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import papers
import plan
import torch
from gpt import TINY, TINY_TOKENS
from gpu_all import environment, plain
from records import RESULTS, committed, read_records
from runs import Run, Trainer, final_loss
from texts import load_texts

Record = Mapping[str, Any]
Summary = dict[str, Any]

#: Runs of --quick: too short to say anything, long enough to run every line.
QUICK = plan.Scale(
    full=40 * TINY.tokens,
    short=30 * TINY.tokens,
    finetune=10 * TINY.tokens,
    first_lrs=1,
    table=("adamw-fp32", "adamw-raw", "stosignsgd", "s3gd-raw"),
    spikes=("adamw-fp32", "s3-p3-same-nesterov"),
    ablation=("adamw", "adamw-expected", "adamw-stosign"),
    finetuned=("adamw-fp32", "s3gd"),
    extras=(),
    near=("adamw-fp32",),
    defaults=("adamw-fp32",),
    long_spikes=("adamw-fp32",),
    more_seeds=(),
    noise=("adamw", "adamw-stosign-then-golden"),
    stosignsgd=("stosignsgd-99",),
    four_bits=("adamw-fp4", "adamw-fp32"),
    four_bits_closer=("adamw-fp4",),
    large=("adamw", "adamw-fp4"),
    large_seeds=(1,),
    plateau=("adamw-stosign",),
    plateau_tokens=20 * TINY.tokens,
    papers=papers.Part(
        tokens=20 * TINY.tokens,
        finetune=10 * TINY.tokens,
        arms=(
            "stosignsgd-ours",
            "adamw-ours",
            "stosignsgd-theirs",
            "adamw-theirs",
            "s3-ours",
            "stosignsgd-paper-ours",
            "adamw-noclip-ours",
            "rmsprop-stosign-ours",
            "s3-p3-0.95",
            "s3gd-ours",
            "adamw-fp32-ours",
            "torch-muon",
            "muon",
            "muon-fp4",
        ),
        first_lrs=1,
        seeds=(1,),
    ),
)
QUICK_BYTES = 1_500_000  # of each kind of text
#: What scripts train with --quick beside the claim of their own name.
ASKED = {
    "papers_speed": ["papers"],
    "papers_s3": ["papers", "papers_s3"],
    "papers_settings": ["papers", "papers_s3", "papers_settings"],
    "papers_finetune": ["papers", "papers_finetune"],
    "papers_larger": ["papers", "papers_s3", "papers_110", "papers_matmul", "papers_336"],
    "papers_muon": ["papers", "papers_muon", "papers_muon_110"],
}


def train_quick(claim: str, scale: plan.Scale) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train the claim's plan with the tiny model in this process; records and facts."""
    torch.set_num_threads(1)  # the model is too small for two, and waiting threads spin
    done: dict[str, Any] = {}
    size = TINY_TOKENS if claim.startswith("papers") else TINY
    asked = ASKED.get(claim, [claim])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(size, torch.device("cpu"), Path(folder), compiled=False)
        texts = load_texts(QUICK_BYTES, size.vocab, Path(folder, "tokens"))
        for text in texts:
            trainer.add_text(text)

        def following() -> Run | None:
            have = {p.name for p in Path(folder).glob("*.pt")}
            return next(plan.pending(done, have, scale, asked), None)

        while run := following():
            done[run.id] = trainer.train(run)
            print(f"{run.id}: held-out {final_loss(done[run.id]):.4f}", flush=True)
    facts = {
        **environment(),
        "model": vars(size),
        "scale": vars(scale),
        "texts": [text.facts() for text in texts],
    }
    return done, facts


def kept(records: Mapping[str, Record], claim: str, scale: plan.Scale) -> dict[str, Record]:
    """The records that a claim rests on, sweeps included, by id."""
    table, stall = {*scale.table, *scale.extras}, set(scale.stall)
    rests: dict[str, dict[tuple[str, ...], set[str]]] = {
        "fp8_state": {("sweep", "full", "short", "near"): table},
        "spikes": {
            ("spikes", "long-spikes"): set(scale.spikes),
            ("sweep", "full"): {plan.REFERENCE},
        },
        "finetune": {("finetune", "finetune-sweep"): set(scale.finetuned)},
        "ablation": {("sweep", "short"): set(scale.ablation)},
        "ema_stall": {("sweep", "short"): stall, ("full",): {"s3gd-raw", "s3gd"}},
        "noise": {("noise",): set(scale.noise)},
        "stosignsgd": {("stosignsgd",): set(scale.stosignsgd)},
        "four_bits": {("four_bits",): set(scale.four_bits)},
        "large": {("large",): set(scale.large)},
        "plateau": {("plateau",): set(scale.plateau)},
        "papers_speed": {("papers",): papers.arms()},
        "papers_s3": {("papers",): papers.arms()},
        "papers_settings": {("papers",): papers.arms()},
        "papers_finetune": {("papers_finetune",): papers.arms()},
        "papers_larger": {
            ("papers", "papers_110", "papers_matmul", "papers_336"): papers.arms(),
        },
        "papers_muon": {
            ("papers_muon", "papers_muon_110"): papers.arms(),
            ("papers",): {"adamw-ours"},
        },
    }
    wanted, made = rests[claim], {}
    for key in sorted(records):
        kind, name, *_ = key.split("/")
        if any(kind in kinds and name in names for kinds, names in wanted.items()):
            made[key] = records[key]
    return made


def main(
    claim: str,
    description: str | None,
    summarize: Callable[[Mapping[str, Record], plan.Scale], Summary],
    draw: Callable[[Mapping[str, Record], Summary, Any], None],
    size: tuple[float, float] = (11, 4.2),
    extra: Callable[[bool], Summary] | None = None,
) -> None:
    """Command line of one claim.

    summarize makes the figures from the records; draw fills a matplotlib figure of ``size``
    inches; extra adds figures that come from no training run.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model on two CPU cores")
    parser.add_argument("--records", type=Path, nargs="*", default=committed())
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON and the PNG")
    given = parser.parse_args()
    out = given.out or (Path("build/results") if given.quick else RESULTS)
    scale = QUICK if given.quick else plan.FULL_SCALE
    if given.quick:
        records, facts = train_quick(claim, scale)
    else:
        if absent := [p for p in given.records if not p.exists()]:
            raise SystemExit(
                f"error: no {absent[0]}: train with examples/results/gpu_all.py, or use --quick"
            )
        records, facts = read_records(given.records), {}
    records = kept(records, claim, scale)
    summary = summarize(records, scale)
    if extra:
        summary |= extra(given.quick)
    write(claim, out, facts, summary, list(records.values()) if given.quick else sorted(records))
    drawn = bool(records) and picture(
        out / f"{claim}.png", lambda figure: draw(records, summary, figure), size
    )
    print(f"written: {out / claim}.json{' and .png' if drawn else '; there is nothing to draw'}")


def write(claim: str, out: Path, facts: Any, summary: Summary, runs: Sequence[Any] = ()) -> None:
    """OUT/<claim>.json; runs: records, or the ids of committed ones."""
    out.mkdir(parents=True, exist_ok=True)
    made = {"claim": claim, "facts": facts, "summary": summary, "runs": runs}
    text = json.dumps(made, allow_nan=False, default=plain)
    # One run a line: a diff of two such files can be read
    text = text.replace('{"id": ', '\n{"id": ')
    (out / f"{claim}.json").write_text(text + "\n", "utf-8")


def picture(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> bool:
    """Draw one PNG without a display; False: none of its panels would show anything."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    if not any(axes.has_data() for axes in figure.axes):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True


# ---------------------------------------------------------------- numbers


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, half the range, and how many seeds; None where a run diverged."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return {"mean": None, "half_range": None, "seeds": 0, "diverged": len(values)}
    return {
        "mean": round(statistics.fmean(finite), 5),
        "half_range": round((max(finite) - min(finite)) / 2, 5),
        "seeds": len(finite),
        "diverged": len(values) - len(finite),
    }


def of_kind(records: Mapping[str, Record], kind: str, name: str) -> list[Record]:
    """The records whose ids begin with kind/name/, by id."""
    return [records[i] for i in sorted(records) if i.startswith(f"{kind}/{name}/")]


def sweep_table(records: Mapping[str, Record], kind: str, name: str) -> list[list[float | None]]:
    """[lr, final held-out loss] of one sweep, by lr."""
    rows = [(r["lr"], final_loss(r)) for r in of_kind(records, kind, name)]
    return [[lr, loss if math.isfinite(loss) else None] for lr, loss in sorted(rows)]
