"""soft: a denominator of order p that shares its beta with the numerator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from signconv.ir.nodes import Program, Ref
from signconv.verification.laws.base import SIZE, Law, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """A new moment s = EMA of abs(u)**p beside the EMA m of u, one beta; sigma = s**(1/p)."""
    p = float(options["p"])
    (s,) = {m.name for m in after.moments} - {m.name for m in before.moments}
    beta_name = after.moment(s).beta
    tied = [m.name for m in after.moments if m.beta == beta_name and m.name != s]
    if not isinstance(beta_name, Ref) or len(tied) != 1:
        return f"{s} shares its beta with {len(tied)} other moments instead of one"
    beta, (m,) = after.hyper(beta_name.name).default, tied  # type: ignore[union-attr]
    runs = run(after, gradients())
    last_m, last_s = np.zeros(SIZE), np.zeros(SIZE)
    for update, state in runs:
        u = (state[m] - beta * last_m) / (1 - beta)
        wanted = beta * last_s + (1 - beta) * np.abs(u) ** p
        if differ(state[s], wanted, 1e-6):
            return f"{s} is not the EMA of abs(u)**{p:g}"
        if (np.abs(state[m]) > state[s] ** (1 / p) * (1 + 1e-9)).any():
            return f"abs({m}) > {s}**(1/{p:g})"
        if after.numerator == Ref("value", m):
            if differ(update, state[m] / state[s] ** (1 / p)):
                return "the update is not m / s**(1/p)"
        last_m, last_s = state[m], state[s]
    return ""


LAW = Law("the denominator is the root of an EMA of abs(u)**p with m's beta", check)
