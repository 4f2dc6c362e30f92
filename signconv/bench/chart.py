"""A bar chart of a record: the fraction of a copy that each optimizer reaches on each workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from signconv import pictures
from signconv.errors import BenchError


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the chart; BenchError where there are no rows, PictureError for the file."""
    pictures.check(path)
    rows = [r for r in record["rows"] if r["kind"] == "ours" and "error" not in r]
    if not rows:
        raise BenchError("SC716", "there is nothing to draw: no optimizer was measured")
    labels = list(dict.fromkeys(r["label"] for r in rows))
    keys = [w["key"] for w in record["workloads"]]
    titles = {w["key"]: f"{w['key']}, {w['title']}" for w in record["workloads"]}
    found = {(r["label"], r["workload"]): r["of_copy"] for r in rows}
    thick = 0.8 / len(keys)
    height = 1.6 + 0.28 * len(labels) * max(len(keys), 2)
    with pictures.drawn(path, figsize=(9, height)) as axes:
        for i, key in enumerate(keys):
            at = [n + (i - (len(keys) - 1) / 2) * thick for n in range(len(labels))]
            values = [found.get((label, key), 0.0) for label in labels]
            bars = axes.barh(at, values, height=0.92 * thick, label=titles[key])
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.axvline(1.0, color="0.3", linewidth=1, linestyle="--", label="torch's copy")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * max(1.0, *(r["of_copy"] for r in rows)))
        axes.set_xlabel("fraction of a copy's bandwidth, bytes counted once per read and write")
        axes.set_title(record["machine"]["name"], loc="left")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
