"""Clocks: time of a call on the device and on the host, kernels it launches, memory it takes."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long to measure: calls before, samples at least and at most, seconds in between."""

    warmup: int
    least: int
    most: int
    seconds: float


FULL = Effort(warmup=5, least=20, most=200, seconds=1.0)
QUICK = Effort(warmup=1, least=3, most=3, seconds=0.0)
#: Calls between two synchronizations: the device never waits for the host's reading of a clock,
#: and the launch queue (about 1,000 long) does not fill up with steps of a few launches.
BATCH = 10
#: A sample shorter than this is made of several calls: events resolve about 0.5 µs.
SHORTEST_MS = 0.2


def median(samples: list[float]) -> float:
    return statistics.median(samples)


def summary(samples: list[float]) -> dict[str, float]:
    """What a record keeps of samples: their count, the extremes and the quartiles."""
    q25, middle, q75 = (
        statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else 3 * samples
    )
    return {
        "count": len(samples),
        "min": min(samples),
        "q25": q25,
        "median": middle,
        "q75": q75,
        "max": max(samples),
    }


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def device_times(call: Call, device: str, effort: Effort) -> list[float]:
    """Milliseconds per call, one number per sample: CUDA events, or the wall clock on a CPU.

    Calls are queued without waiting, so a call whose host part takes longer than its kernels is as
    long as its host part; replays of a CUDA graph have no host part to speak of.
    """
    for _ in range(effort.warmup):
        call()
    synchronize(device)
    if device == "cpu":
        return _wall_times(call, effort)
    samples: list[float] = []
    inner = 1
    begin = time.perf_counter()
    while _more(samples, begin, effort):
        pairs = []
        for _ in range(BATCH):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(inner):
                call()
            last.record()
            pairs.append((first, last))
        synchronize(device)
        found = [a.elapsed_time(b) / inner for a, b in pairs]
        if not samples and inner == 1 and median(found) < SHORTEST_MS:
            inner = math.ceil(SHORTEST_MS / max(median(found), 1e-3))
            continue
        samples += found
    return samples


def _wall_times(call: Call, effort: Effort) -> list[float]:
    samples: list[float] = []
    begin = time.perf_counter()
    while _more(samples, begin, effort):
        start = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - start))
    return samples


def _more(samples: list[float], begin: float, effort: Effort) -> bool:
    if len(samples) < effort.least:
        return True
    return len(samples) < effort.most and time.perf_counter() - begin < effort.seconds


def host_times(call: Call, effort: Effort) -> list[float]:
    """Microseconds that a call keeps the host, without waiting for the GPU."""
    samples: list[float] = []
    begin = time.perf_counter()
    while _more(samples, begin, effort):
        torch.cuda.synchronize()
        for _ in range(BATCH):
            start = time.perf_counter()
            call()
            samples.append(1e6 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return samples


def capture(call: Call) -> Call:
    """``call`` as the replay of a CUDA graph; raises what capture raises."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            call()
    torch.cuda.synchronize()
    return graph.replay


def peak_bytes(call: Call) -> int:
    """Device memory that a call allocates beyond what was there before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in one step: how many, their time in all, their warps in all."""

    name: str
    launches: float
    ms: float
    warps: float


def kernels(call: Call, calls: int = 10) -> list[Kernel]:
    """What the driver ran for one call, copies and memsets included, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    return read_trace(trace, calls)


def read_trace(trace: dict[str, Any], calls: int) -> list[Kernel]:
    """Kernels, copies and memsets of a Chrome trace, per call; times are medians over the calls."""
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    events = [e for e in trace["traceEvents"] if e.get("cat") in kinds]
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for e in sorted(events, key=lambda e: e["ts"]):
        by_name[e["name"]].append(e)
    found = []
    for name, group in by_name.items():
        times = [e["dur"] / 1e3 for e in group]
        # Launches that divide evenly belong to calls in order; else only the mean is known.
        share, rest = divmod(len(group), calls)
        ms = sum(times) / calls
        if not rest:
            ms = median([sum(times[i : i + share]) for i in range(0, len(times), share)])
        warps = sum(_warps(e.get("args", {})) for e in group) / calls
        found.append(Kernel(name[:100], len(group) / calls, ms, warps))
    return found


def _warps(arguments: dict[str, Any]) -> int:
    blocks, threads = (math.prod(arguments.get(key, [0])) for key in ("grid", "block"))
    return blocks * -(-threads // 32)


def copy_bandwidth(size: int, device: str, effort: Effort) -> dict[str, Any]:
    """torch's own copy of ``size`` bytes: times in ms, and GB/s of reading and writing."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    samples = device_times(lambda: target.copy_(source), device, effort)
    return {"bytes": size, "ms": summary(samples), "gbps": 2 * size / median(samples) / 1e6}


def list_copy_bandwidth(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str, effort: Effort
) -> dict[str, Any]:
    """``torch._foreach_copy_`` of a list of tensors, as a graph replay on a GPU."""
    source = [torch.ones(s, dtype=dtype, device=device) for s in shapes]
    target = [torch.empty_like(x) for x in source]

    def call() -> None:
        torch._foreach_copy_(target, source)

    call()
    timed = call if device == "cpu" else capture(call)
    samples = device_times(timed, device, effort)
    size = sum(x.numel() * x.element_size() for x in source)
    return {"bytes": size, "ms": summary(samples), "gbps": 2 * size / median(samples) / 1e6}
