"""The float64 witnesses: oracle - evaluator, pass law, evaluator - reference.

What two of them share, a third does not: a wrong spec fails against the oracle, a wrong pass
against its law, a wrong lowering or printer against the evaluator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from signconv.ir.analysis import scalar_moments
from signconv.ir.axes import has_axes, has_blocks
from signconv.ir.drawn import Drawing, drawn
from signconv.ir.evaluate import Evaluator
from signconv.ir.nodes import Program
from signconv.passes.base import parse
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import ops as ref
from signconv.verification import inputs, laws
from signconv.verification.enclosure import Enclosed, Enclosing
from signconv.verification.matrix import watched
from signconv.verification.oracles import ORACLES
from signconv.verification.report import Row

Array = npt.NDArray[np.float64]
SIZE = 512
ULP = 2.0**-24
#: Where an interval is so narrow beside the terms it is made of, a fault of that size is noticed.
NARROW = 1e-4
#: The share of all values whose intervals have to be.
DECIDED = 0.5


def shape_for(program: Program) -> tuple[int, ...]:
    """Of a parameter of SIZE elements: a matrix where anything runs over its dimensions."""
    row = 64 if has_blocks(program) else 16
    return (SIZE // row, row) if has_axes(program) else (SIZE,)


def gradients(
    rng: np.random.Generator,
    steps: int,
    size: int = SIZE,
    zeros: bool = True,
    shape: tuple[int, ...] | None = None,
) -> list[Array]:
    """Gradients whose scale differs by element over four decades, with some exact zeros."""
    scale = 10.0 ** rng.uniform(-3, 1, size)
    made = [scale * rng.standard_normal(size) for _ in range(steps)]
    if zeros:
        made = [np.where(rng.uniform(size=size) < 0.02, 0.0, g) for g in made]
    return made if shape is None else [g.reshape(shape) for g in made]


def oracle_row(spec: str, program: Program, steps: int = 100) -> Row:
    """Evaluator of the unconverted spec against an independent implementation."""
    oracle = ORACLES.get(spec)
    if oracle is None:
        return Row("oracle - evaluator", spec, None, "no independent implementation of this spec")
    rng = np.random.default_rng(1)
    # No zeros: torch.optim makes NaN of 0/0 where eps is 0, and we make 0
    shape = shape_for(program)
    param = rng.standard_normal(SIZE).reshape(shape)
    grads, lr = gradients(rng, steps, zeros=False, shape=shape), 1e-2
    evaluator = Drawing(program, lr=lr, **oracle.hypers)
    p, state = param.copy(), evaluator.initial_state(param)
    for t, g in enumerate(grads, 1):
        p, state = evaluator.step(p, g, state, t)
    gap = float(np.max(np.abs(p - oracle.run(param, grads, lr))))
    return Row(
        "oracle - evaluator", oracle.source, gap < 1e-12, f"{gap:.1e} apart after {steps} steps"
    )


def pass_rows(before: Program, history: tuple[str, ...]) -> list[Row]:
    """Each pass's own law, on the program it was applied to; not run where there is none yet."""
    rows = []
    for name, law, wrong in laws.verdicts(before, history, levels=512):
        if law is None:
            module = f"{laws.__name__}.{parse(name).name}"
            words = f"no law yet: {module} would say what the pass promises"
        else:
            words = wrong or (law.promise if wrong == "" else "no law compares these two programs")
        rows.append(Row("pass law", name, None if wrong is None else not wrong, words))
    return rows


def reference_row(program: Program, cls: Any, steps: int = 20) -> Row:
    """Reference (fp32 state and parameters) against the evaluator, one step at a time.

    Each step starts from the reference's own state, and the evaluator runs it on intervals: every
    operation widens its result by its rounding, so the bound has the condition of what is computed
    (a difference of two near numbers, a quotient by a small one), and for each element its own.
    The reference has to land inside, and most intervals have to be narrow, or they prove nothing.
    """
    rng = np.random.default_rng(3)
    hypers: dict[str, Any] = {"lr": 1e-2}
    if program.hyper("weight_decay"):
        hypers["weight_decay"] = 0.1
    evaluator = Evaluator(program, **hypers)
    enclosing: Any = Enclosing(program, **hypers)
    # Small parameters beside ordinary ones: a step is seen down to their last place
    size = 10.0 ** -rng.uniform(0, 3, SIZE)
    shape = shape_for(program)
    p = torch.tensor(size * rng.standard_normal(SIZE), dtype=torch.float32).view(shape)
    optimizer = cls([p.requires_grad_()], backend="reference", seed=5, **hypers)
    seen = _Seen(program.link in ("sign", "stosign"))
    for t, g in enumerate(gradients(rng, steps, shape=shape), 1):
        p.grad = torch.tensor(g, dtype=torch.float32)
        before = p.detach().clone()
        prev = _states(optimizer, p, evaluator)
        extras: dict[str, Any] = dict(drawn(program, t, shape))
        with watched() as enclosing.signs:
            optimizer.step(**inputs.named(optimizer, extras))
        word, *_ = ref.draw_words(5, t, 1, program.noise, ref.element_numbers(0, SIZE, p.device))
        noise = ref.sign_noise(word.field(0)).double().numpy().reshape(shape)
        start, grad = before.double().numpy(), p.grad.double().numpy()
        middle, states = evaluator.step(start, grad, prev, t, noise, None, extras)
        exact = {n: Enclosed(x, x) if np.ndim(x) else x for n, x in prev.items()}
        points = {n: Enclosed(x, x) if np.ndim(x) else x for n, x in extras.items()}
        now = Enclosed(start, start), Enclosed(grad, grad), exact
        box, boxes = enclosing.step(*now, t, noise, None, points)
        seen.compare(p.detach().double().numpy(), box, middle, np.abs(start))
        for name, x in boxes.items():
            got = optimizer.state[p][name].double().numpy()
            size = np.abs(prev[name]) + _size(grad, np.shape(prev[name]))
            seen.compare(got, x, states[name], size, moment=True)
    words = seen.words(steps)
    if enclosing.signs:
        words += f"; matrix signs off by {enclosing.worst_sign:.2g} of what bf16 products may be"
    if enclosing.strays:
        words += f"; {enclosing.strays} matrix signs are further off, or of something else"
    return Row("evaluator - reference", "fp32 state", seen.agrees and not enclosing.strays, words)


class _Seen:
    """What the comparisons of ``reference_row`` came to."""

    def __init__(self, signs: bool) -> None:
        self.signs = signs
        self.outside, self.values, self.narrow = 0, 0, 0
        self.worst, self.flips = 0.0, 0

    def compare(
        self, got: Array, box: Any, middle: Array, size: Array, moment: bool = False
    ) -> None:
        """A quantity against its interval; ``size``: of the terms that it is made of."""
        got, middle = np.broadcast_arrays(got, middle)
        if not isinstance(box, Enclosed):  # a state that came out as one number, in float64
            box = Enclosed(np.full(got.shape, box), np.full(got.shape, box)).wider(
                4 * ULP * np.abs(box)
            )
        inside = box.has(got) | box.open
        self.outside += int((~inside).sum())
        self.values += got.size
        with np.errstate(all="ignore"):
            # A sign's step is decided where its interval is a point, any other where it is narrow
            width = np.where(box.open, np.inf, box.hi - box.lo)
            self.narrow += int((width <= NARROW * (size + np.abs(middle))).sum())
        gap = np.abs(got - middle)
        turned = gap > 1e-3 if self.signs and not moment else np.zeros(got.shape, bool)
        self.flips += int(turned.sum())
        self.worst = max(self.worst, _ulps(np.where(turned, 0.0, gap), size + np.abs(middle)))

    @property
    def agrees(self) -> bool:
        """Every value lies in its interval, and the intervals are narrow for most."""
        return self.outside == 0 and self.narrow >= DECIDED * self.values

    def words(self, steps: int) -> str:
        made = f"{self.worst:.1f} ulp at most over {steps} steps"
        if self.signs:
            made += f"; {self.flips} signs differ, near zero"
        if self.outside:
            made += f"; {self.outside} of {self.values} values outside what rounding can do"
        if self.narrow < DECIDED * self.values:
            made += f"; rounding can do so much that {1 - self.narrow / self.values:.0%} of the "
            made += "values are not decided"
        return made


def _states(optimizer: FusedOptimizer, p: torch.Tensor, evaluator: Evaluator) -> dict[str, Any]:
    """The state before a step; a scalar state is one number."""
    memory = scalar_moments(evaluator.program)
    if p in optimizer.state:
        made = {
            m.name: optimizer.state[p][m.name].double().numpy().copy()
            for m in evaluator.program.moments
        }
    else:
        made = dict(evaluator.initial_state(p.detach().double().numpy()))
    return {n: np.float64(x.flat[0]) if n in memory else x for n, x in made.items()}


def _size(grad: Array, shape: tuple[int, ...]) -> Array:
    """Of the gradients that a state is made of: of one for several the largest."""
    if shape in ((), grad.shape):
        return np.abs(grad)
    size = np.abs(grad)
    if shape[-1] not in (1, grad.shape[-1]):  # of blocks of a row
        size = np.max(size.reshape(*grad.shape[:-1], shape[-1], -1), axis=-1)
    axis = tuple(i for i, n in enumerate(shape) if n == 1)
    return np.max(size, axis=axis, keepdims=True)


def _ulps(gap: Array, size: Array) -> float:
    return float(np.max(gap / np.maximum(size * ULP, 1e-300), initial=0.0))
