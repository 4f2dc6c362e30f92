"""nesterov: the look-ahead."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from signconv.ir.nodes import Program, Ref, walk
from signconv.verification.laws.base import SIZE, Law, Probe, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """The state is the same; the update is that of seeing the same gradient once more.

    An EMA that sees u again is beta*m + (1 - beta)*u, corrected by 1 - beta**(t+1).  Where other
    things in the update change with the second look there is no such law.
    """
    grads = gradients()
    noise = 0.25 if before.link == "stosign" else None
    new = run(after, grads, noise)
    old = run(before, grads, noise)
    for (_, s), (_, r) in zip(old, new, strict=True):
        if any(differ(s[n], r[n]) for n in r):
            return "the state changed"
    if not _only_emas_of_the_gradient(before):
        return ""
    ev, param = Probe(before, lr=1.0), np.linspace(-1.0, 1.0, SIZE)
    for t, (g, (_, s), (update, _)) in enumerate(zip(grads, old, new, strict=True), 1):
        draw = None if noise is None else np.full(SIZE, noise)
        ev.step(param, g, s, t + 1, draw)
        if differ(ev.update, update):
            return f"step {t} is not the look ahead"
    return ""


def _only_emas_of_the_gradient(p: Program) -> bool:
    ok = all(m.kind == "ema" and m.init in ("zero", "first") for m in p.moments)
    for m in p.moments:
        for e in m.reads:
            kinds = {n.kind for n in walk(e) if isinstance(n, Ref)}
            ok = ok and kinds <= {"grad", "hyper"}
    for e in (*p.roots, *(x.expr for x in p.temps)):
        kinds = {n.kind for n in walk(e) if isinstance(n, Ref)}
        ok = ok and kinds <= {"grad", "hyper", "value", "temp", "param"}
    return ok


LAW = Law("the state is unchanged; one more look at the same gradient", check)
