"""One comparison: a spec, and what both sides are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from signconv.ir.nodes import Program

from .compare import SHAPES, TOLERANCE, Run, tupled

#: What rows without values of their own take, where the spec has the hyperparameter.
USUAL = {
    "lr": 3e-3, "beta1": 0.8, "beta2": 0.95, "beta3": 0.7, "momentum": 0.8, "dampening": 0.1,
    "eps": 1e-3, "weight_decay": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison. ``note`` says what the two do otherwise, and may be empty."""

    spec: str
    values: Mapping[str, float] = field(default_factory=dict)
    #: Keywords of the collection's class in place of, or beside, the hyperparameters; None: none.
    theirs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    tolerance: float = TOLERANCE
    #: Hyperparameters of the param group that tensors of a shape are in; the collection sees only
    #: the shape.
    by_shape: Mapping[tuple[int, ...], Mapping[str, float]] = field(default_factory=dict)
    #: Entries of the collection's param group that its constructor does not take.
    group: Mapping[str, Any] = field(default_factory=dict)
    #: Those of the group that tensors of a shape are in.
    groups: Mapping[tuple[int, ...], Mapping[str, Any]] = field(default_factory=dict)
    #: Names of the parameters, for a class of the collection that goes by them.
    names: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    #: Whether lr halves on the way.
    scheduled: bool = True
    #: Extra inputs are passed in the first step, and every so many after it.
    every: int = 1
    #: From an extra input's tensors to what the class's ``step`` takes, if not those by its name.
    asked: Callable[[list[Tensor]], Mapping[str, Any]] | None = None
    #: Whether gradients are added to what the class left in their buffers.
    accumulated: bool = False
    #: Whether the class asks for a process group.
    distributed: bool = False

    def run(self, program: Program) -> Run:
        """Values of all hyperparameters of the spec, and the collection's keywords for them."""
        names = [h.name for h in program.hypers]
        values = {n: v for n, v in {**USUAL, **self.values}.items() if n in names}
        keywords = tupled(values, "beta", "nu") | dict(self.theirs)
        keywords = {n: v for n, v in keywords.items() if v is not None}
        extras = {x.name: x.per for x in program.extras}
        return Run(
            values, keywords, self.by_shape, self.group, self.groups, self.names, self.shapes,
            self.scheduled, extras, self.every, self.asked, self.accumulated,
            self.distributed,
        )  # fmt: skip
