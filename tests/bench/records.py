"""A record as a GPU would leave it, small enough to check by hand."""

from __future__ import annotations

from typing import Any

from signconv.bench.timing import summary

ELEMENTS = 2**20


def ours(label: str, workload: str, ms: float, **more: Any) -> dict[str, Any]:
    row = {
        "kind": "ours", "label": label, "workload": workload, "params": "bf16", "spec": "adamw",
        "convert": None, "state": "fp8", "math": "fp32", "backend": "triton", "state_bytes": 2.0625,
        "moved_bytes": 10.125, "device_ms": ms, "kernel_ms": 0.8 * ms, "step_ms": 2 * ms,
        "host_us": 75.5, "peak_bytes": 0, "launches": 2.0, "copies": 0.0, "busy_ms": 0.9 * ms,
        "clock": "graph replay", "gbps": 3600.0, "of_copy": 0.9, "of_list_copy": 0.95,
        "counts": {"instructions": 600, "integer_pipe": 240}, "counts_error": None,
        "limits": {"bytes_ms": 0.4 * ms, "issue_ms": 0.6 * ms, "integer_ms": 0.5 * ms},
        "kernels": [], "samples": {"step_ms": summary([2 * ms]), "graph_ms": summary([ms])},
    }  # fmt: skip
    return {**row, **more}


def peer(label: str, workload: str, ms: float, **more: Any) -> dict[str, Any]:
    row = {
        "kind": "peer", "label": label, "workload": workload, "params": "bf16", "package": "torch",
        "version": "2.11.0", "ours": ["adamw@bf16", "adamw"], "state_bytes": 4.0, "device_ms": ms,
        "step_ms": 2 * ms, "host_us": 500.0, "launches": 12.0, "clock": "sum of kernels",
        "samples": {"step_ms": summary([2 * ms])},
    }  # fmt: skip
    return {**row, **more}


def failed(label: str, workload: str, reason: str) -> dict[str, Any]:
    return {
        "kind": "peer", "label": label, "workload": workload, "params": "bf16", "package": "none",
        "version": None, "ours": ["adamw"], "error": reason,
    }  # fmt: skip


def record(*rows: dict[str, Any]) -> dict[str, Any]:
    """A complete record of workloads A and D on an imaginary GPU."""
    copy = {"bytes": 2**31, "ms": summary([1.0]), "gbps": 4000.0}
    workloads = [
        {"key": key, "title": title, "tensors": n, "elements": ELEMENTS, "copy": copy,
         "list_copy": {"bf16": {**copy, "gbps": 3800.0}}}
        for key, title, n in (("A", "one tensor", 1), ("D", "small tensors", 2000))
    ]  # fmt: skip
    versions = {"python": "3.12.1", "signconv": "0.1", "torch": "2.11.0", "numba": None}
    rates = {"sms": 132, "sm_mhz": 1755, "sm_mhz_max": 1980}
    return {
        "schema": 2,
        "command": "signconv bench adamw --workload A,D",
        "complete": True,
        "date": "2026-01-02 03:04 UTC",
        "machine": {"device": "cuda", "name": "GPU X", "rates": rates, "versions": versions},
        "settings": {"device": "cuda", "quick": False, "peers": [], "peer_limit_s": 120.0},
        "workloads": workloads,
        "rows": list(rows),
    }


def full() -> dict[str, Any]:
    return record(
        ours("adamw", "A", 0.5),
        ours("adamw@bf16", "A", 0.75, state_bytes=4.0),
        ours("adamw", "D", 0.04125, of_copy=0.17),
        {**ours("lamb", "D", 1.0), "error": "out of memory on the device"},
        peer("torch AdamW fused", "A", 1.0),
        peer("bitsandbytes AdamW8bit", "D", 0.1, ours=["adamw"], state_bytes=2.03),
        failed("torchao AdamWFp8", "A", "not installed: pip install torchao"),
        failed("torchao AdamWFp8", "D", "not installed: pip install torchao"),
    )
