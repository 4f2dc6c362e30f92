"""A spec of ours beside the collection's class, both in float64, over the same noisy steps.

Ours is the spec's program under ``signconv.ir.evaluate.Evaluator``, the float64 interpreter that
gives a program its meaning: neither kernels nor state formats take part. The compiled optimizer
runs beside it in fp32. What is compared is how far each tensor has moved, not where it is: a wrong
step does not hide behind a large parameter.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import signconv
from signconv.ir.evaluate import Array, Evaluator
from signconv.ir.nodes import Program, norm_scope

#: A matrix, a vector and the weights of a convolution.
SHAPES = ((6, 5), (7,), (3, 2, 2, 2))
STEPS = 20
#: The step from which lr is half of what it was.
HALVED = 11
#: What the compiled optimizer may differ by in fp32; a sum written as a difference did by 0.5.
ROUNDING = 1e-3
#: What 20 steps in float64 may differ by, relative to the largest displacement of a tensor.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Run:
    """What either side is given."""

    values: Mapping[str, float]
    theirs: Mapping[str, Any]
    #: Hyperparameters of the param group that tensors of a shape are in.
    by_shape: Mapping[tuple[int, ...], Mapping[str, float]]
    #: Entries of the collection's param group that its constructor does not take.
    group: Mapping[str, Any]
    scheduled: bool


@dataclass(frozen=True)
class Problem:
    """Tensors pulled to targets by springs of unlike strength, and noise that both sides see."""

    start: tuple[Array, ...]
    target: tuple[Array, ...]
    strength: tuple[Array, ...]
    noise: tuple[tuple[Array, ...], ...]

    @classmethod
    def make(cls, seed: int = 0) -> Problem:
        """The problem of one seed."""
        random = np.random.default_rng(seed)

        def tensors(scale: float) -> tuple[Array, ...]:
            return tuple(scale * random.standard_normal(shape) for shape in SHAPES)

        strength = tuple(np.exp(x) for x in tensors(1.0))
        return cls(tensors(1.0), tensors(1.0), strength, tuple(tensors(0.3) for _ in range(STEPS)))

    def grads(self, params: tuple[Array, ...], t: int) -> tuple[Array, ...]:
        """Gradients at these parameters in step ``t``, from 1."""
        parts = zip(params, self.target, self.strength, self.noise[t - 1], strict=True)
        return tuple(s * (p - x) + e for p, x, s, e in parts)


def ours(program: Program, run: Run, problem: Problem) -> list[Array]:
    """Each tensor after each step, and as it is evaluated with, by the evaluator."""
    evaluators = [
        Evaluator(program, **{**run.values, **run.by_shape.get(p.shape, {})}) for p in problem.start
    ]
    params = problem.start
    states = [e.initial_state(p) for e, p in zip(evaluators, params, strict=True)]
    made = []
    for t in range(1, STEPS + 1):
        grads = problem.grads(params, t)
        # The group of this comparison is all there is
        norm = np.sqrt(sum(np.sum(g * g) for g in grads)) if norm_scope(program) else None
        if run.scheduled and t == HALVED:
            for e in evaluators:
                e.hypers["lr"] /= 2
        stepped = [
            e.step(p, g, s, t, norm=norm)
            for e, p, g, s in zip(evaluators, params, grads, states, strict=True)
        ]
        params = tuple(p for p, _ in stepped)
        states = [s for _, s in stepped]
        made.append(params)
    if program.eval_param is not None:
        parts = zip(evaluators, params, states, strict=True)
        made.append(tuple(e.evaluated(p, s) for e, p, s in parts))
    return [np.stack(of_one) for of_one in zip(*made, strict=True)]


def theirs(name: str, run: Run, problem: Problem) -> list[Array]:
    """The same by the collection's class of this name."""
    made_by = importlib.import_module("pytorch_optimizer").load_optimizer(name)
    # Its classes take any keyword, and leave out in silence what they do not know
    known = {"foreach": False} | dict(run.theirs)
    unknown = sorted(known.keys() - inspect.signature(made_by).parameters.keys() - {"foreach"})
    if unknown:
        raise ValueError(f"{name} has no {unknown[0]!r}")
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.start]
    model = "model" in inspect.signature(made_by).parameters
    given = torch.nn.ParameterList(params) if model else [{"params": params, **run.group}]
    optimizer = made_by(given, **known)
    fused = hasattr(optimizer, "fused_backward")
    lr = run.values["lr"]
    made = []
    for t in range(1, STEPS + 1):
        now = tuple(p.detach().numpy() for p in params)
        grads = [torch.from_numpy(g) for g in problem.grads(now, t)]
        if run.scheduled and t == HALVED:
            lr /= 2
        if fused:  # it takes a model, and steps in the backward pass of a loss with these gradients
            optimizer.grad_norm(loss_of(params, grads))
            optimizer.fused_backward(loss_of(params, grads), lr)
        else:
            optimizer.param_groups[0]["lr"] = lr
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            optimizer.step()
        made.append([p.detach().numpy().copy() for p in params])
    if hasattr(optimizer, "eval"):
        optimizer.eval()
        made.append([p.detach().numpy().copy() for p in params])
    return [np.stack(of_one) for of_one in zip(*made, strict=True)]


def compiled(spec: str, run: Run, problem: Problem) -> list[Array]:
    """Each tensor after each step, by what the compiler makes of the spec, all in fp32."""
    params = [torch.nn.Parameter(torch.from_numpy(p).float()) for p in problem.start]
    groups = [
        {"params": [p], **tupled({**run.values, **run.by_shape.get(tuple(p.shape), {})}, "beta")}
        for p in params
    ]
    optimizer = signconv.compile(spec, state="fp32")(groups, backend="reference")
    made = []
    for t in range(1, STEPS + 1):
        now = tuple(p.detach().double().numpy() for p in params)
        for p, g in zip(params, problem.grads(now, t), strict=True):
            p.grad = torch.from_numpy(g).float()
        if run.scheduled and t == HALVED:
            for group in optimizer.param_groups:
                group["lr"] /= 2
        optimizer.step()
        made.append([p.detach().double().numpy() for p in params])
    return [np.stack(of_one) for of_one in zip(*made, strict=True)]


def tupled(values: Mapping[str, float], *stems: str) -> dict[str, Any]:
    """The values with ``beta1``, ``beta2``, … as one tuple ``betas``, for each such stem."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name[:-1] in stems and name[-1].isdigit():
            made[f"{name[:-1]}s"] = (*made.get(f"{name[:-1]}s", ()), value)
        else:
            made[name] = value
    return made


def loss_of(params: list[torch.nn.Parameter], grads: list[torch.Tensor]) -> torch.Tensor:
    """A loss with these gradients."""
    return torch.stack([(p * g).sum() for p, g in zip(params, grads, strict=True)]).sum()


def deviation(program: Program, name: str, run: Run) -> float:
    """The largest difference of any tensor in any step, over the tensor's largest displacement.

    NaN where either side makes one.
    """
    problem = Problem.make()
    return apart(ours(program, run, problem), theirs(name, run, problem), problem)


def rounding(spec: str, program: Program, run: Run) -> float:
    """The same between the compiled optimizer and its float64 meaning."""
    problem = Problem.make()
    meant = [x[:STEPS] for x in ours(program, run, problem)]
    return apart(compiled(spec, run, problem), meant, problem)


def apart(a: list[Array], b: list[Array], problem: Problem) -> float:
    """The largest difference of two runs, over the displacement of its tensor in the second."""
    made = zip(a, b, problem.start, strict=True)
    return max(float(np.max(np.abs(x - y)) / np.max(np.abs(y - start))) for x, y, start in made)
