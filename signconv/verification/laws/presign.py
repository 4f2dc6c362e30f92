"""presign: moments of signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from signconv.ir.nodes import Moment, Program, Ref, walk
from signconv.verification.laws.base import Law, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """The program before, from zero, fed with the signs of the gradients."""
    grads = gradients()
    zero = tuple(replace(m, init="zero") if _starts(m) else m for m in before.moments)
    noise = 0.25 if before.link == "stosign" else None
    old = run(replace(before, moments=zero), [np.sign(g) for g in grads], noise)
    new = run(after, grads, noise)
    for (a, s), (b, r) in zip(old, new, strict=True):
        if differ(a, b) or any(differ(s[n], r[n]) for n in s):
            return "not the program before on sign(g)"
    return ""


def _starts(m: Moment) -> bool:
    """Whether it begins with its first input, unless that is an extra one and no gradient."""
    kinds = {n.kind for e in m.reads for n in walk(e) if isinstance(n, Ref)}
    return m.init == "first" and not (kinds & {"extra", "number"} and "grad" not in kinds)


LAW = Law("the program before, from zero, on the signs of the gradients", check)
