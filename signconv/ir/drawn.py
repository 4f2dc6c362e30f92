"""Random extra inputs for those who run programs only to look at them: proofs, laws, ``verify``."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from signconv.ir.evaluate import Array, Evaluator, State
from signconv.ir.extras import needed
from signconv.ir.nodes import Program

#: How many numbers, or the shape of an array of them.
Size = int | tuple[int, ...]


def drawn(p: Program, t: int, size: Size) -> dict[str, Array]:
    """Extra inputs of step ``t``: float64 of a size or shape per element, over four decades with
    both signs unless the spec says otherwise, one number per step.  What a step can do without is
    there at odd steps."""
    always = needed(p)
    names = [x for x in p.extras if x.name in always or t % 2]
    return {x.name: values(x.name, x.per, t, size, x.nonneg) for x in names}


def values(name: str, per: str, t: int, size: Size, nonneg: bool) -> Array:
    """One extra input, as fp32 numbers."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), t])
    if per == "step":
        made: npt.NDArray[Any] = np.asarray(10.0 ** rng.uniform(-2, 4))
        made = made if nonneg or t % 3 else -made
    else:
        scale = 10.0 ** np.random.default_rng(zlib.crc32(name.encode())).uniform(-3, 1, size)
        made = scale * rng.standard_normal(size)
        made = np.abs(made) if nonneg else made
    return made.astype(np.float32).astype(np.float64)


class Drawing(Evaluator):
    """An evaluator that draws the extra inputs of every step itself."""

    def step(
        self,
        param: Array,
        grad: Array,
        state: State,
        t: int,
        noise: Array | None = None,
        norm: Array | None = None,
        extras: Mapping[str, Array] | None = None,
    ) -> tuple[Array, State]:
        found = drawn(self.program, t, np.shape(grad)) if extras is None else extras
        return super().step(param, grad, state, t, noise, norm, found)


__all__ = ["Drawing", "drawn", "values"]
