"""Clocks: how many samples, what a trace of the driver says, what a copy moves."""

import pytest
import torch

from signconv.bench import timing
from signconv.bench.timing import Effort, Kernel


def test_samples_are_as_many_as_asked_for() -> None:
    calls = []
    effort = Effort(warmup=2, least=5, most=9, seconds=0.0)
    assert len(timing.device_times(lambda: calls.append(0), "cpu", effort)) == 5
    assert len(calls) == 7
    long = Effort(warmup=0, least=1, most=9, seconds=60.0)
    samples = timing.device_times(lambda: None, "cpu", long)
    assert len(samples) == 9 and all(0 <= x < 1e3 for x in samples)


def test_one_sample_is_all_its_quartiles() -> None:
    kept = timing.summary([3.0])
    assert kept.pop("count") == 1 and set(kept.values()) == {3.0}


def kernel(name: str, ts: float, dur: float, cat: str = "kernel", grid=(10, 1, 1)) -> dict:
    arguments = {"grid": list(grid), "block": [32, 1, 1]} if cat == "kernel" else {}
    return {"name": name, "cat": cat, "ts": ts, "dur": dur, "args": arguments}


def test_a_trace_is_read_per_call() -> None:
    """Two calls: a scalar kernel and two step kernels each, one copy in the first alone."""
    events = [
        kernel("_scalar", 0, 2.0, grid=(1, 1, 1)),
        kernel("_step", 10, 100.0),
        kernel("_step", 200, 50.0, grid=(4, 5, 1)),
        kernel("Memcpy HtoD", 260, 3.0, "gpu_memcpy"),
        kernel("_step", 500, 60.0, grid=(4, 5, 1)),  # out of order on purpose
        kernel("_step", 400, 110.0),
        kernel("_scalar", 390, 4.0, grid=(1, 1, 1)),
        {"name": "aten::add", "cat": "cpu_op", "ts": 0, "dur": 9.0, "args": {}},
        {"name": "process_name", "ph": "M"},
    ]
    found = {k.name: k for k in timing.read_trace({"traceEvents": events}, 2)}
    assert found == {
        "_scalar": Kernel("_scalar", 1.0, pytest.approx(0.003), 1.0),
        "_step": Kernel("_step", 2.0, pytest.approx(0.160), 30.0),
        "Memcpy HtoD": Kernel("Memcpy HtoD", 0.5, pytest.approx(0.0015), 0.0),
    }


def test_times_of_a_trace_are_medians() -> None:
    """One slow call does not count."""
    events = [kernel("_step", 10 * i, 1000.0 if i == 1 else 1.0 + i) for i in range(5)]
    (found,) = timing.read_trace({"traceEvents": events}, 5)
    assert found.ms == pytest.approx(0.004)


def test_partly_filled_warps_count_whole() -> None:
    event = kernel("_step", 0, 1.0, grid=(3, 1, 1))
    event["args"]["block"] = [48, 1, 1]
    (found,) = timing.read_trace({"traceEvents": [event]}, 1)
    assert found.warps == 6


def test_copies_count_reading_and_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []

    def clock(call, device, effort) -> list[float]:
        call()
        copied.append(device)
        return [1.0, 2.0, 30.0]

    monkeypatch.setattr(timing, "device_times", clock)
    one = timing.copy_bandwidth(4_000_000, "cpu", timing.QUICK)
    kept = {"count": 3, "min": 1.0, "q25": 1.5, "median": 2.0, "q75": 16.0, "max": 30.0}
    assert one == {"bytes": 4_000_000, "ms": kept, "gbps": 4.0}
    many = timing.list_copy_bandwidth([(10, 32), (32,)], torch.float32, "cpu", timing.QUICK)
    assert many["bytes"] == 4 * 352 and many["gbps"] == pytest.approx(2 * 4 * 352 / 2e6)
