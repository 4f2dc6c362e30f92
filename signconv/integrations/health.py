"""``signconv.inspect`` as numbers that a trainer logs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from signconv.runtime.inspect import SHARES, inspect

#: Parameters logged by name, of each moment and share: those where it is largest.
MOST = 10


def metrics(
    optimizer: Any, model: torch.nn.Module | None = None, most: int = MOST
) -> dict[str, float]:
    """Shares of zero, saturated, stalled and non-finite elements, from ``signconv.inspect``.

    Keys: ``signconv/<share>/<moment>`` is the mean over parameters, weighted by their size, and
    ``signconv/<share>/<moment>/<parameter>`` the share of one of the ``most`` parameters where it
    is largest and not 0; weights are the moment ``weights``.  Names are those of ``model``.
    """
    health = inspect(optimizer, model)
    found: dict[tuple[str, str], list[tuple[float, int, str]]] = defaultdict(list)
    for row in health.rows:
        for share in SHARES:
            value = getattr(row, share)
            if value is not None:
                size = torch.Size(row.shape).numel()
                found[share, row.moment or "weights"].append((value, size, row.parameter))
    made: dict[str, float] = {}
    for (share, moment), values in found.items():
        key = f"signconv/{share}/{moment}"
        made[key] = sum(x * n for x, n, _ in values) / max(sum(n for _, n, _ in values), 1)
        for value, _, name in sorted(values, reverse=True)[:most]:
            if value > 0:
                made[f"{key}/{name}"] = value
    made["signconv/state_bytes"] = float(health.state_bytes)
    return made
