"""ema: an average beside a training that is as it was."""

from __future__ import annotations

from collections.abc import Mapping

from signconv.ir.nodes import Program
from signconv.verification.laws.base import Law, differ, gradients, path


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """The parameters of before, and their EMA from the first of them."""
    (name,) = {m.name for m in after.moments} - {m.name for m in before.moments}
    beta = float(options.get("beta", "0.999"))
    grads = gradients()
    average = path(before, [])[0][0]
    steps = zip(path(before, grads)[1:], path(after, grads)[1:], strict=True)
    for (p, _, _), (q, state, evaluated) in steps:
        average = beta * average + (1 - beta) * p
        if differ(p, q):
            return "training is not as it was"
        if differ(average, state[name]) or differ(average, evaluated):
            return "the average is not that of the parameters"
    return ""


LAW = Law("the parameters of before, evaluated at their EMA", check)
