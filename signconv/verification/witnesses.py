"""The float64 witnesses: oracle - evaluator, pass law, evaluator - reference.

What two of them share, a third does not: a wrong spec fails against the oracle, a wrong pass
against its law, a wrong lowering or printer against the evaluator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from signconv.ir.evaluate import Evaluator, State
from signconv.ir.nodes import Program
from signconv.passes.base import parse
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import ops as ref
from signconv.verification import laws
from signconv.verification.oracles import ORACLES
from signconv.verification.report import Row

Array = npt.NDArray[np.float64]
SIZE = 512
ULP = 2.0**-24


def gradients(
    rng: np.random.Generator, steps: int, size: int = SIZE, zeros: bool = True
) -> list[Array]:
    """Gradients whose scale differs by element over four decades, with some exact zeros."""
    scale = 10.0 ** rng.uniform(-3, 1, size)
    made = [scale * rng.standard_normal(size) for _ in range(steps)]
    if not zeros:
        return made
    return [np.where(rng.uniform(size=size) < 0.02, 0.0, g) for g in made]


def oracle_row(spec: str, program: Program, steps: int = 100) -> Row:
    """Evaluator of the unconverted spec against an independent implementation."""
    oracle = ORACLES.get(spec)
    if oracle is None:
        return Row("oracle - evaluator", spec, None, "no independent implementation of this spec")
    rng = np.random.default_rng(1)
    # No zeros: torch.optim makes NaN of 0/0 where eps is 0, and we make 0
    param, grads, lr = rng.standard_normal(SIZE), gradients(rng, steps, zeros=False), 1e-2
    evaluator = Evaluator(program, lr=lr, **oracle.hypers)
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

    Each step starts from the reference's own state, so the bound is that of one step: 32 units in
    the last place of the terms involved; a sign may differ only where its argument is that close
    to zero.
    """
    rng = np.random.default_rng(3)
    hypers: dict[str, Any] = {"lr": 1e-2}
    if program.hyper("weight_decay"):
        hypers["weight_decay"] = 0.1
    evaluator = Evaluator(program, **hypers)
    p = torch.tensor(rng.standard_normal(SIZE), dtype=torch.float32)
    optimizer = cls([p.requires_grad_()], backend="reference", seed=5, **hypers)
    worst, flips, far = 0.0, 0, 0
    for t, g in enumerate(gradients(rng, steps), 1):
        p.grad = torch.tensor(g, dtype=torch.float32)
        before = p.detach().clone()
        prev = {m.name: _state(optimizer, p, m.name, evaluator, before) for m in program.moments}
        optimizer.step()
        bits = ref.random_bits(0, SIZE, *ref.draw_keys(5, t, 0), p.device)
        noise = ref.sign_noise(ref.low_field(bits)).double().numpy()
        start, grad = before.double().numpy(), p.grad.double().numpy()
        wanted, state = evaluator.step(start, grad, prev, t, noise)
        for m in program.moments:
            got = optimizer.state[p][m.name].double().numpy()
            size = np.abs(state[m.name]) + np.abs(prev[m.name]) + np.abs(grad) * ULP
            worst = max(worst, _ulps(got - state[m.name], size))
        gap = p.detach().double().numpy() - wanted
        size = np.abs(start) + np.abs(wanted - start)
        if program.link in ("sign", "stosign"):
            flipped = np.abs(gap) > hypers["lr"] / 2
            near = _near_zero(evaluator, start, grad, prev, t, noise)
            flips, far = flips + int(flipped.sum()), far + int((flipped & ~near).sum())
            gap = np.where(flipped, 0.0, gap)
        worst = max(worst, _ulps(gap, size))
    detail = f"{worst:.1f} ulp at most over {steps} steps"
    if program.link in ("sign", "stosign"):
        detail += f"; {flips} signs differ, {far} of them not near zero"
    return Row("evaluator - reference", "fp32 state", worst <= 32 and far == 0, detail)


def _state(
    optimizer: FusedOptimizer, p: torch.Tensor, name: str, evaluator: Evaluator, param: torch.Tensor
) -> Array:
    if p in optimizer.state:
        return optimizer.state[p][name].double().numpy().copy()
    return evaluator.initial_state(param.double().numpy())[name]


def _ulps(gap: Array, size: Array) -> float:
    return float(np.max(np.abs(gap) / np.maximum(size * ULP, 1e-300), initial=0.0))


def _near_zero(
    ev: Evaluator, p: Array, g: Array, prev: State, t: int, noise: Array
) -> npt.NDArray[np.bool_]:
    """Where moving the noise or the gradient by a few units in the last place turns the sign."""
    signs = [
        ev.step(p, g * (1 + a), prev, t, noise * (1 + b))[0]
        for a in (-64 * ULP, 64 * ULP)
        for b in (-64 * ULP, 64 * ULP)
    ]
    return np.ptp(np.stack(signs), axis=0) > 0
