"""A whole run: workload by workload and row by row, into one record that is written as JSON.

The record's keys:

    schema, command, complete, date   version of this layout; what was typed; whether it ended
    machine                           device, name, rates (SMs, MHz) and versions
    settings                          device, quick, peers, seconds a peer had for a first step
    workloads                         [{key, title, tensors, elements, copy, list_copy}]
    rows                              [{kind: ours|peer, label, workload, params, …}]

Of the samples behind a figure a record keeps ``timing.summary``.  A workload and a row take one
line each.  ``copy`` is torch's copy of one buffer, ``list_copy`` that of the workload's tensors,
by dtype.  Rows hold what ``measure`` returns, or ``error``; those of ours also spec, convert,
state, math and what ``Ours.time`` adds, those of a peer its version, ``ours``, the labels to
compare it with, and ``first_step_s``, which compiles.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from signconv import __version__
from signconv.bench import limits, peers, timing
from signconv.bench.measure import Ours, add_kernels, kernels_of, one_line
from signconv.bench.subjects import DTYPES, Built, Subject, build, parse
from signconv.bench.workloads import Workload
from signconv.errors import BenchError

SCHEMA = 2
#: Bytes of the buffer that torch copies: 2 GiB on a GPU, far beyond any cache.
COPY = {"cuda": 2**31, "cpu": 2**29}
QUICK_COPY = 2**24

Report = Callable[[dict[str, Any], dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What to run.

    peers: names in ``peers.PEERS``; peer_limit: seconds each has per workload for its first step,
    and again for what follows.
    """

    subjects: tuple[Built, ...]
    workloads: tuple[Workload, ...]
    device: str
    quick: bool = False
    peers: tuple[str, ...] = ()
    peer_limit: float = 120.0
    command: str = ""

    @property
    def total(self) -> int:
        """Rows to come."""
        dtypes = {b.subject.params for b in self.subjects}
        return len(self.workloads) * (len(self.subjects) + len(self.peers) * len(dtypes))


def with_peers(subjects: list[Subject], names: Sequence[str]) -> list[Subject]:
    """The subjects, and those that the peers named are compared with, each once."""
    made = dict.fromkeys(subjects)
    for params in dict.fromkeys(s.params for s in subjects):
        for name in names:
            made |= dict.fromkeys(_compared(name, params))
    return list(made)


def _compared(peer: str, params: str) -> list[Subject]:
    plain = Subject("", params=params)
    return [parse(x, plain) for x in peers.compared(peers.PEERS[peer], params)]


def build_all(subjects: list[Subject]) -> tuple[Built, ...]:
    """Everything built before anything is measured, so that a typo costs nothing."""
    return tuple({b.subject: b for b in map(build, subjects)}.values())


def run(plan: Plan, report: Report, path: Path | None = None) -> dict[str, Any]:
    """The record of a run; ``report(record, row)`` is called after every row.

    ``path``: where the record is written after every row, so that a run that is cut off leaves
    what it had (``complete`` is then false).
    """
    effort = timing.QUICK if plan.quick else timing.FULL
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": plan.command,
        "complete": False,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(plan.device),
        "settings": {
            "device": plan.device,
            "quick": plan.quick,
            "peers": list(plan.peers),
            "peer_limit_s": plan.peer_limit,
        },
        "workloads": [],
        "rows": [],
    }

    def keep(row: dict[str, Any]) -> None:
        record["rows"].append(row)
        if path is not None:
            write(record, path)
        report(record, row)

    if path is not None:
        write(record, path)  # a folder that cannot be written is found out now
    ours = Ours(plan.device, effort, record["machine"]["rates"])
    dtypes = list(dict.fromkeys(b.subject.params for b in plan.subjects))
    for w in plan.workloads:
        record["workloads"].append(_workload(w, plan, effort, dtypes))
        for built, tensors in _each(w, plan, dtypes):
            row = _about(built, w)
            try:
                row |= ours.time(built, tensors)
                _derive(ours, row, record)
            except Exception as error:
                row["error"] = one_line(error)
            keep(row)
    if plan.device != "cpu":  # after all timing: see kernels_of
        good = {(r["label"], r["workload"]): r for r in record["rows"] if "error" not in r}
        for w in plan.workloads:
            for built, tensors in _each(w, plan, dtypes):
                found = good.get((built.subject.label, w.key))
                if found is not None:
                    add_kernels(found, kernels_of(built.optimizer(tensors)))
                    _derive(ours, found, record)
        if path is not None:
            write(record, path)
    for params in dtypes:
        for name in plan.peers:
            peer = peers.PEERS[name]
            about = {
                "kind": "peer",
                "label": name,
                "params": params,
                "package": peer.package,
                "version": peers.version(peer.package),
                "ours": [s.label for s in _compared(name, params)],
            }
            chosen = list(plan.workloads)
            limit = plan.peer_limit
            for row in peers.run_peer(peer, chosen, plan.device, params, plan.quick, limit):
                keep({**about, **row})
    record["complete"] = True
    if path is not None:
        write(record, path)
    return record


def _each(w: Workload, plan: Plan, dtypes: list[str]) -> Iterator[tuple[Built, list[Tensor]]]:
    """Every subject with tensors of its dtype; nothing of one is left when the next begins."""
    for params in dtypes:
        tensors = w.tensors(DTYPES[params], plan.device)
        for built in (b for b in plan.subjects if b.subject.params == params):
            yield built, tensors
            _release(plan.device)
        del tensors
        _release(plan.device)


def _derive(ours: Ours, row: dict[str, Any], record: dict[str, Any]) -> None:
    w = next(w for w in record["workloads"] if w["key"] == row["workload"])
    lists = w["list_copy"][row["params"]]
    ours.derive(row, w["elements"], w["copy"]["gbps"], lists["gbps"])


def _about(built: Built, w: Workload) -> dict[str, Any]:
    s = built.subject
    return {
        "kind": "ours",
        "label": s.label,
        "workload": w.key,
        "params": s.params,
        "spec": s.spec,
        "convert": s.convert,
        "state": s.state,
        "math": s.math,
    }


def _workload(w: Workload, plan: Plan, effort: timing.Effort, dtypes: list[str]) -> dict[str, Any]:
    size = QUICK_COPY if plan.quick else COPY[plan.device]
    copy = timing.copy_bandwidth(size, plan.device, effort)
    _release(plan.device)
    lists = {}
    for name in dtypes:
        shapes = list(w.shapes)
        lists[name] = timing.list_copy_bandwidth(shapes, DTYPES[name], plan.device, effort)
        _release(plan.device)
    counts = {"tensors": len(w.shapes), "elements": w.elements}
    return {"key": w.key, "title": w.title, **counts, "copy": copy, "list_copy": lists}


def _release(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def machine(device: str) -> dict[str, Any]:
    """Device, rates and versions: what the numbers depend on; no names of hosts or folders."""
    found: dict[str, Any] = {"device": device, "rates": {}}
    if device == "cpu":
        found["name"] = _cpu_name()
        found["threads"] = torch.get_num_threads()
    else:
        properties = torch.cuda.get_device_properties(0)
        found["name"] = properties.name
        found["memory_bytes"] = properties.total_memory
        found["l2_bytes"] = getattr(properties, "L2_cache_size", None)
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["rates"] = limits.machine_rates(_busy())
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "signconv": __version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": peers.version("triton"),
        "numba": peers.version("numba"),
    }
    return found | {"versions": versions}


def _busy() -> Callable[[], object]:
    """Work that makes the GPU run at the clock it has under load."""
    x = torch.empty(2**28, dtype=torch.uint8, device="cuda").zero_()

    def call() -> None:
        for _ in range(100):
            x.add_(1)

    return call


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------- files


def write(record: dict[str, Any], path: Path) -> None:
    """Write a record atomically; BenchError where the folder cannot be written."""
    text = as_text(rounded(record))
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise BenchError("SC717", f"cannot write {path}: {error.strerror or error}") from error


def as_text(record: dict[str, Any]) -> str:
    """JSON with one line per key, and one per entry of a list: a diff of two shows what changed."""

    def line(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n  ".join(json.dumps(x, allow_nan=False) for x in value)
            return f"[\n  {entries}\n ]"
        return json.dumps(value, allow_nan=False)

    body = ",\n ".join(f"{json.dumps(key)}: {line(value)}" for key, value in record.items())
    return f"{{\n {body}\n}}\n"


def rounded(value: Any) -> Any:
    """Floats with 5 digits: clocks resolve no more, and the file stays readable."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def read(path: Path) -> dict[str, Any]:
    """A record that ``write`` wrote; BenchError for anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError("SC718", f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise BenchError("SC718", f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise BenchError(
            "SC718", f"{path} is no record of `signconv bench --json` (schema {SCHEMA})"
        )
    return record
