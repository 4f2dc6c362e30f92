"""The committed records: docs/results/runs_<claim>.jsonl, a run a line; those of the papers' two
regimes in files of their own, runs_papers.theirs.jsonl.

    python examples/results/records.py build/1/runs.jsonl build/2/runs.jsonl    # adds theirs

A line leaves out its claim, which the file's name says, and what is as in ``USUAL``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
#: What most runs have in common.
USUAL: dict[str, Any] = {
    "text": "python",
    "start": "",
    "save": "",
    "evaluations": 10,
    "status": "ok",
    "tokens_per_step": 32_768,
    "other_held_out": {},
    "spikes": 0,
    "detail": False,
}


def committed(folder: Path = RESULTS) -> list[Path]:
    """The files of the committed records, by name."""
    return sorted(folder.glob("runs_*.jsonl"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a file, whole: of one claim, or as gpu_all.py writes them."""
    claim = path.stem.removeprefix("runs_").partition(".")[0]
    usual = {"claim": claim, **USUAL} if path.stem != claim else {}
    lines = path.read_text("utf-8").splitlines()
    made: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for record in made if usual else ():  # behind what the line has, which is written as it was
        for key, value in {**usual, "steps_done": record["steps"]}.items():
            record.setdefault(key, value)
    return made


def read_records(paths: Collection[Path]) -> dict[str, dict[str, Any]]:
    """Records by run id; those of failed and cut runs are left out, so that they run again."""
    every = (record for path in paths for record in read_lines(path))
    return {r["id"]: r for r in every if r["status"] in ("ok", "diverged")}


SHOWN_LRS = (1e-4, 3e-4)


def shortened(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what ``read_lines`` puts back; what its state held by layer is kept of the
    runs at two lrs, which pages show (``papers_speed.collapse``)."""
    usual = {**USUAL, "claim": record["claim"], "steps_done": record.get("steps")}
    left_out = () if record.get("lr") in SHOWN_LRS else ("layers", "histogram")
    return {
        k: v for k, v in record.items() if k not in left_out and (k not in usual or v != usual[k])
    }


def file_of(record: Mapping[str, Any]) -> str:
    """The name of a record's file."""
    regime = str(record.get("optimizer", "")).rpartition("-")[2]
    apart = record["claim"] == "papers" and regime.startswith("theirs")
    return f"runs_{record['claim']}{'.theirs' * apart}.jsonl"


def write(records: Iterable[Mapping[str, Any]], folder: Path = RESULTS) -> list[Path]:
    """FOLDER/runs_<claim>.jsonl for each claim among the records."""
    lines: dict[str, list[str]] = defaultdict(list)
    for record in records:
        lines[file_of(record)].append(json.dumps(shortened(record), allow_nan=False) + "\n")
    paths = []
    for name, those in lines.items():
        paths.append(folder / name)
        paths[-1].write_text("".join(those), "utf-8")
    return paths


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="runs.jsonl of gpu_all.py")
    given = parser.parse_args()
    written = write(read_records([*committed(), *given.files]).values())
    print(f"written: {', '.join(p.name for p in written)}")


if __name__ == "__main__":
    main()
