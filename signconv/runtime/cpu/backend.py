"""The CPU backend: all tensors of a param group in one call per dtype and storage."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from signconv.runtime.backend import Backend, Task
from signconv.runtime.compat import CPU_REMEDY, HAS_LLVM, warn_once
from signconv.runtime.errors import coded
from signconv.runtime.formats import MASTER
from signconv.runtime.program import OptimizerProgram
from signconv.runtime.reference.backend import ReferenceBackend

if TYPE_CHECKING:
    from signconv.runtime.cpu.engine import CpuEngine


class CpuBackend(Backend):
    """The reference compiled by LLVM; what its kernels do not know goes to the reference itself:
    bf16 parameters with master weights, and programs that sum over dimensions or more than once.
    """

    name = "cpu"

    def __init__(self, program: OptimizerProgram) -> None:
        super().__init__(program)
        self._engines: dict[object, CpuEngine] = {}
        self._reference = ReferenceBackend(program)

    @classmethod
    def refusal(cls, device: torch.device) -> RuntimeError | None:
        if device.type != "cpu":
            return coded(
                RuntimeError, "SC602", f"backend='cpu' cannot run on {device}: leave backend='auto'"
            )
        if not HAS_LLVM:
            return coded(RuntimeError, "SC603", f"backend='cpu' needs llvmlite: {CPU_REMEDY}")
        return None

    @classmethod
    def automatic(cls, device: torch.device) -> bool:
        if device.type == "cpu" and not HAS_LLVM:
            warn_once(
                "signconv steps on the PyTorch reference, which is written for truth and not for "
                f"speed; the fast CPU backend needs llvmlite: {CPU_REMEDY}, or choose "
                "backend='reference' to silence this"
            )
        return cls.refusal(device) is None

    def prepare(self, task: Task) -> None:
        from signconv.runtime.cpu.engine import CpuEngine  # loads LLVM: not before a step

        known, rest = self._parts(task)
        if task.key not in self._engines:
            self._engines[task.key] = CpuEngine(self.program)
        self._engines[task.key].prepare(known, task)
        self._reference.prepare(rest)

    def square_sums(self, task: Task) -> Tensor:
        return self._reference.square_sums(task)

    def total(self, task: Task, sums: Tensor) -> Tensor:
        return self._reference.total(task, sums)

    def sums(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> Tensor:
        return self._reference.sums(task, skip, grad_scale)

    def step(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> Tensor | None:
        known, rest = self._parts(task)
        if known and (skip is None or not bool(skip)):
            self._engines[task.key].step(task, known, grad_scale)
        return self._reference.step(rest, skip, grad_scale)

    def settle(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> None:
        self._reference.settle(task, skip, grad_scale)

    def _parts(self, task: Task) -> tuple[list[Tensor], Task]:
        """What the kernels step, and what they do not know."""
        if not self.program.plain:
            return [], task
        known = [p for p in task.params if MASTER not in task.state[p]]
        others = [p for p in task.params if MASTER in task.state[p]]
        return known, replace(task, params=others)
