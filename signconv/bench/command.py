"""What ``signconv bench`` does: check everything, run, show tables, write the files asked for."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from signconv import pictures
from signconv.bench import chart, table, workloads
from signconv.bench import run as running
from signconv.bench.peers import PEERS
from signconv.bench.subjects import Subject, parse
from signconv.errors import BenchError, nearest
from signconv.terminal import Fitting


@dataclass(frozen=True)
class Options:
    """The options of the command, as typed."""

    specs: list[str]
    convert: str | None
    state: str
    math: str
    params: str
    device: str
    workload: str
    peers: bool
    peer: tuple[str, ...]
    peer_limit: float
    json_file: Path | None
    chart_file: Path | None
    quick: bool


def run(options: Options, arguments: list[str], out: Console, err: Console) -> dict[str, Any]:
    """Run and print; returns the record.  Bad input is a SignconvError before any measuring."""
    plan = _plan(options, arguments)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip
    with progress:
        task = progress.add_task("measuring", total=plan.total)

        def report(_: dict[str, Any], row: dict[str, Any]) -> None:
            words = f"{row['workload']} {row['label']}"
            progress.update(task, advance=1, description=words)
            if not err.is_terminal:
                print(f"{words}: {_said(row)}", file=sys.stderr, flush=True)

        record = running.run(plan, report, options.json_file)
    for t in table.tables(record):
        out.print(Fitting(table.as_rich(t)))
    if options.chart_file is not None:
        chart.draw(record, options.chart_file)
    for path in filter(None, (options.json_file, options.chart_file)):
        out.print(f"{path} written", soft_wrap=True)
    return record


def _said(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    copy = f", {row['of_copy']:.3f} of a copy" if "of_copy" in row else ""
    return f"{table.number(row['device_ms'])} ms{copy}"


def _plan(options: Options, arguments: list[str]) -> running.Plan:
    default = Subject("", options.convert, options.state, options.math, options.params)
    subjects = [parse(text, default) for text in options.specs]
    chosen = workloads.choose(options.workload, options.quick)
    by_name = {name.lower(): name for name in PEERS}
    for name in options.peer:
        if name.lower() not in by_name:
            raise BenchError("SC713", f"unknown peer {name!r}; {nearest(name, PEERS)}")
    names = [by_name[name.lower()] for name in options.peer]
    names = names or (list(PEERS) if options.peers else [])
    if options.chart_file is not None:
        pictures.check(options.chart_file)
    subjects = running.with_peers(subjects, names)
    return running.Plan(
        subjects=running.build_all(subjects),
        workloads=tuple(chosen),
        device=options.device,
        quick=options.quick,
        peers=tuple(names),
        peer_limit=options.peer_limit,
        command="signconv " + " ".join(map(_shown, arguments)),
    )


def _shown(argument: str) -> str:
    """An argument as typed, an absolute path without its folders."""
    bare = Path(argument).name if argument.startswith("/") else argument
    return shlex.quote(bare)
