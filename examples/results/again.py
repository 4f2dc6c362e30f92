"""How far a run of each claim ends from its record when it is trained again.

    python examples/results/gpu_all.py --again --claims papers papers_muon --out build/again
    python examples/results/again.py build/again/runs.jsonl     # adds to docs/results/again.json

Of each claim it is the run with the least final loss among those of the first seed that start from
fresh weights.  A GPU adds in another order from run to run, so that losses differ; the spread
beside them is half the range over the seeds of the same arm at the same lr.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from records import RESULTS, committed, read_lines, read_records
from runs import Run, final_loss

KEPT = RESULTS / "again.json"
Record = Mapping[str, Any]


def chosen(records: Mapping[str, Record], claims: Collection[str]) -> list[Run]:
    """The run of each claim that is trained again, in the order of the claims."""
    made = []
    for claim in claims:
        own = [
            r
            for r in records.values()
            if r["claim"] == claim and r["status"] == "ok" and not (r["start"] or r["save"])
        ]
        first = [r for r in own if r["seed"] == min(x["seed"] for x in own)]
        if first:
            best = min(first, key=final_loss)
            made.append(Run(**{f.name: best[f.name] for f in fields(Run)}))
    return made


def rows(records: Mapping[str, Record], again: Iterable[Record]) -> list[dict[str, Any]]:
    """Each run with both of its losses, and the spread over seeds where there are several."""
    made = []
    for new in again:
        old = records[new["id"]]
        alike = ("claim", "optimizer", "lr", "tokens", "start")
        ends = [final_loss(r) for r in records.values() if all(r[k] == old[k] for k in alike)]
        made.append(
            {
                "id": new["id"],
                "claim": new["claim"],
                "recorded": final_loss(old),
                "again": final_loss(new),
                "spread": round((max(ends) - min(ends)) / 2, 4) if len(ends) > 1 else None,
            }
        )
    return sorted(made, key=lambda r: str(r["id"]))


def add(paths: Iterable[Path], kept: Path = KEPT) -> list[dict[str, Any]]:
    """Write the rows of these files, and those that were kept before, to ``kept``."""
    before = json.loads(kept.read_text("utf-8")) if kept.exists() else []
    new = [r for path in paths for r in read_lines(path) if r["status"] == "ok"]
    found = {r["id"]: r for r in [*before, *rows(read_records(committed()), new)]}
    made = [found[key] for key in sorted(found)]
    kept.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    return made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="runs.jsonl of gpu_all.py --again")
    for row in add(parser.parse_args().files):
        print(f"{row['id']}: {row['recorded']:.4f}, again {row['again']:.4f}")


if __name__ == "__main__":
    main()
