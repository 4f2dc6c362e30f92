"""What the reference did for one row, and its LLVM instructions, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir

from signconv.runtime.cpu.lanes import LLVM, Lanes
from signconv.runtime.formats import BLOCK


class Trace:
    """What the reference did, in order, for one row; ``emit`` writes it down.

    The instructions come part by part (``width`` elements, what a vector register holds), since
    whole rows of intermediate values would not fit the registers.  A row's maximum ends a stage:
    what depends on it is written after all parts of what it depends on.

    ``reductions`` are the names of the functions that turn sums into numbers, in order;
    ``summands`` what is summed.  ``reduced`` gives such a number, as the second phase reads it;
    ``storing`` is off in the first.  ``inside``: where rows may be partial, masks of each part, of
    its elements (1) and of its bytes of two codes (2).
    """

    def __init__(self, builder: Any, width: int, storing: bool = True) -> None:
        self.builder, self.width, self.storing = builder, width, storing
        self.nodes: list[Lanes] = []
        self.summands: list[Lanes] = []
        self.reductions: list[str] = []
        self.reduced: Callable[[int], Lanes] | None = None
        self.inside: dict[int, list[Any]] = {}

    @property
    def parts(self) -> range:
        return range(BLOCK // self.width)

    def constant(self, x: float | bool, dtype: torch.dtype) -> Lanes:
        """A number for all elements."""
        t = LLVM[dtype]
        exact = (
            float(torch.tensor(x, dtype=dtype, device="cpu")) if dtype.is_floating_point else int(x)
        )
        return Lanes(self, dtype, False, lambda _: ir.Constant(t, exact), number=exact)

    def uniform(self, dtype: torch.dtype, value: Any) -> Lanes:
        """An LLVM value for all elements."""
        return Lanes(self, dtype, False, lambda _: value)

    def emit(self) -> None:
        """Write the instructions of all nodes at the builder's place."""
        for stage in range(1 + max((n.stage for n in self.nodes), default=0)):
            nodes = [n for n in self.nodes if n.stage == stage]
            for n in nodes:
                if not n.wide:
                    n.at(0, wide=False)
            for part in self.parts:
                for n in nodes:
                    if n.wide:
                        n.at(part)

    def intrinsic(self, name: str, result: Any, *arguments: Any) -> Any:
        """Call an LLVM intrinsic; ``name`` without the types it is overloaded on."""
        module = self.builder.module
        types = [a.type for a in arguments]
        full = f"llvm.{name}.{_suffix(types[0])}"
        function = module.globals.get(full)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, types), full)
        return self.builder.call(function, arguments)


def _suffix(t: Any) -> str:
    if isinstance(t, ir.VectorType):
        return f"v{t.count}{_suffix(t.element)}"
    return {"float": "f32", "double": "f64"}.get(str(t), str(t))
