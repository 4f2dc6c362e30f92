"""A search for a counterexample to a bound that was derived.

A proof can be wrong, a run of the program in float64 cannot: every bound that ``proofs`` derives is
run against spikes, growth, alternation and random gradients, from t = 1 and late, at the
hyperparameters that the claim is about.  Those of one claim are run together, one per element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from signconv.ir.axes import has_axes
from signconv.ir.nodes import Hyper, Program
from signconv.prove.extremal import Array, Run

#: How far above a bound the rounding of float64 may lift a ratio.
ROUNDING = 1e-8
#: Where a moment is smaller than this, float64 has lost digits of it.
TINY = 1e-280


def counterexample(
    p: Program,
    limit: float,
    hypers: Mapping[str, float] | None = None,
    *,
    late: bool,
    steps: int = 100,
    size: int = 768,
    seed: int = 0,
) -> float | None:
    """A ratio of ``p`` (bare: no link, no eps) above ``limit``, or None where none is found.

    At ``hypers``, or where they are None at random legal hyperparameters, the same at every step.
    ``late``: after a long silence, where bias corrections have reached their limits.
    """
    if has_axes(p):
        return None  # a column here is a sequence for itself, and there elements of a tensor
    rng = np.random.default_rng(seed)
    others = [h for h in p.hypers if h.name != "lr"]
    at: Mapping[str, Any] = hypers or {}
    if hypers is None:
        at = {h.name: legal(h, rng, size) for h in others}
    run = Run(p, size, at, late)
    worst = 0.0
    for g in sequences(rng, steps, size):
        x = np.abs(run.step(g))
        sound = np.isfinite(x)
        for s in run.state.values():
            sound &= (s == 0) | (np.abs(s) > TINY)
        worst = max(worst, float(np.max(x, where=sound, initial=0.0)))
    return worst if worst > limit * (1 + ROUNDING) else None


def legal(h: Hyper, rng: np.random.Generator, size: int) -> Array:
    """Random legal values of a hyperparameter, many of them near or at the ends of its range."""
    low = max((x for x in (h.ge, h.gt) if x is not None), default=None)
    high = min((x for x in (h.le, h.lt) if x is not None), default=None)
    near = 10.0 ** -rng.uniform(0, 4, size)
    if low is not None and high is not None:
        kinds = [rng.uniform(0, 1, size), near / 2, 1 - near / 2, np.zeros(size), np.ones(size)]
        made = low + (high - low) * np.choose(rng.integers(0, len(kinds), size), kinds)
    elif low is not None:
        made = low + abs(h.default - low) * np.exp(rng.standard_normal(size))
    elif high is not None:
        made = high - abs(high - h.default) * np.exp(rng.standard_normal(size))
    else:
        made = h.default + (1 + abs(h.default)) * rng.standard_normal(size)
    made[0] = h.default
    return np.array([x if h.allows(float(x)) else h.default for x in made])


def sequences(rng: np.random.Generator, steps: int, size: int) -> Array:
    """One gradient sequence per column; powers up to the 8th stay normal float64 numbers."""
    i = np.arange(steps)[:, None]
    rate = 10.0 ** rng.uniform(-3, 0.5, size)
    begin = rng.integers(0, steps, size)
    noise = rng.standard_normal((steps, size))
    kinds = [
        np.ones((steps, size)),
        1.0 * (i == np.minimum(begin, 3)),
        1.0 * (i >= begin),
        np.exp(np.maximum(rate * (i - steps + 1), -40)) * (i >= begin),
        np.exp(np.maximum(-rate * i, -40)),
        np.exp(np.maximum(rate * (i % (begin + 1) - begin), -40)),
        (-1.0) ** i * np.exp(np.maximum(rate * (i - steps + 1), -40)),
        noise,
        np.sign(noise) * (rng.uniform(size=(steps, size)) < 0.1),
        noise * np.exp(2 * rng.standard_normal((steps, size))),
    ]
    return np.choose(np.arange(size)[None, :] % len(kinds), kinds)
