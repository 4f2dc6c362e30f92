"""Gradient sequences that make a ratio large, run in the float64 evaluator.

What ``proofs`` claims is checked here by running it; where nothing is proved, a search gives a
lower bound.  Everything is seeded, so the same program gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from signconv.ir.analysis import scalar_moments
from signconv.ir.drawn import Drawing
from signconv.ir.nodes import Expr, Program, all_expressions, references

Array = npt.NDArray[np.float64]
#: A step so late that every bias correction and schedule has reached its limit.
LATE = 10**9
SETTLE = 200


def ratio_program(p: Program, numerator: Expr, denominator: Expr | None) -> Program:
    """``p`` with the bare ratio as update and without weight decay."""
    return replace(p, numerator=numerator, denominator=denominator, link="ratio", decay=None)


@dataclass
class Run:
    """Steps a program whose parameter is held at its start; ``late``: after a long silence."""

    program: Program
    size: int
    hypers: Mapping[str, float]
    late: bool = False

    def __post_init__(self) -> None:
        values = {h.name: self.hypers.get(h.name, h.default) for h in self.program.hypers}
        self.evaluator = Drawing(self.program, **{**values, "lr": 1.0})
        reads = any(references(e, "param") for e in all_expressions(self.program))
        rng = np.random.default_rng(7)
        self.param = rng.standard_normal(self.size) if reads else np.zeros(self.size)
        self.state = self.evaluator.initial_state(self.param)
        self.t = 0
        if self.late:
            for jump in (0, LATE):
                self.t += jump
                for _ in range(SETTLE):
                    self.step(np.zeros(self.size))

    def step(self, grad: Array) -> Array:
        """The ratio at the next step."""
        self.t += 1
        after, self.state = self.evaluator.step(self.param, grad, self.state, self.t)
        return self.param - after


def attained(p: Program, grads: Array, hypers: Mapping[str, float], late: bool = True) -> float:
    """The largest abs(ratio) along a sequence of gradients, oldest first.

    They are scaled up, so that numbers in the denominator do not count.
    """
    run = Run(p, 1, hypers, late)
    return max(float(np.abs(run.step(np.array([g * 2.0**20])))[0]) for g in grads)


def series(top: Array, bottom: Array, length: int) -> Array:
    """The first coefficients of the power series of top(z)/bottom(z), both lowest order first."""
    made = np.zeros(length)
    made[: len(top)] = top[:length]
    for k in range(length):
        for j in range(1, min(k, len(bottom) - 1) + 1):
            made[k] -= bottom[j] * made[k - j]
        made[k] /= bottom[0]
    return made


def pole(bottom: Array) -> float:
    """The largest abs(r) of the factors 1 - r*z of ``bottom``; 0 if there is none."""
    return float(max(np.abs(np.roots(bottom)), default=0.0)) if len(bottom) > 1 else 0.0


@dataclass(frozen=True)
class Weights:
    """Numbers of a ratio: sum a_k h_{t-k} over (sum c_k abs(h_{t-k})**order)**(1/order).

    a, c and base are (top, bottom) in powers of z; with a ``rate`` the denominator is
    c_0 * max over k of rate**k * abs(h_{t-k}).  g = h / base.
    """

    a: tuple[Array, Array]
    c: tuple[Array, Array]
    base: tuple[Array, Array]
    order: float
    rate: float | None = None

    @property
    def decay(self) -> tuple[float, float]:
        """How fast a_k and c_k fall: the largest poles (for a maximum, c_k = rate**k)."""
        return pole(self.a[1]), self.rate if self.rate is not None else pole(self.c[1])

    @property
    def newest_is_free(self) -> bool:
        """Whether this step's gradient is in the numerator alone."""
        return bool(self.base[0][0] == 0 or self.a[1][0] == 0)

    @property
    def finite(self) -> bool:
        """Whether the supremum is finite."""
        if self.newest_is_free:
            return False
        r, s = self.decay
        if self.order == 1 and self.rate is None:
            return self._supported() and (r <= s or r < 1e-12)
        power = 1.0 if self.rate is not None else self.order
        return self._supported() and (r**power < s * (1 - 1e-12) or r < 1e-12)

    def _supported(self) -> bool:
        """Every gradient the numerator reads is in the denominator too."""
        if self.rate is not None:
            return True
        a, c = series(*self.a, 8), series(*self.c, 8)
        return bool(np.all((np.abs(a) < 1e-13) | (c > 0)))

    def lists(self, length: int) -> tuple[Array, Array, Array]:
        """a_k/r**k, c_k/s**k and the exponents k, so that nothing under- or overflows."""
        r, s = (x if x > 1e-12 else 1.0 for x in self.decay)
        k = np.arange(length, dtype=np.float64)
        if self.rate is not None:
            c = np.ones(length)
        else:
            c = series(self.c[0] / s ** np.arange(len(self.c[0])),
                       self.c[1] / s ** np.arange(len(self.c[1])), length)  # fmt: skip
        a = series(self.a[0] / r ** np.arange(len(self.a[0])),
                   self.a[1] / r ** np.arange(len(self.a[1])), length)  # fmt: skip
        return a, c, k

    @property
    def length(self) -> int:
        """Terms after which the series has converged."""
        r, s = self.decay
        if r < 1e-12 or s < 1e-12:
            return max(len(self.a[0]), len(self.c[0])) + 8
        if self.rate is not None:
            rho = r / s
        else:
            rho = r if self.order == 1 else (r**self.order / s) ** (1 / (self.order - 1))
        return int(min(max(64, 32 / -np.log(min(rho, 1 - 1e-12))), 100_000)) + 8

    def supremum(self) -> float:
        """The largest ratio over all sequences, as t -> infinity (Hölder's inequality, tight)."""
        if not self.finite:
            return float("inf")
        a, c, k = self.lists(self.length)
        r, s = (x if x > 1e-12 else 1.0 for x in self.decay)
        with np.errstate(all="ignore"):
            if self.rate is not None:
                return float(np.sum(np.abs(a) * (r / s) ** k) / self._factor)
            if self.order == 1:
                return float(np.max(np.where(c > 0, np.abs(a) / c * (r / s) ** k, 0.0)))
            q = self.order / (self.order - 1)
            rho = r**q * s ** (1 - q)
            return float(
                np.sum(np.where(c > 0, np.abs(a) ** q * c ** (1 - q) * rho**k, 0.0)) ** (1 / q)
            )

    @property
    def _factor(self) -> float:
        return float(self.c[0][0] / self.c[1][0])

    def sequence(self, most: int = 4000) -> Array:
        """Gradients, oldest first, that attain the supremum (or grow without bound)."""
        a, c, k = self.lists(min(self.length, most) if self.finite else 400)
        r, s = (x if x > 1e-12 else 1.0 for x in self.decay)
        with np.errstate(all="ignore"):
            if self.rate is not None:
                size = s**-k
            elif self.order == 1:
                size = (k == np.argmax(np.abs(a) / c * (r / s) ** k)).astype(np.float64)
            else:
                x = np.abs(a) / c
                size = x ** (1 / (self.order - 1)) * (r / s) ** (k / (self.order - 1))
        h = np.where(np.isfinite(size), size, 0.0) * np.where(a < 0, -1.0, 1.0)
        largest = np.max(np.abs(h))
        if not largest > 0:  # all weights are 0 here, and any sequence attains a ratio of 0
            return np.ones(9)
        return self.gradients((h / largest)[::-1])

    def gradients(self, h: Array) -> Array:
        """g with base(z) g = h, along the first axis."""
        top, bottom = self.base[0], self.base[1]
        if len(top) == 1 and len(bottom) == 1:
            return h * (bottom[0] / top[0])
        g = np.zeros_like(h)
        for t in range(len(h)):
            x = sum(bottom[j] * h[t - j] for j in range(min(t, len(bottom) - 1) + 1))
            x = x - sum(top[j] * g[t - j] for j in range(1, min(t, len(top) - 1) + 1))
            g[t] = x / top[0]
        return g


def early(p: Program, w: Weights, hypers: Mapping[str, float], steps: int) -> tuple[int, float]:
    """The step t <= ``steps`` with the largest possible ratio, and that ratio, from its weights.

    Every element sees one unit impulse of h and then silence, each a step later than the last, and
    starts anew once its weights are negligible; numerator and denominator are run apart.  So bias
    corrections, schedules and first steps enter as they are at each t.
    """
    assert p.denominator is not None
    size = min(w.length, 2000, steps)
    response = w.gradients(np.eye(1, size)[0])
    runs = [Run(ratio_program(p, e, None), size, hypers) for e in (p.numerator, p.denominator)]
    kept = scalar_moments(p)
    lag = np.full(size, -1)
    best = (1, 0.0)
    for t in range(1 if len(w.base[0]) == 1 else 2, steps + 1):  # what looks back differs at t = 1
        lag = np.where(lag >= 0, lag + 1, lag)
        lag[t % size] = 0
        for run in runs:
            fresh = run.evaluator.initial_state(run.param)
            run.state = {n: x if n in kept else np.where(lag == 0, fresh[n], x)
                         for n, x in run.state.items()}  # fmt: skip
        a, s = (np.abs(r.step(np.where(lag >= 0, response[lag], 0.0))) for r in runs)
        with np.errstate(all="ignore"):
            x = np.where(a > 0, a / s, 0.0)
            if w.rate is not None:
                value = float(np.sum(x))
            elif w.order == 1:
                value = float(np.max(x))
            else:
                q = w.order / (w.order - 1)
                value = float(np.sum(x**q) ** (1 / q))
        if value > best[1] * (1 + 1e-9):
            best = (t, value)
    return best


def search(p: Program, hypers: Mapping[str, float], steps: int = 300, seed: int = 0) -> float:
    """A lower bound of the largest abs(ratio): spikes, growth, alternation and random gradients.

    Each family is run from the first step and late, then the best random sequences are varied.
    """
    rng = np.random.default_rng(seed)
    i = np.arange(steps)[:, None]
    rates = np.geomspace(1e-3, 1.0, 20)
    growth = np.exp(np.concatenate([-rates, [0.0], rates]))[None, :]
    ends = (2, 5, 20, 60, steps)
    shapes: list[Any] = [growth ** (i - steps + 1) * (i >= steps - n) for n in ends]
    spikes = 1.0 * (i >= steps - np.array([1, 2, 3, 5, 10, 30, 100, steps])[None, :])
    shapes += [spikes, spikes + 1e-3, (-1.0) ** i * spikes]
    shapes += [(-1.0) ** i * shapes[0], (-1.0) ** i * shapes[2]]
    noise = rng.standard_normal((steps, 64))
    shapes += [noise, np.sign(noise), noise * np.exp(3 * rng.standard_normal((steps, 64)))]
    grads: Any = np.nan_to_num(np.concatenate([np.clip(x, -1e30, 1e30) for x in shapes], axis=1))
    best = 0.0
    for _ in range(4):
        worst = np.zeros(grads.shape[1])
        for late in (False, True):
            run = Run(p, grads.shape[1], hypers, late)
            for g in grads:
                x = np.abs(run.step(g))
                worst = np.fmax(worst, np.where(np.isfinite(x), x, 0.0))
        best = max(best, float(worst.max()))
        top = grads[:, np.argsort(worst)[-16:]]
        grads = np.concatenate(
            [top * np.exp(0.3 * rng.standard_normal(top.shape)) for _ in range(8)], axis=1
        )
    return best
