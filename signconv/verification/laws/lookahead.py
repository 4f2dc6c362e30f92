"""lookahead: the program before, set back to the slow weights every k steps."""

from __future__ import annotations

from collections.abc import Mapping

from signconv.ir.nodes import Program
from signconv.verification.laws.base import Array, Law, differ, gradients, path


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """Zhang et al. 2019, Alg. 1."""
    k, alpha = int(options.get("k", "5")), float(options.get("alpha", "0.5"))
    grads = [g for _ in range(-(-(2 * k + 1) // 4)) for g in gradients()]
    slow = path(before, [])[0][0]

    def back(t: int, fast: Array) -> Array:
        nonlocal slow
        if t % k:
            return fast
        slow = slow + alpha * (fast - slow)
        return slow

    for (p, _, _), (q, _, _) in zip(path(before, grads, back), path(after, grads), strict=True):
        if differ(p, q):
            return f"not the program before with slow weights every {k} steps"
    return ""


LAW = Law("the program before, set to the slow weights every k steps", check)
