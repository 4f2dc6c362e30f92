"""The tables of a record, as plain text cells; rendered by Rich and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.markup import escape

from signconv.bench.measure import CPU

NONE = "–"
Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


#: The limits, by their key in a row.
NAMES = {"bytes_ms": "bytes", "issue_ms": "issue", "integer_ms": "integer"}


@dataclass(frozen=True)
class Table:
    """A titled table; the first column is left-aligned, the others right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(record: dict[str, Any]) -> list[Table]:
    """One table per workload, then the two limits, then the peers; empty ones are left out."""
    ours = [r for r in record["rows"] if r["kind"] == "ours"]
    peers = [r for r in record["rows"] if r["kind"] == "peer"]
    made = [
        _workload(w, [r for r in ours if r["workload"] == w["key"]]) for w in record["workloads"]
    ]
    good = [r for r in ours if "error" not in r]
    return [t for t in (*made, _limits(good), _peers(peers, good)) if t.rows]


# ---------------------------------------------------------------- cells


def number(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits, without an exponent; a dash for None."""
    if value is None:
        return NONE
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits - 1 - magnitude, 0), 7)}f}"


def ratio(value: Any) -> str:
    return NONE if value is None else f"{value:.3f}"


def _value(key: str, digits: int = 4) -> Callable[[Row], str]:
    return lambda row: number(row.get(key), digits)


def _bytes(key: str) -> Callable[[Row], str]:
    return lambda row: NONE if row.get(key) is None else f"{row[key]:.2f}"


def _count(key: str) -> Callable[[Row], str]:
    return lambda row: NONE if row.get(key) is None else f"{row[key]:,.4g}"


def _label(row: Row) -> str:
    return str(row["label"])


def _note(row: Row) -> str:
    words = [row[k] for k in ("error", "capture_error", "profiler_error") if row.get(k)]
    return "; ".join(words) or NONE


def _made(title: str, columns: list[Column], rows: list[Row], note: str = "") -> Table:
    """A table without the columns that have nothing to say."""
    cells = [(name, [cell(r) for r in rows]) for name, cell in columns]
    kept = [(name, column) for name, column in cells if set(column) != {NONE}]
    body = tuple(zip(*(column for _, column in kept), strict=True))
    return Table(title, tuple(name for name, _ in kept), body, note)


# ---------------------------------------------------------------- the tables


def _workload(w: dict[str, Any], rows: list[Row]) -> Table:
    copies = [f"a copy {w['copy']['gbps']:,.4g} GB/s"]
    copies += [f"a list copy ({k}) {x['gbps']:,.4g} GB/s" for k, x in w["list_copy"].items()]
    tensors = f"{w['tensors']:,} tensor{'s' * (w['tensors'] > 1)}"
    title = f"{w['key']}, {w['title']}: {tensors}, {w['elements']:,} elements; {', '.join(copies)}"
    columns: list[Column] = [
        ("optimizer", _label),
        ("backend", lambda r: r.get("backend") or NONE),
        ("ms", _value("device_ms")),
        ("kernel ms", _value("kernel_ms")),
        ("of a copy", lambda r: ratio(r.get("of_copy"))),
        ("of a list copy", lambda r: ratio(r.get("of_list_copy"))),
        ("GB/s", _value("gbps")),
        ("host µs", _value("host_us", 3)),
        ("state B", _bytes("state_bytes")),
        ("moved B", _bytes("moved_bytes")),
        ("launches", _count("launches")),
        ("copies", _count("copies")),
        ("peak bytes", _count("peak_bytes")),
        ("note", _note),
    ]
    return _made(title, columns, rows)


def _limits(ours: list[Row]) -> Table:
    """How far each step is from the two limits: limit over time, 1 is the best there can be."""

    def limit(row: Row, key: str) -> float | None:
        found: float | None = (row.get("limits") or {}).get(key)
        return found

    def alone(key: str) -> Callable[[Row], str]:
        return lambda row: number(limit(row, key))

    def share(key: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            found = limit(row, key)
            return ratio(None if found is None else found / _time(row))

        return cell

    def nearest(row: Row) -> str:
        known = {name: limit(row, key) for key, name in NAMES.items()}
        if None in known.values():
            return NONE
        return max(known, key=lambda name: known[name] or 0.0)

    columns: list[Column] = [
        ("optimizer", _label),
        ("workload", lambda r: str(r["workload"])),
        ("ms", lambda r: number(_time(r))),
    ]
    for key, name in NAMES.items():
        columns += [(f"{name} ms", alone(key)), (f"{name}/time", share(key))]
    columns += [
        ("nearest limit", nearest),
        ("note", lambda r: r.get("counts_error") or NONE),
    ]
    note = (
        "bytes: what must be moved, over the bandwidth of a copy. issue: instructions of the "
        "shortest way through the step kernel, over four per SM and clock. integer: those of them "
        "on the half-rate integer pipe, over two. ms: the step kernel alone where it is known."
    )
    return _made("limits", columns, [r for r in ours if r.get("counts_error") != CPU], note)


def _time(row: Row) -> float:
    return float(row["kernel_ms"] or row["device_ms"])


def _peers(peers: list[Row], ours: list[Row]) -> Table:
    made = {(r["label"], r["workload"]): r for r in ours}
    rows: list[Row] = []
    for p in _merged(peers):
        pairs = [made.get((label, p["workload"])) for label in p["ours"]]
        beside = [x for x in pairs if x is not None] if "error" not in p else []
        rows += [{**p, "beside": x} for x in beside] or [{**p, "beside": None}]

    def against(key: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            x = row["beside"]
            return NONE if x is None else ratio(x[key] / row[key])

        return cell

    def compared(row: Row) -> str:
        x = row["beside"]
        if x is None:
            return NONE
        more = x["state_bytes"] > row["state_bytes"]
        return f"{x['label']} ({x['state_bytes']:.2f} B){' *' if more else ''}"

    columns: list[Column] = [
        ("peer", lambda r: f"{r['label']}{'' if r['params'] == 'bf16' else ' fp32'}"),
        ("version", lambda r: r.get("version") or NONE),
        ("workload", lambda r: str(r["workload"])),
        ("ms", _value("device_ms")),
        ("step ms", _value("step_ms")),
        ("host µs", _value("host_us", 3)),
        ("state B", _bytes("state_bytes")),
        ("launches", _count("launches")),
        ("first step s", _value("first_step_s", 3)),
        ("ours", compared),
        ("ours/peer ms", against("device_ms")),
        ("ours/peer step", against("step_ms")),
        ("note", _note),
    ]
    note = (
        "ms: a peer's kernels alone, without the gaps between them; ours with the gaps. step ms: "
        "one call after the other, host part included. * our build keeps more state than the peer."
    )
    return _made("peers", columns, rows, note)


def _merged(peers: list[Row]) -> list[Row]:
    """One row for a peer that failed in the same way on several workloads."""
    rows: list[Row] = []
    for p in peers:
        alike = rows and all(rows[-1].get(k) == p.get(k) for k in ("label", "params", "error"))
        if alike and "error" in p:
            rows[-1] = {**rows[-1], "workload": f"{rows[-1]['workload']}, {p['workload']}"}
        else:
            rows.append(p)
    return rows


# ---------------------------------------------------------------- renderings


def as_rich(t: Table) -> rich.table.Table:
    made = rich.table.Table(
        title=escape(t.title), title_justify="left", caption=escape(t.note), caption_justify="left"
    )
    for i, column in enumerate(t.columns):
        made.add_column(escape(column), justify="right" if i and column != "note" else "left")
    for row in t.rows:
        made.add_row(*map(escape, row))
    return made


def as_markdown(t: Table) -> str:
    lines = [f"**{t.title}**", "", _line(t.columns)]
    lines.append("|" + "|".join("---:" if i else "---" for i in range(len(t.columns))) + "|")
    lines += [_line(row) for row in t.rows]
    lines += ["", t.note] if t.note else []
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |"
