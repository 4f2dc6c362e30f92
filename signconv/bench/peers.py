"""Other libraries: how each makes its optimizer, and which of our builds it is compared with.

A module to run as well: ``python -m signconv.bench.peers`` measures one peer and prints one JSON
line per workload, since a peer gets a process of its own (see ``run_peer``).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from signconv.bench import timing, workloads
from signconv.bench.measure import add_kernels, kernels_of, one_line, shortened, time_step
from signconv.bench.subjects import DTYPES

LR = 1e-4
#: Exit code of a process that printed the row of a failure and wants a fresh one for the rest.
RESTART = 3
Make = Callable[[list[Tensor]], Any]


@dataclass(frozen=True)
class Peer:
    """An optimizer of another library.

    package: the distribution to install; ours: SPECs of the same algorithm to compare with, of no
    more state where possible (the report marks the others); gpu_only: it has no CPU code.
    """

    name: str
    package: str
    make: Make
    ours: tuple[str, ...]
    gpu_only: bool = False


def _get(module: str, *names: str) -> Any:
    """The first of ``names`` that a module has: libraries rename their classes."""
    loaded = importlib.import_module(module)
    for name in names:
        if hasattr(loaded, name):
            return getattr(loaded, name)
    raise AttributeError(f"{module} has no {' and no '.join(names)}")


def _torch(name: str) -> Make:
    options: dict[str, Any] = {name: True}
    return lambda params: torch.optim.AdamW(params, lr=LR, **options)


def _torch_compiled(params: list[Tensor]) -> Any:
    # On a GPU lr as a tensor: a number would be compiled anew at every new value.
    gpu = params[0].is_cuda
    lr = torch.tensor(LR, device=params[0].device) if gpu else LR
    optimizer = torch.optim.AdamW(params, lr=lr, foreach=True, capturable=gpu)
    optimizer.step = torch.compile(optimizer.step, fullgraph=False)  # type: ignore[method-assign]
    return optimizer


def _flashoptim(params: list[Tensor]) -> Any:
    # No master weights: our bf16 parameters have none either.
    return _get("flashoptim", "FlashAdamW")(params, lr=LR, master_weight_bits=None)


def _torchao(name: str) -> Make:
    def make(params: list[Tensor]) -> Any:
        rounded = params[0].dtype == torch.bfloat16
        return _get("torchao.optim", name)(params, lr=LR, bf16_stochastic_round=rounded)

    return make


def _bitsandbytes(params: list[Tensor]) -> Any:
    return _get("bitsandbytes.optim", "AdamW8bit")(params, lr=LR)


def _heavyball(params: list[Tensor]) -> Any:
    made = _get("heavyball", "AdamW", "ForeachAdamW")
    return made(params, lr=LR, storage_dtype="bfloat16")


def _lion(params: list[Tensor]) -> Any:
    return _get("lion_pytorch", "Lion")(params, lr=LR, use_triton=params[0].is_cuda)


PEERS = {
    p.name: p
    for p in (
        Peer("torch AdamW fused", "torch", _torch("fused"), ("adamw@{params}", "adamw")),
        Peer("torch AdamW foreach", "torch", _torch("foreach"), ("adamw@{params}", "adamw")),
        Peer("torch AdamW compiled", "torch", _torch_compiled, ("adamw@{params}", "adamw")),
        Peer("flashoptim FlashAdamW", "flashoptim", _flashoptim, ("adamw",), gpu_only=True),
        Peer("torchao AdamWFp8", "torchao", _torchao("AdamWFp8"), ("adamw",), gpu_only=True),
        Peer("torchao AdamW8bit", "torchao", _torchao("AdamW8bit"), ("adamw",), gpu_only=True),
        Peer("bitsandbytes AdamW8bit", "bitsandbytes", _bitsandbytes, ("adamw",), gpu_only=True),
        Peer("HeavyBall AdamW", "heavyball", _heavyball, ("adamw@bf16", "adamw"), gpu_only=True),
        Peer("lion-pytorch Lion", "lion-pytorch", _lion, ("lion@{params}", "lion")),
    )
}


def compared(peer: Peer, params: str) -> list[str]:
    """SPECs of ours that a peer is compared with, for parameters of this dtype."""
    return list(dict.fromkeys(x.format(params=params) for x in peer.ours))


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------- a process per peer


def run_peer(
    peer: Peer, keys: list[str], device: str, params: str, quick: bool, limit: float
) -> Iterator[dict[str, Any]]:
    """One row per workload; a failure is a row with ``error``.

    Each workload has ``limit`` seconds; then the process is ended (a compiler does not listen to
    anything less) and a new one goes on with the next workload.  On a GPU the kernels are listed
    by further processes, since the profiler would slow down what is timed after it.
    """
    reason = None
    if version(peer.package) is None:
        reason = f"not installed: pip install {peer.package}"
    elif peer.gpu_only and device == "cpu":
        reason = "needs a GPU"
    if reason:
        yield from (_failed(key, reason) for key in keys)
        return
    options = ["--device", device, "--params", params, *(["--quick"] if quick else [])]
    rows = {row["workload"]: row for row in _attempts(peer.name, keys, options, limit)}
    if device != "cpu":
        good = [key for key, row in rows.items() if "error" not in row]
        for found in _attempts(peer.name, good, [*options, "--kernels"], limit):
            if "error" in found:
                found["profiler_error"] = found.pop("error")
            add_kernels(rows[found["workload"]], found)
    yield from rows.values()


def _attempts(
    name: str, keys: list[str], options: list[str], limit: float
) -> Iterator[dict[str, Any]]:
    """One row per workload, in as many processes as it takes."""
    left = list(keys)
    while left:
        command = [sys.executable, "-m", "signconv.bench.peers", name, ",".join(left), *options]
        for row in _children_rows(command, limit):
            yield row if "workload" in row else _failed(left[0], row["error"])
            left.pop(0)
            if not left:
                return


def _failed(key: str, reason: str) -> dict[str, Any]:
    return {"workload": key, "error": reason}


def _children_rows(command: list[str], limit: float) -> Iterator[dict[str, Any]]:
    """Rows a child prints, until it ends, dies or takes longer than ``limit`` for one of them."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True,
    )  # fmt: skip
    lines: queue.Queue[str | None] = queue.Queue()
    said: list[str] = []

    def read(stream: IO[str]) -> None:
        for line in stream:
            if line.startswith("{"):
                lines.put(line)
        lines.put(None)

    def listen(stream: IO[str]) -> None:
        for line in stream:
            said[:] = [*said[-20:], line.strip()]

    assert child.stdout is not None and child.stderr is not None
    threading.Thread(target=read, args=(child.stdout,), daemon=True).start()
    listener = threading.Thread(target=listen, args=(child.stderr,), daemon=True)
    listener.start()
    try:
        while (line := lines.get(timeout=limit)) is not None:
            yield json.loads(line)
        if child.wait(timeout=limit) != RESTART:
            listener.join(timeout=5)
            words = next((x for x in reversed(said) if x), "no output")
            yield {"error": f"ended with code {child.returncode}: {shortened(words)}"}
    except (queue.Empty, subprocess.TimeoutExpired):
        yield {"error": f"no result within {limit:g} s"}
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # the compilers it started, too
            child.wait()


def main() -> int:
    """Measure one peer on the workloads named, one line of JSON each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("workloads")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--params", default="bf16", choices=DTYPES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kernels", action="store_true", help="list kernels, time nothing")
    chosen = parser.parse_args()
    effort = timing.QUICK if chosen.quick else timing.FULL
    for w in workloads.choose(chosen.workloads, chosen.quick):
        row: dict[str, Any] = {"workload": w.key}
        try:
            params = w.tensors(DTYPES[chosen.params], chosen.device)
            optimizer = PEERS[chosen.peer].make(params)
            if chosen.kernels:
                row |= kernels_of(optimizer)
            else:
                row |= time_step(optimizer, params, chosen.device, effort)
        except Exception as error:
            row["error"] = one_line(error)
        print(json.dumps(row), flush=True)
        if "error" in row:
            return RESTART  # whatever is broken in this process must not spoil the next workload
        del params, optimizer
        gc.collect()
        if chosen.device != "cpu":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
