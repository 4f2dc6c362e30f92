"""clip: clipped gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from signconv.ir.nodes import Program
from signconv.verification.laws.base import Array, Law, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """The program before, fed with clipped gradients; some are below the limit, some above.

    The norm of all gradients that it reads itself is of them as they come (docs/dsl.md).
    """
    limit = float(options.get("norm", options.get("value", "1")))
    sizes = np.array([0.5, 2.0, 0.9, 1e3])
    grads = [g / np.linalg.norm(g) * limit * s for g, s in zip(gradients(), sizes, strict=True)]
    noise = 0.25 if before.link == "stosign" else None
    clipped = [_clipped(g, limit, "value" in options) for g in grads]
    old = run(before, clipped, noise, came=grads)
    new = run(after, grads, noise)
    for (a, s), (b, r) in zip(old, new, strict=True):
        if differ(a, b) or any(differ(s[n], r[n]) for n in s):
            return "not the program before on clipped gradients"
    return ""


def _clipped(g: Array, limit: float, by_value: bool) -> Array:
    """As torch.nn.utils.clip_grad_value_ and clip_grad_norm_."""
    if by_value:
        return np.clip(g, -limit, limit)
    factor = limit / (np.sqrt(np.square(g).sum()) + 1e-6)
    return g * min(1.0, float(factor))


LAW = Law("the program before, on clipped gradients", check)
