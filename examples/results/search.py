"""A sweep of learning rates that widens until its best lies inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optimizers import rate
from runs import Run, final_loss

Records = Mapping[str, Mapping[str, Any]]
WIDEST = 5  # lrs of one sweep, at most


def search(
    done: Records,
    middle: int,
    first_lrs: int,
    make: Callable[[float], Run],
    widest: int = WIDEST,
) -> tuple[list[Run], float | None]:
    """The runs of one sweep that are still missing, and the best lr once none is.

    middle: index on the grid (optimizers.rate) of the middle of the first lrs; widest: lrs of the
    sweep, at most.
    """
    half = first_lrs // 2
    indexes = list(range(middle - half, middle - half + first_lrs))
    widest = widest if first_lrs > 1 else 1
    while True:
        runs = [make(rate(i)) for i in indexes]
        missing = [run for run in runs if run.id not in done]
        if missing:
            return missing, None
        losses = [final_loss(done[run.id]) for run in runs]
        best = losses.index(min(losses))  # the smallest lr where all diverged
        if len(indexes) >= widest or 0 < best < len(indexes) - 1:
            return [], rate(indexes[best])
        if best == 0:
            indexes.insert(0, indexes[0] - 1)
        else:
            indexes.append(indexes[-1] + 1)
