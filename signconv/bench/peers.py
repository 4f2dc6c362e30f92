"""Other libraries: how each makes its optimizer, and which of our builds it is compared with.

A module to run as well: ``python -m signconv.bench.peers`` measures one peer on one workload and
prints what it finds as lines of JSON, since that gets a process of its own (see ``run_peer``).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from signconv.bench import timing, workloads
from signconv.bench.measure import add_kernels, kernels_of, one_line, shortened, time_step
from signconv.bench.subjects import DTYPES
from signconv.bench.workloads import Workload

LR = 1e-4
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


def _get(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _torch(name: str) -> Make:
    options: dict[str, Any] = {name: True}
    return lambda params: torch.optim.AdamW(params, lr=LR, **options)


def _torch_muon(params: list[Tensor]) -> Any:
    return torch.optim.Muon(params, lr=LR)  # torch 2.9; of matrices alone


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
    # It takes the gradients away after a step, and would have nothing to do at the next.
    options = {"storage_dtype": "bfloat16", "consume_grad": False, "weight_decay": 0.01}
    return _get("heavyball", "AdamW")(params, lr=LR, betas=(0.9, 0.999), **options)


def _optimi(params: list[Tensor]) -> Any:
    # As it comes: beside bf16 parameters it keeps the rest of each in a bf16 number (Kahan).
    return _get("optimi", "AdamW")(params, lr=LR, betas=(0.9, 0.999))


def _gefen(params: list[Tensor]) -> Any:
    return _get("gefen", "Gefen")(params, lr=LR, weight_decay=0.01)


def _transformer_engine(params: list[Tensor]) -> Any:
    stored = {"exp_avg_dtype": params[0].dtype, "exp_avg_sq_dtype": params[0].dtype}
    make = _get("transformer_engine.pytorch.optimizers", "FusedAdam")
    return make(params, lr=LR, weight_decay=0.01, **stored)


def _lion(params: list[Tensor]) -> Any:
    return _get("lion_pytorch", "Lion")(params, lr=LR, use_triton=params[0].is_cuda)


#: In the order in which they run: what compiles for minutes comes last.
PEERS = {
    p.name: p
    for p in (
        Peer("torch AdamW fused", "torch", _torch("fused"), ("adamw@{params}", "adamw")),
        Peer("torch AdamW foreach", "torch", _torch("foreach"), ("adamw@{params}", "adamw")),
        Peer("torch AdamW compiled", "torch", _torch_compiled, ("adamw@{params}", "adamw")),
        Peer("torch Muon", "torch", _torch_muon, ("muon@{params}", "muon")),
        Peer("flashoptim FlashAdamW", "flashoptim", _flashoptim, ("adamw",), gpu_only=True),
        Peer("bitsandbytes AdamW8bit", "bitsandbytes", _bitsandbytes, ("adamw",), gpu_only=True),
        Peer("torchao AdamWFp8", "torchao", _torchao("AdamWFp8"), ("adamw",), gpu_only=True),
        Peer("torchao AdamW8bit", "torchao", _torchao("AdamW8bit"), ("adamw",), gpu_only=True),
        Peer("torchao AdamW4bit", "torchao", _torchao("AdamW4bit"), ("adamw",), gpu_only=True),
        Peer("Gefen-X Gefen", "gefen-x", _gefen, ("adamw",), gpu_only=True),
        Peer("optimi AdamW", "torch-optimi", _optimi, ("adamw@{params}", "adamw")),
        Peer(
            "TransformerEngine FusedAdam",
            "transformer-engine",
            _transformer_engine,
            ("adamw@{params}", "adamw"),
            gpu_only=True,
        ),
        Peer("lion-pytorch Lion", "lion-pytorch", _lion, ("lion@{params}", "lion")),
        Peer("HeavyBall AdamW", "heavyball", _heavyball, ("adamw@bf16", "adamw"), gpu_only=True),
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


# ---------------------------------------------------------------- a process per workload


def run_peer(
    peer: Peer, chosen: list[Workload], device: str, params: str, quick: bool, limit: float
) -> Iterator[dict[str, Any]]:
    """One row per workload, as it is measured; a failure is a row with ``error``.

    Each has a process of its own, ended where its first step, in which compilers run, takes
    ``limit`` seconds or anything behind it as long again (a compiler does not listen to anything
    less).  Lists of as many tensors and more are not tried after such a first step.
    """
    reason, most = None, math.inf
    if version(peer.package) is None:
        reason = f"not installed: pip install {peer.package}"
    elif peer.gpu_only and device == "cpu":
        reason = "needs a GPU"
    options = ["--device", device, "--params", params, *(["--quick"] if quick else [])]
    for w in chosen:
        row: dict[str, Any] = {"workload": w.key}
        if reason:
            row["error"] = reason
        elif len(w.shapes) >= most:
            row["error"] = f"not tried: {late(limit)} on {most:,} tensors"
        else:
            command = [sys.executable, "-m", "signconv.bench.peers", peer.name, w.key, *options]
            for found in _child_lines(command, limit):
                _add(row, found)
            if row.get("error") == late(limit) and "first_step_s" not in row:
                most = len(w.shapes)
        yield row


def late(limit: float) -> str:
    """What is said of a process that was ended."""
    return f"no result within {limit:g} s"


def _add(row: dict[str, Any], found: dict[str, Any]) -> None:
    """Put a line that a child printed into its row; what was timed already stays."""
    if "clock" not in row:
        row |= found
    elif "error" in found:
        row["profiler_error"] = found["error"]
    else:
        add_kernels(row, found)


def _child_lines(command: list[str], limit: float) -> Iterator[dict[str, Any]]:
    """What a child prints, until it ends, dies or takes ``limit`` seconds for one of its lines."""
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
        if child.wait(timeout=limit):
            listener.join(timeout=5)
            words = next((x for x in reversed(said) if x), "no output")
            yield {"error": f"ended with code {child.returncode}: {shortened(words)}"}
    except (queue.Empty, subprocess.TimeoutExpired):
        yield {"error": late(limit)}
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # the compilers it started, too
            child.wait()


def main() -> int:
    """Measure one peer on one workload: its first step, its times, its kernels, a line each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("workload")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--params", default="bf16", choices=DTYPES)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    (w,) = workloads.choose(chosen.workload, chosen.quick)
    try:
        for found in measured(PEERS[chosen.peer], w, chosen.params, chosen.device, chosen.quick):
            print(json.dumps(found), flush=True)
    except Exception as error:
        print(json.dumps({"error": one_line(error)}), flush=True)
    return 0


def measured(
    peer: Peer, w: Workload, dtype: str, device: str, quick: bool
) -> Iterator[dict[str, Any]]:
    """What ``main`` prints."""
    params = w.tensors(DTYPES[dtype], device)
    optimizer = peer.make(params)
    begin = time.perf_counter()
    optimizer.step()
    timing.synchronize(device)
    yield {"first_step_s": time.perf_counter() - begin}
    if any(p.grad is None for p in params):
        yield {"error": "a step takes the gradients away, so that the next one has nothing to do"}
        return
    yield time_step(optimizer, params, device, timing.QUICK if quick else timing.FULL)
    if device != "cpu":
        yield kernels_of(optimizer)


if __name__ == "__main__":
    sys.exit(main())
