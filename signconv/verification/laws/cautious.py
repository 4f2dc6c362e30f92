"""cautious: what opposes the gradient stays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from signconv.ir.nodes import Program
from signconv.verification.laws.base import Law, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """Liang et al. 2024, Alg. 1: masked, and scaled up by the share that is left."""
    grads = gradients()
    for g, (u, _), (v, _) in zip(grads, run(before, grads), run(after, grads), strict=True):
        mask = u * g > 0
        wanted = np.where(mask, u, 0.0) / max(float(mask.mean()), 1e-3)
        if differ(wanted, v):
            return "not the update before without what opposes the gradient"
    return ""


LAW = Law("the update before without what opposes the gradient, scaled up by its share", check)
