"""How far above 1 a ratio gets when its moments are stored in FP8: measured, not proved."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from signconv.ir.drawn import Drawing, drawn
from signconv.ir.evaluate import State
from signconv.ir.nodes import references
from signconv.pipeline import Build, write
from signconv.prove.proofs import bare
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import ops as ref
from signconv.verification import inputs
from signconv.verification.bits import load_class

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Excess:
    """The largest abs(ratio) seen, and the share of all ratios above 1."""

    largest: float
    share: float
    steps: int
    elements: int


def gradients(steps: int, size: int, seed: int) -> Array:
    """Neighbours of one scale block get different kinds of gradients and sizes over two decades."""
    rng = np.random.default_rng(seed)
    i, k = np.arange(steps)[:, None], np.arange(size)[None, :]
    noise = rng.standard_normal((steps, size))
    kinds = [
        noise,
        noise * np.exp(2 * rng.standard_normal((steps, size))),
        np.ones((steps, size)),
        np.abs(noise),
        (-1.0) ** (i // 7) * np.ones((1, size)),
        np.exp(((i + k) % 60 - 59) * (0.02 + 0.05 * (k % 5))),  # grows, falls, grows again
        1.0 * ((i + k) % 50 == 0),
        np.sign(noise) * (rng.uniform(size=(steps, size)) < 0.1),
    ]
    scale = 10.0 ** rng.uniform(-1, 1, (1, size))
    return np.choose(k % 8, kinds) * scale


def measure(made: Build, steps: int = 200, size: int = 1024, seed: int = 0) -> Excess:
    """Run the reference on seeded random and extremal gradients.

    For a ratio the update itself is looked at; for other links the ratio that follows from the
    stored state, in float64.
    """
    p = made.program
    still = references(p.decay.weight, "hyper") if p.decay is not None else set()
    with tempfile.TemporaryDirectory() as folder:
        cls = load_class(write(made.module, Path(folder))[0])
    param = torch.zeros(size, requires_grad=True)
    optimizer = cls([param], lr=1.0, backend="reference", seed=seed, **dict.fromkeys(still, 0.0))
    evaluator = Drawing(bare(p), lr=1.0)
    largest, above = 0.0, 0
    for t, g in enumerate(gradients(steps, size, seed), 1):
        param.grad = torch.tensor(g, dtype=torch.float32)
        state = optimizer.state.get(param)
        prev = evaluator.initial_state(np.zeros(size))
        if state and p.link != "ratio":
            prev = _decoded(cls, state, prev)
        optimizer.step(**inputs.named(optimizer, drawn(p, t, size)))
        if p.link == "ratio":
            ratio = param.detach().double().numpy()
        else:
            ratio = evaluator.step(np.zeros(size), param.grad.double().numpy(), prev, t)[0]
        largest = max(largest, float(np.max(np.abs(ratio))))
        above += int(np.sum(np.abs(ratio) > 1))
        with torch.no_grad():
            param.zero_()
    return Excess(largest, above / (steps * size), steps, size)


def _decoded(cls: type[FusedOptimizer], state: dict[str, torch.Tensor], start: State) -> State:
    """Stored moments as float64; a scalar state is the same for all elements."""
    made = {n: np.full_like(x, float(state[n])) for n, x in start.items() if state[n].numel() == 1}
    for k in cls.program.kept:
        made[k.name] = state[k.name].double().numpy().copy()
    for m in cls.program.moments:
        scale = state.get(f"{m.name}_scale")
        x = ref.load_moment(state[m.name], scale, m.stored)
        made[m.name] = x.double().numpy()
    return made
