"""init: an average from its first input is one from zero whose value before was that input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from signconv.ir.nodes import Program
from signconv.verification.laws.base import SIZE, Law, Probe, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """beta*u1 + (1 - beta)*u1 = u1: the two programs, the one from zero put there."""
    zero, first = (before, after) if options["to"] == "first" else (after, before)
    changed = [m.name for m, n in zip(zero.moments, first.moments, strict=True) if m.init != n.init]
    if not changed or any(m.init != options["to"] for m in after.moments if m.kind == "ema"):
        return "averages do not start there"
    noise = 0.25 if before.link == "stosign" else None
    grads = gradients()
    wanted = run(first, grads, noise)
    ev, param = Probe(zero, lr=1.0), np.linspace(-1.0, 1.0, SIZE)
    state = ev.initial_state(param)
    state |= {n: wanted[0][1][n] for n in changed}
    draw = None if noise is None else np.full(SIZE, noise)
    for t, (g, (update, states)) in enumerate(zip(grads, wanted, strict=True), 1):
        _, state = ev.step(param, g, state, t, draw)
        if differ(ev.update, update) or any(differ(state[n], states[n]) for n in states):
            return "not the program from zero whose averages were their first inputs before"
    return ""


LAW = Law("from the first input is from zero, had the average been that input before", check)
