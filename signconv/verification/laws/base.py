"""What a law is, and what the laws share: runs of a program in the float64 evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from signconv.ir.analysis import unread
from signconv.ir.drawn import Drawing
from signconv.ir.nodes import Program

Array = npt.NDArray[np.float64]
SIZE, STEPS = 24, 4


@dataclass(frozen=True)
class Law:
    """What a pass promises.

    ``promise`` says it in words.  ``check(before, after, options, levels)`` gets the two programs
    without weight decay, the pass's options and the number of draws over which the mean of a
    stochastic sign is taken; it says what is wrong, "" where the promise holds, and None where the
    two programs cannot be compared.
    """

    promise: str
    check: Callable[[Program, Program, Mapping[str, str], int], str | None]


def bare(p: Program) -> Program:
    """Without weight decay, which no pass touches, and what only it reads."""
    p = replace(p, decay=None)
    gone = set(unread(p, [h.name for h in p.hypers if h.name != "lr"]))
    return replace(p, hypers=tuple(h for h in p.hypers if h.name not in gone))


class Probe(Drawing):
    """Keeps the update, which the parameter's rounding would swallow where it is small."""

    update: Array

    def _link(self, scope: Any, noise: Any) -> Array:
        update = super()._link(scope, noise)
        self.update = np.reshape(np.broadcast_to(update, self.shape), (SIZE,))
        return update


def run(
    p: Program,
    grads: list[Array],
    noise: float | None = None,
    first_t: int = 1,
    came: list[Array] | None = None,
) -> list[tuple[Array, dict[str, Array]]]:
    """Updates (the parameter held) and states of every step.  ``came``: the gradients as they came,
    whose norm a program may read; ``grads`` unless it is given."""
    ev = Probe(p, lr=1.0)
    param = np.linspace(-1.0, 1.0, SIZE)
    state = ev.initial_state(param)
    made = []
    for t, g in enumerate(grads, first_t):
        draw = None if noise is None else np.full(SIZE, noise)
        norm = np.asarray(np.linalg.norm((came or grads)[t - first_t]))
        _, state = ev.step(param, g, state, t, draw, norm)
        made.append((ev.update, state))
    return made


def gradients() -> list[Array]:
    """Three decades; one element never has a gradient, others have none now and then."""
    rng = np.random.default_rng(4)
    made = [rng.standard_normal(SIZE) * 10.0 ** rng.uniform(-2, 1, SIZE) for _ in range(STEPS)]
    idle = rng.uniform(size=(STEPS, SIZE)) < 0.1
    idle[:, 0] = True
    return [np.where(x, 0.0, g) for x, g in zip(idle, made, strict=True)]


def differ(a: Array, b: Array, tolerance: float = 1e-9) -> bool:
    """Whether two runs differ where both are numbers."""
    known = np.isfinite(a) & np.isfinite(b)
    size = np.maximum(np.abs(a), np.abs(b))
    return bool((np.abs(a - b) > tolerance * size)[known].any())


def path(
    p: Program,
    grads: list[Array],
    moved: Callable[[int, Array], Array] = lambda t, param: param,
) -> list[tuple[Array, dict[str, Array], Array]]:
    """Parameter, state and what the model is evaluated with, before the first step and after each.

    moved: the parameter that the next step starts from, of t and the stepped one.
    """
    ev = Drawing(p, lr=0.1)
    param = np.linspace(-1.0, 1.0, SIZE)
    state = ev.initial_state(param)
    made = [(param, state, param)]
    for t, g in enumerate(grads, 1):
        noise = np.full(SIZE, 0.25) if p.link == "stosign" else None
        param, state = ev.step(param, g, state, t, noise)
        param = moved(t, param)
        made.append((param, state, np.broadcast_to(ev.evaluated(param, state), (SIZE,))))
    return made
