"""What runs a step: one class per backend behind one interface.

``reference`` (PyTorch, anywhere), ``triton`` (GPUs) and ``cpu`` (LLVM) live in a folder each and
know nothing of one another, but for ``cpu``, which compiles the reference's function.  To add one:
a class here named in ``BACKENDS``, and the tests of tests/runtime run on it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from signconv.runtime import dense
from signconv.runtime.extras import NONE, Inputs
from signconv.runtime.program import OptimizerProgram

State = Mapping[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """Tensors of one param group on one device, stepped together.

    params: plain tensors with gradients, or DTensors that are yet to be dealt out (``owners``),
    which no backend is given; state: their entries.  key names what the backend keeps for the next
    step of the same tensors: its tables.  norm: of all gradients, 0-dim float64 on their device,
    where the program reads one; of scaled ones where they are scaled.  totals: float64 [names], as
    far as they are known (``OptimizerProgram.totals``).
    inputs: the extra ones of this step, of these params.
    """

    key: Hashable
    group: Mapping[str, Any]
    params: list[Tensor]
    state: State
    norm: Tensor | None = None
    inputs: Inputs = NONE
    totals: Tensor | None = None


class Backend(ABC):
    """Steps the parameters of one optimizer; made once per optimizer and kept between steps."""

    name: ClassVar[str]

    def __init__(self, program: OptimizerProgram) -> None:
        self.program = program

    @classmethod
    @abstractmethod
    def refusal(cls, device: torch.device) -> RuntimeError | None:
        """The error to raise where it cannot run on ``device``; None where it can."""

    @classmethod
    def automatic(cls, device: torch.device) -> bool:
        """Whether "auto" may choose it for ``device``."""
        return cls.refusal(device) is None

    def on_device(self, device: torch.device) -> AbstractContextManager[Any]:
        """Entered around everything that this class does for tensors of ``device``."""
        return nullcontext()

    def followed(self, groups: Sequence[Mapping[str, Any]]) -> dict[int, torch.device]:
        """Groups (index: device) whose last task can be stepped again as it was prepared, all of
        their parameters having gradients, provided that their state entries are still the same."""
        return {}

    @abstractmethod
    def prepare(self, task: Task) -> None:
        """Bring what is kept for ``task.key`` up to date; before ``step``, unless followed.

        Raises RuntimeError for tensors that no longer fit their state; nothing is stepped then.
        """

    def find_nonfinite(self, task: Task, flag: Tensor) -> None:
        """Raise ``flag`` (0-dim fp32 on the task's device) if any gradient is Inf or NaN."""
        dense.find_nonfinite(task.params, flag)

    @abstractmethod
    def square_sums(self, task: Task) -> Tensor:
        """Sums of squares of a prepared task's gradients, float64 [params], in their order."""

    @abstractmethod
    def total(self, task: Task, sums: Tensor) -> Tensor:
        """The sum over the parameters, neighbours first, of ``square_sums`` (0-dim) or of ``sums``
        ([names]); valid until the next call."""

    @abstractmethod
    def sums(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> Tensor:
        """What each parameter adds to the totals, float64 [params, names], before a step of which
        it is a part; those are right that need no total that ``task.totals`` has not.  Anything
        where ``skip`` is not 0."""

    @abstractmethod
    def step(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> Tensor | None:
        """Step a prepared task in place, its state too; nothing moves where ``skip`` is not 0.

        Gradients are divided by ``grad_scale`` and negated where the group says maximize.  Of a
        program whose totals are ``trailing`` it returns ``sums``, and clocks and scalar states go
        on with ``settle``, which has the totals.
        """

    @abstractmethod
    def settle(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> None:
        """The rest of such a step."""


#: Name: module and class, imported when first asked for; "auto" takes the first that may run.
BACKENDS = {
    "triton": ("signconv.runtime.kernel.backend", "TritonBackend"),
    "cpu": ("signconv.runtime.cpu.backend", "CpuBackend"),
    "reference": ("signconv.runtime.reference.backend", "ReferenceBackend"),
}
NAMES = ("auto", *BACKENDS)


@cache
def _load(name: str) -> type[Backend]:
    module, cls = BACKENDS[name]
    return getattr(importlib.import_module(module), cls)


def choose(name: str, device: torch.device) -> type[Backend]:
    """The class for ``backend=name`` on a device; RuntimeError where that cannot run there."""
    if name == "auto":
        return next(found for n in BACKENDS if (found := _load(n)).automatic(device))
    found = _load(name)
    refusal = found.refusal(device)
    if refusal is not None:
        raise refusal
    return found
