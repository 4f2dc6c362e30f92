"""Every optimizer of the catalogue at its own best lr: a small convnet on scikit-learn's digits.

    python examples/results/gallery.py [--quick]

For the pages of the documentation's site: how each one trains, not which is best, for which 1,797
pictures say too little.  The lr is that of the least held-out loss of a sweep around the spec's
default, which goes on until its best lies inside; what is shown has other seeds.  A CPU trains all
of it (digits.py), and its records lie in docs/results/gallery.json: what is there is not trained
again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from claims import Record, Summary, of_kind, write
from digits import BATCH, QUICK, Length, load, sweep_means, train_all
from gpu_all import environment
from optimizers import rate
from records import RESULTS
from torch import Tensor

import signconv
from signconv.pipeline.catalogue import GENERATED, Entry

FULL = Length(epochs=20, first_lrs=3, seeds=(1, 2, 3), sweep_seeds=(11,), every=1, widest=11)
ENTRIES = {entry.label: entry for entry in GENERATED}


def class_of(entry: Entry) -> Any:
    """The optimizer class of a row of the catalogue."""
    return signconv.compile(entry.spec, convert=entry.convert, state=entry.state, math=entry.math)


def lacking(entry: Entry) -> list[str]:
    """Its extra inputs, which this training has none of."""
    return sorted(x.name for x in signconv.pipeline.resolve(entry.spec).extras)


def build(name: str, weights: list[Tensor], lr: float, seed: int) -> torch.optim.Optimizer:
    """The optimizer of a label, all but its lr as its spec says."""
    made: torch.optim.Optimizer = class_of(ENTRIES[name])(weights, lr=lr, seed=seed)
    return made


def middle(entry: Entry) -> int:
    """Index on the grid (optimizers.rate) of the lr next to the spec's default."""
    default = math.log10(class_of(entry)([torch.zeros(1)]).defaults["lr"])
    return min(range(-12, 4), key=lambda i: abs(math.log10(rate(i)) - default))


def slim(record: Record) -> dict[str, Any]:
    """A record without its training loss, and of a sweep without all but the end."""
    made = {k: v for k, v in record.items() if k != "train_loss"}
    if record["id"].startswith("sweep/"):
        made["held_out"] = record["held_out"][-1:]
    return made


def summarize(records: Mapping[str, Record], names: list[str]) -> Summary:
    """One row per optimizer: the lrs tried, and the mean curve at the best."""
    rows = []
    for name in names:
        means = sweep_means(records, name)
        best = min(means, key=lambda lr: (means[lr], lr), default=None)
        own = [r for r in of_kind(records, "digits", name) if r["lr"] == best]
        if len(own) < len(FULL.seeds):
            continue  # not yet run
        ended = [r for r in own if r["status"] == "ok"]
        curve = [
            [step, round(statistics.fmean(dict(map(tuple, r["held_out"]))[step] for r in ended), 5)]
            for step, _ in (ended[0]["held_out"] if ended else [])
        ]
        rows.append({
            "optimizer": name,
            "lr": best,
            "lrs": [[lr, round(x, 5) if math.isfinite(x) else None] for lr, x in means.items()],
            "runs": len(ended),
            "diverged": len(own) - len(ended),
            "held_out": curve,
        })  # fmt: skip
    return {"rows": rows}


def main() -> None:
    """Command line; no GPU and no text is needed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 epochs, one lr and optimizer")
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.out or (Path("build/results") if given.quick else RESULTS)
    parts, facts = load()
    without = {name: lacking(entry) for name, entry in ENTRIES.items()}
    names = [name for name, missing in without.items() if not missing]
    names = names[:1] if given.quick else names
    length = QUICK if given.quick else FULL
    middles = {name: middle(ENTRIES[name]) for name in names}
    facts = {**environment(), **facts, "length": vars(length), "batch": BATCH}
    facts["not_trained"] = {name: missing for name, missing in without.items() if missing}
    path = out / "gallery.json"
    before = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else []

    def keep(records: Mapping[str, Record]) -> None:
        write("gallery", out, facts, summarize(records, names), [slim(r) for r in records.values()])

    train_all(length, parts, middles, build, {r["id"]: r for r in before}, keep)
    print(f"written: {out / 'gallery'}.json")


if __name__ == "__main__":
    main()
