"""The Triton backend: GPUs, and for tests Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.backend import Backend, Task
from signconv.runtime.compat import HAS_TRITON
from signconv.runtime.errors import coded
from signconv.runtime.formats import STEPS, SUMS_ALONE, SUMS_TOO
from signconv.runtime.kernel.engine import GroupEngine
from signconv.runtime.kernel.launch import interpreted, on_device
from signconv.runtime.program import OptimizerProgram
from signconv.runtime.settings import has_float64

#: Devices that Triton compiles for.
DEVICES = ("cuda", "xpu")


def _compiles_for(device: torch.device) -> bool:
    """Whether kernels run there; scalars are float64, which some of Intel's GPUs lack."""
    return HAS_TRITON and device.type in DEVICES and has_float64(device)


class TritonBackend(Backend):
    """One launch for all tensors of a param group that share dtype and storage."""

    name = "triton"

    def __init__(self, program: OptimizerProgram) -> None:
        super().__init__(program)
        self._engines: dict[Hashable, GroupEngine] = {}

    @classmethod
    def refusal(cls, device: torch.device) -> RuntimeError | None:
        if _compiles_for(device) or (HAS_TRITON and interpreted()):
            return None
        return coded(
            RuntimeError,
            "SC601",
            f"backend='triton' cannot run on {device}: it needs Triton and a GPU that has float64; "
            "leave backend='auto'",
        )

    @classmethod
    def automatic(cls, device: torch.device) -> bool:
        """Never the interpreter, which is for tests."""
        return _compiles_for(device)

    def on_device(self, device: torch.device) -> AbstractContextManager[Any]:
        return on_device(device)

    def followed(self, groups: Sequence[Mapping[str, Any]]) -> dict[int, torch.device]:
        found = {}
        for key, engine in self._engines.items():
            if isinstance(key, tuple) and key[0] < len(groups):
                if engine.follow(groups[key[0]]["params"]):
                    found[key[0]] = key[1]
        return found

    def prepare(self, task: Task) -> None:
        if task.key not in self._engines:
            self._engines[task.key] = GroupEngine(self.program, task.params[0].device)
        self._engines[task.key].prepare(task.params, task.state)

    def find_nonfinite(self, task: Task, flag: Tensor) -> None:
        self._engines[task.key].find_nonfinite(flag)

    def square_sums(self, task: Task) -> Tensor:
        return self._engines[task.key].square_sums()

    def total(self, task: Task, sums: Tensor) -> Tensor:
        return self._engines[task.key].total(sums)

    def sums(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> Tensor:
        found = self._engines[task.key].step(task, skip, grad_scale, SUMS_ALONE)
        assert found is not None
        return found

    def step(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> Tensor | None:
        trailing = self.program.totals is not None and self.program.totals.trailing
        return self._engines[task.key].step(task, skip, grad_scale, SUMS_TOO if trailing else STEPS)

    def settle(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> None:
        self._engines[task.key].scale(task, skip, grad_scale, settles=True)
