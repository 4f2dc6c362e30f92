"""One row: everything that is measured of one optimizer's step on one list of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from signconv.bench import limits, timing
from signconv.bench.subjects import Built
from signconv.bench.timing import Effort
from signconv.runtime.kernel import step, walk

#: The kernels that go over all elements (runtime/kernel): the step, as elements lie or by columns,
#: and the passes before it.
ELEMENTWISE = ("step_kernel", "walk_kernel", "reduce_kernel", "column_kernel")
#: The clock of a row that has only the time of whole steps.
WHOLE = "steps one after the other"
#: Why there is no limit by instructions where nothing was compiled.
CPU = "no machine code: not on a GPU"


def time_step(
    optimizer: Any, params: list[Tensor], device: str, effort: Effort, captures: bool = False
) -> dict[str, Any]:
    """Times and memory of ``optimizer.step()``, with quartiles of the samples.

    step_ms: one call after the other, host part included; device_ms: the device alone, by replay
    of a captured step if ``captures``, else until ``add_kernels`` the same as step_ms; host_us and
    peak_bytes: on a GPU only.
    """
    step = optimizer.step
    elements = sum(p.numel() for p in params)
    step()
    samples = {"step_ms": timing.summary(timing.device_times(step, device, effort))}
    time = samples["step_ms"]["median"]
    row: dict[str, Any] = {
        "state_bytes": state_bytes(optimizer) / elements,
        "step_ms": time,
        "device_ms": time,
        "clock": WHOLE,
        "samples": samples,
    }
    if device == "cpu":
        return row
    samples["host_us"] = timing.summary(timing.host_times(step, effort))
    row["host_us"] = samples["host_us"]["median"]
    row["peak_bytes"] = timing.peak_bytes(step)
    if captures:
        try:
            replays = timing.device_times(timing.capture(step), device, effort)
        except Exception as error:
            row["capture_error"] = one_line(error)
        else:
            samples["graph_ms"] = timing.summary(replays)
            row |= {"device_ms": samples["graph_ms"]["median"], "clock": "graph replay"}
    return row


def kernels_of(optimizer: Any) -> dict[str, Any]:
    """What the driver runs for one step: kernels, launches, copies, their time in all.

    Or ``profiler_error``.  Call it after all that is timed: the profiler stays attached to the
    driver, slows later launches down, and may not meet a later capture of a graph.
    """
    try:
        optimizer.step()
        found = timing.kernels(optimizer.step)
    except Exception as error:  # a machine without access to the driver's counters
        return {"profiler_error": one_line(error)}
    moves = [k for k in found if k.name.startswith(("Memcpy", "Memset"))]
    return {
        "kernels": [asdict(k) for k in found],
        "launches": sum(k.launches for k in found if k not in moves),
        "copies": sum(k.launches for k in moves),
        "busy_ms": sum(k.ms for k in found),
    }


def add_kernels(row: dict[str, Any], found: dict[str, Any]) -> None:
    """Put what ``kernels_of`` found into a row: without a captured step it is the device's time."""
    row |= found
    if row["clock"] == WHOLE and row.get("busy_ms"):
        row |= {"device_ms": row["busy_ms"], "clock": "sum of kernels"}


class Ours:
    """Measures generated optimizers on one list of tensors after another.

    Keeps what was counted in each compiled kernel, since Triton compiles it once per process.
    """

    def __init__(self, device: str, effort: Effort, rates: dict[str, Any]) -> None:
        self.device, self.effort, self.rates = device, effort, rates
        self.counts: dict[tuple[str, str], tuple[dict[str, int] | None, str | None]] = {}

    def time(self, built: Built, params: list[Tensor]) -> dict[str, Any]:
        """The row of one subject; raises what its step raises (out of memory, say)."""
        optimizer = built.optimizer(params)
        before = [(k, limits.compiled_keys(k)) for k in (step.step_kernel, walk.walk_kernel)]
        row = time_step(optimizer, params, self.device, self.effort, captures=True)
        row["backend"] = optimizer.backend_for(params[0].device).name
        row["counts"], row["counts_error"] = self._counts(built, before)
        row["moved_bytes"] = built.moved_bytes
        return row

    def derive(self, row: dict[str, Any], elements: int, copy: float, list_copy: float) -> None:
        """What follows from a row's measurements: fractions of a copy (GB/s), and limits."""
        moved = row["moved_bytes"] * elements
        row["gbps"] = moved / row["device_ms"] / 1e6
        row["of_copy"] = row["gbps"] / copy
        row["of_list_copy"] = row["gbps"] / list_copy
        steps = [k for k in row.get("kernels", []) if k["name"].startswith(ELEMENTWISE)]
        row["kernel_ms"] = sum(k["ms"] for k in steps) if steps else None
        warps = sum(k["warps"] for k in steps if k["name"].startswith(ELEMENTWISE[:2]))
        row["limits"] = limits.limits(moved, copy, warps, row["counts"], self.rates)

    def _counts(
        self, built: Built, before: list[tuple[Any, set[Any]]]
    ) -> tuple[dict[str, int] | None, str | None]:
        """Instructions per warp of the step kernel, or None and the reason; ``before``: what there
        was of the kernels that it may be."""
        if self.device == "cpu":
            return None, CPU
        key = (built.subject.label, built.subject.params)
        if key not in self.counts:
            try:
                fresh = [x for x in before if limits.compiled_keys(x[0]) - x[1]]
                cubin = limits.compiled_cubin(*(fresh or before)[0])
                self.counts[key] = limits.issue_counts(cubin), None
            except Exception as error:  # no cuobjdump beside this Triton, or no NVIDIA GPU
                self.counts[key] = None, one_line(error)
        return self.counts[key]


# ---------------------------------------------------------------- state of any optimizer


def state_bytes(optimizer: Any) -> int:
    """Bytes of the tensors in ``optimizer.state``; scalars (step counts) are left out."""
    stores: dict[int, int] = {}
    for entry in optimizer.state.values():
        for t in _tensors(entry, 0):
            if t.numel() > 1:
                store = t.untyped_storage()
                stores[store.data_ptr()] = max(
                    stores.get(store.data_ptr(), 0), t.numel() * t.element_size()
                )
    return sum(stores.values())


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    """Plain tensors inside containers, tensor subclasses and small objects."""
    if isinstance(value, Tensor):
        inner = getattr(value, "__tensor_flatten__", None)
        if inner is None:
            yield value
        else:
            for name in inner()[0]:
                yield from _tensors(getattr(value, name), depth + 1)
    elif depth < 4:
        parts = value
        if isinstance(value, dict):
            parts = value.values()
        elif not isinstance(value, list | tuple):
            parts = vars(value).values() if hasattr(value, "__dict__") else ()
        for part in parts:
            yield from _tensors(part, depth + 1)


def one_line(error: BaseException) -> str:
    """What went wrong in one line, without folders of this machine."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the device"
    lines = [x for x in str(error).splitlines() if x.strip()] or [""]
    return shortened(f"{type(error).__name__}: {lines[0]}")


def shortened(text: str) -> str:
    """At most 160 characters of a message, without folders."""
    text = " ".join(text.split())
    return re.sub(r"(?<![\w.…])/(?:[\w.+-]+/)+", "…/", text)[:160]
