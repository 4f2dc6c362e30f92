"""A bar chart of a record: the fraction of a copy that each optimizer reaches on each workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from signconv.errors import BenchError

FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raise BenchError, before anything is measured, for a chart that cannot be drawn."""
    if path.suffix not in FORMATS:
        raise BenchError("SC715", f"--chart {path.name}: the name must end in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BenchError("SC609", "--chart needs matplotlib: pip install matplotlib") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError("SC717", f"cannot write {path}: {error.strerror or error}") from error


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the chart; BenchError where there are no rows or the file cannot be written."""
    check(path)
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [r for r in record["rows"] if r["kind"] == "ours" and "error" not in r]
    if not rows:
        raise BenchError("SC716", "there is nothing to draw: no optimizer was measured")
    labels = list(dict.fromkeys(r["label"] for r in rows))
    keys = [w["key"] for w in record["workloads"]]
    titles = {w["key"]: f"{w['key']}, {w['title']}" for w in record["workloads"]}
    found = {(r["label"], r["workload"]): r["of_copy"] for r in rows}
    thick = 0.8 / len(keys)
    height = 1.6 + 0.28 * len(labels) * max(len(keys), 2)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
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
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=130, format=path.suffix[1:])
    except (OSError, ValueError) as error:
        raise BenchError("SC717", f"cannot draw {path}: {error}") from error
    finally:
        plt.close(figure)
