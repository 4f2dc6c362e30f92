"""The two limits of a step: bytes over bandwidth, and instructions over the rate they issue at."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from signconv.errors import BenchError
from signconv.verification.aot import cuobjdump
from signconv.verification.instructions import Instruction, parse, shortest_path

#: Warp instructions an SM issues per clock: one from each of its four partitions.
ISSUE = 4.0
#: Warp instructions per SM and clock of the pipe that takes integer and logical instructions,
#: comparisons and selections: 64 lanes (CUDA C++ Programming Guide, arithmetic throughput, 8.0
#: and 9.0).  IMAD has as many lanes of its own in the multiplier, so it is not counted here.
INTEGER_PIPE = 2.0
_ON_INTEGER_PIPE = re.compile(r"FSETP?|FMNMX|FSEL|HSETP?2|HMNMX2")


def issue_counts(cubin: bytes) -> dict[str, int]:
    """Instructions that a warp with a full chunk issues, in all and to the integer pipe.

    Along the shortest path through the 16-byte accesses, so a true lower bound: what only rare
    values (Inf, NaN) need is not in it.
    """
    return count_path(parse(cuobjdump(cubin, "--dump-sass")))


def count_path(code: list[Instruction]) -> dict[str, int]:
    """``issue_counts`` of machine code that was read already."""
    path = shortest_path(code)
    slow = sum(x.kind == "integer" or bool(_ON_INTEGER_PIPE.fullmatch(x.name)) for x in path)
    return {"instructions": len(path), "integer_pipe": slow}


def limits(
    moved: float, gbps: float, warps: float, counts: dict[str, int] | None, rates: dict[str, Any]
) -> dict[str, float | None]:
    """The times, in ms, below which a step cannot go; None where something is not known.

    moved: bytes; gbps: of a copy; warps: launched by the step kernel; counts: per warp; rates: of
    ``machine_rates``.
    """
    found: dict[str, float | None] = {"bytes_ms": moved / gbps / 1e6}
    clock, sms = rates.get("sm_mhz"), rates.get("sms")
    known = counts is not None and clock and sms and warps
    for name, key, rate in (
        ("issue_ms", "instructions", ISSUE),
        ("integer_ms", "integer_pipe", INTEGER_PIPE),
    ):
        found[name] = None
        if known:
            assert counts is not None and clock and sms
            found[name] = counts[key] * warps / (sms * rate * clock * 1e3)
    return found


def compiled_cubin(kernel: Any, before: set[Any]) -> bytes:
    """Machine code of a Triton kernel that was compiled since ``before`` (``compiled_keys``).

    Raises BenchError if there is none.
    """
    for key, made in _compiled(kernel).items():
        if key not in before and "cubin" in made.asm:
            code: bytes = made.asm["cubin"]
            return code
    raise BenchError("SC721", "no machine code was compiled for the step kernel")


def compiled_keys(kernel: Any) -> set[Any]:
    """Keys of what a Triton kernel has been compiled to in this process."""
    return set(_compiled(kernel))


def _compiled(kernel: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for device, caches in getattr(kernel, "device_caches", {}).items():
        found |= {(device, key): made for key, made in caches[0].items()}
    return found


def machine_rates(busy: Callable[[], object] | None = None) -> dict[str, Any]:
    """SM count and clock in MHz: read by nvidia-smi while ``busy`` is called, else its maximum."""
    found: dict[str, Any] = {
        "sms": torch.cuda.get_device_properties(0).multi_processor_count,
        "sm_mhz": None,
        "sm_mhz_max": None,
    }
    fields = "uuid,clocks.sm,clocks.max.sm"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if busy is not None:
        busy()  # the clock rises with the load, not at once
    try:
        reader = subprocess.Popen(
            query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return found
    while busy is not None and reader.poll() is None:
        busy()
        torch.cuda.synchronize()
    lines = reader.communicate()[0].splitlines()
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    lines = [x for x in lines if uuid in x] or lines[:1]
    numbers = re.fullmatch(r"[^,]+, (\d+), (\d+)", lines[0].strip()) if lines else None
    if numbers:
        found["sm_mhz"], found["sm_mhz_max"] = int(numbers[1]), int(numbers[2])
    return found
