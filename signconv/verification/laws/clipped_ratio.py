"""What stosign and expected share: the clipped ratio of the program before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from signconv.ir.analysis import is_scalar
from signconv.ir.nodes import Op, Program, Ref, walk
from signconv.verification.laws.base import Array, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """clip(ratio) of the program before: as it is, or as the mean of a sign over its draws.

    There a negative sigma mirrors the draws, so that the mean is clip(m/abs(sigma)).
    """
    plain = _ratio(before, after)
    grads = gradients()
    tops = [u for u, _ in run(replace(plain, denominator=None), grads)]
    if before.denominator is None:
        (g,) = {m.name for m in after.moments} - {m.name for m in before.moments}
        sigmas = list(np.maximum.accumulate(np.abs(tops)))
        states = [s for _, s in run(replace(after, link="ratio"), grads)]
        if any(differ(s[g], largest) for s, largest in zip(states, sigmas, strict=True)):
            return f"{g} is not the running maximum of the numerator"
    else:
        if options.get("eps") != "keep" and _other_offset(before, after):
            return None  # what is added to the denominator goes: another program
        sigma = replace(plain, numerator=before.denominator, denominator=None)
        sigmas = [u for u, _ in run(sigma, grads)]
    if after.link == "expected":
        found = [u for u, _ in run(after, grads)]
        wanted = [_clipped(m, s) for m, s in zip(tops, sigmas, strict=True)]
        return "not the clipped ratio" if any(map(differ, found, wanted)) else ""
    wanted = [_clipped(m, np.abs(s)) for m, s in zip(tops, sigmas, strict=True)]
    draws = [(2 * u + 1 - levels) / levels for u in range(levels)]
    signs = np.mean([[u for u, _ in run(after, grads, n)] for n in draws], axis=0)
    gap = np.abs(signs - wanted)
    return "mean of the sign is not clip(ratio)" if (gap > 1 / levels + 1e-9).any() else ""


def _ratio(p: Program, like: Program) -> Program:
    """``p`` as a plain ratio, with the hyperparameters that the link took away set to zero."""
    gone = {h.name for h in p.hypers} - {h.name for h in like.hypers}
    hypers = tuple(replace(h, default=0.0, gt=None) if h.name in gone else h for h in p.hypers)
    return replace(p, link="ratio", hypers=hypers)


def _clipped(m: Array, sigma: Array) -> Array:
    """clip(m/sigma, -1, 1) with 0/0 = 0."""
    return np.clip(np.where((m == 0) & (sigma == 0), 0.0, m / sigma), -1.0, 1.0)


def _other_offset(before: Program, after: Program) -> bool:
    """Whether anything but a hyperparameter that went is added to, or compared with, sigma."""
    gone = {h.name for h in before.hypers} - {h.name for h in after.hypers}
    pending = [before.denominator]
    while pending:
        for n in walk(pending.pop()):  # type: ignore[arg-type]
            if isinstance(n, Ref) and n.kind == "temp":
                pending.append(before.temp(n.name).expr)
            if isinstance(n, Op) and n.fn in ("add", "max", "sub") and not is_scalar(n, before):
                scalars = [a for a in n.args if is_scalar(a, before)]
                if any(not (isinstance(a, Ref) and a.name in gone) for a in scalars):
                    return True
    return False
