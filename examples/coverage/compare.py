"""A spec of ours beside the collection's class, both in float64, over the same noisy steps.

Ours is the spec's program under ``signconv.ir.evaluate.Evaluator``, the float64 interpreter that
gives a program its meaning: neither kernels nor state formats take part. It steps one tensor at a
time; sums over all tensors are made of what it sums over each. The compiled optimizer runs beside
it in fp32. What is compared is how far each tensor has moved, not where it is: a wrong
step does not hide behind a large parameter.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import distributed

import signconv
from signconv.ir.evaluate import Array, Evaluator, State
from signconv.ir.nodes import Op, Program, everything, norm_scope, walk
from signconv.ir.totals import Totals

#: A matrix, a vector and the weights of a convolution.
SHAPES = ((6, 5), (7,), (3, 2, 2, 2))
STEPS = 20
#: The step from which lr is half of what it was.
HALVED = 11
#: What the compiled optimizer may differ by in fp32; a sum written as a difference did by 0.5.
ROUNDING = 1e-3
#: Of matrix signs, whose products are in bf16, it may differ by so many times what the collection's
#: class differs by in its own bf16, the most of so many draws of the problem: roundings of one size
#: in another order.  Over the same draws it differed by 0.4 to 1.2 times as much.
TIMES_BF16, DRAWS = 2, 6
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
    #: Those of the group that tensors of a shape are in, each tensor a group then.
    groups: Mapping[tuple[int, ...], Mapping[str, Any]]
    #: Names of the parameters in the model, where the collection's class takes a model.
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    scheduled: bool
    #: Extra inputs of the spec, by name: "element" or "step"; passed in every so many steps.
    extras: Mapping[str, str]
    every: int
    #: What the class's ``step`` takes them as, where it is not tensors by their names.
    asked: Callable[[list[torch.Tensor]], Mapping[str, Any]] | None
    #: Whether gradients are added to what the class left in their buffers.
    accumulated: bool
    #: Whether the class asks for a process group.
    distributed: bool


@dataclass(frozen=True)
class Problem:
    """Tensors pulled to targets by springs of unlike strength, and noise that both sides see.

    The diagonal of the Hessian is estimated with noise too, and may come out negative; the loss is
    drawn, so that it rises and falls as a loss of batches does.
    """

    start: tuple[Array, ...]
    target: tuple[Array, ...]
    strength: tuple[Array, ...]
    noise: tuple[tuple[Array, ...], ...]
    hessian: tuple[tuple[Array, ...], ...]
    loss: tuple[float, ...]

    @classmethod
    def make(cls, seed: int = 0, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> Problem:
        """The problem of one seed."""
        random = np.random.default_rng(seed)

        def tensors(scale: float) -> tuple[Array, ...]:
            return tuple(scale * random.standard_normal(shape) for shape in shapes)

        strength = tuple(np.exp(x) for x in tensors(1.0))
        start, target = tensors(1.0), tensors(1.0)
        noise = tuple(tensors(0.3) for _ in range(STEPS))
        hessian = tuple(
            tuple(s * (1 + e) for s, e in zip(strength, tensors(0.6), strict=True))
            for _ in range(STEPS)
        )
        loss = tuple(float(x) for x in np.exp(random.standard_normal(STEPS)))
        return cls(start, target, strength, noise, hessian, loss)

    def grads(self, params: tuple[Array, ...], t: int) -> tuple[Array, ...]:
        """Gradients at these parameters in step ``t``, from 1."""
        parts = zip(params, self.target, self.strength, self.noise[t - 1], strict=True)
        return tuple(s * (p - x) + e for p, x, s, e in parts)

    def extras(self, run: Run, t: int) -> dict[str, tuple[Array, ...] | float]:
        """What is passed beside the gradients in step ``t``: a tensor for each, or one number."""
        now: dict[str, tuple[Array, ...] | float] = {
            "element": self.hessian[t - 1],
            "step": self.loss[t - 1],
        }
        given = (t - 1) % run.every == 0
        return {name: now[per] for name, per in run.extras.items() if given}


class Part(Evaluator):
    """The evaluator of one tensor of several, with its share of every sum over all of them."""

    def __init__(self, program: Program, sums: Mapping[Op, Array], **hypers: float) -> None:
        super().__init__(program, **hypers)
        #: Sums over all tensors that are known by now.
        self.sums = sums
        self.shares: dict[Op, Array] = {}

    def operation(self, e: Op, *args: Array) -> Array:
        """A sum over all tensors is what is known of it, and until then this tensor's share."""
        made = super().operation(e, *args)
        if e.fn != "total":
            return made
        self.shares[e] = made
        return self.sums.get(e, made)


class Together:
    """One evaluator for each tensor. What their sums over all tensors read is found first: as many
    passes as such sums depend on each other, then the step."""

    def __init__(self, program: Program, run: Run, params: tuple[Array, ...]) -> None:
        self.totals = Totals(program)
        self.sums: dict[Op, Array] = {}
        self.parts = [
            Part(program, self.sums, **{**run.values, **run.by_shape.get(p.shape, {})})
            for p in params
        ]
        self.states = [e.initial_state(p) for e, p in zip(self.parts, params, strict=True)]

    def step(
        self,
        params: tuple[Array, ...],
        grads: tuple[Array, ...],
        t: int,
        norm: Array | None,
        extras: Mapping[str, tuple[Array, ...] | float],
    ) -> tuple[Array, ...]:
        """All tensors after step ``t``."""

        def stepped() -> list[tuple[Array, State]]:
            each = zip(self.parts, params, grads, self.states, strict=True)
            return [
                e.step(p, g, s, t, norm=norm, extras={n: of_one(x, i) for n, x in extras.items()})
                for i, (e, p, g, s) in enumerate(each)
            ]

        self.sums.clear()
        level = self.totals.level
        for now in sorted({level(x) for x in self.totals.every}):
            stepped()
            for x in self.totals.every:
                if level(x) == now:
                    self.sums[x] = np.sum([e.shares[x] for e in self.parts], axis=0)
        made = stepped()
        self.states = [s for _, s in made]
        return tuple(p for p, _ in made)


def ours(program: Program, run: Run, problem: Problem) -> list[Array]:
    """Each tensor after each step, and as it is evaluated with, by the evaluator."""
    together = Together(program, run, problem.start)
    params = problem.start
    made = []
    for t in range(1, STEPS + 1):
        grads = problem.grads(params, t)
        extras = problem.extras(run, t)
        # The group of this comparison is all there is
        norm = np.sqrt(sum(np.sum(g * g) for g in grads)) if norm_scope(program) else None
        if run.scheduled and t == HALVED:
            for e in together.parts:
                e.hypers["lr"] /= 2
        params = together.step(params, grads, t, norm, extras)
        made.append(params)
    if program.eval_param is not None:
        parts = zip(together.parts, params, together.states, strict=True)
        made.append(tuple(e.evaluated(p, s) for e, p, s in parts))
    return [np.stack(steps) for steps in zip(*made, strict=True)]


def of_one(given: tuple[Array, ...] | float, i: int) -> Array:
    """What tensor ``i`` is given of an extra input."""
    return given[i] if isinstance(given, tuple) else np.asarray(given)


@contextmanager
def in_float64() -> Iterator[None]:
    """What is made without a dtype, such as a sum over all tensors, is float64 as they are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """The collection's matrix signs take their products in this type, not in bf16.

    All its classes call one function, and leave the type to its default.
    """
    module = importlib.import_module("pytorch_optimizer.optimizer.utils.matrix")
    function = module.zero_power_via_newton_schulz_5
    before = function.__defaults__
    if torch.bfloat16 not in before:
        raise ValueError("the collection's matrix signs no longer default to bf16")
    function.__defaults__ = tuple(dtype if x is torch.bfloat16 else x for x in before)
    try:
        yield
    finally:
        function.__defaults__ = before


@contextmanager
def group_of_one() -> Iterator[None]:
    """A process group that this process is alone in."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        distributed.destroy_process_group()


def theirs(
    name: str, run: Run, problem: Problem, products: torch.dtype = torch.float64
) -> list[Array]:
    """The same by the collection's class of this name, and of its matrix signs the products in
    ``products``."""
    alone = group_of_one() if run.distributed else nullcontext()
    with in_float64(), products_in(products), alone:
        return _theirs(name, run, problem)


def _theirs(name: str, run: Run, problem: Problem) -> list[Array]:
    made_by = importlib.import_module("pytorch_optimizer").load_optimizer(name)
    # Its classes take any keyword, and leave out in silence what they do not know
    known = {"foreach": False} | dict(run.theirs)
    unknown = sorted(known.keys() - inspect.signature(made_by).parameters.keys() - {"foreach"})
    if unknown:
        raise ValueError(f"{name} has no {unknown[0]!r}")
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.start]
    if "model" in inspect.signature(made_by).parameters:
        given: Any = model_of(params, run.names)
    elif run.groups:
        given = [{"params": [p], **run.groups[tuple(p.shape)]} for p in params]
    else:
        given = [{"params": params, **run.group}]
    optimizer = made_by(given, **known)
    fused = hasattr(optimizer, "fused_backward")
    lr = run.values["lr"]
    made = []
    for t in range(1, STEPS + 1):
        now = tuple(p.detach().numpy() for p in params)
        grads = [torch.from_numpy(g) for g in problem.grads(now, t)]
        halved = run.scheduled and t == HALVED
        if halved:
            lr /= 2
        if fused:  # it takes a model, and steps in the backward pass of a loss with these gradients
            if "clip_grad_norm" in known:
                optimizer.grad_norm(loss_of(params, grads))
            optimizer.fused_backward(loss_of(params, grads), lr)
        else:
            for group in optimizer.param_groups if halved else ():  # some change lr themselves
                group["lr"] = lr
            for p, g in zip(params, grads, strict=True):
                p.grad = g if p.grad is None or not run.accumulated else p.grad + g
            extras = problem.extras(run, t)
            tensors: dict[str, Any] = {
                n: tensors_of(x) for n, x in extras.items() if isinstance(x, tuple)
            }
            if run.asked is not None:
                tensors = {n: y for x in tensors.values() for n, y in run.asked(x).items()}
            numbers = [x for x in extras.values() if isinstance(x, float)]
            # A closure is how the collection's classes come by a loss
            optimizer.step(partial(float, numbers[0]) if numbers else None, **tensors)
        made.append([p.detach().numpy().copy() for p in params])
    if hasattr(optimizer, "eval"):
        optimizer.eval()
        made.append([p.detach().numpy().copy() for p in params])
    return [np.stack(steps) for steps in zip(*made, strict=True)]


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
        inputs: dict[str, Any] = {
            n: [y.float() for y in tensors_of(x)] if isinstance(x, tuple) else x
            for n, x in problem.extras(run, t).items()
        }
        optimizer.step(**inputs)
        made.append([p.detach().double().numpy() for p in params])
    return [np.stack(steps) for steps in zip(*made, strict=True)]


def tupled(values: Mapping[str, float], *stems: str) -> dict[str, Any]:
    """The values with ``beta1``, ``beta2``, … as one tuple ``betas``, for each such stem; a
    ``beta2`` without a ``beta1`` stays what it is."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name[:-1] in stems and name[-1].isdigit() and f"{name[:-1]}1" in values:
            made[f"{name[:-1]}s"] = (*made.get(f"{name[:-1]}s", ()), value)
        else:
            made[name] = value
    return made


def tensors_of(arrays: tuple[Array, ...]) -> list[torch.Tensor]:
    """Copies as tensors: some classes write into what they are given."""
    return [torch.from_numpy(x.copy()) for x in arrays]


def model_of(params: list[torch.nn.Parameter], names: tuple[str, ...]) -> torch.nn.Module:
    """A model with these parameters; without names they are called by their numbers."""
    model = torch.nn.Module()
    for p, name in zip(params, names or map(str, range(len(params))), strict=True):
        *path, last = name.split(".")
        owner = model
        for part in path:
            owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, p)
    return model


def loss_of(params: list[torch.nn.Parameter], grads: list[torch.Tensor]) -> torch.Tensor:
    """A loss with these gradients."""
    return torch.stack([(p * g).sum() for p, g in zip(params, grads, strict=True)]).sum()


def deviation(program: Program, name: str, run: Run) -> float:
    """The largest difference of any tensor in any step, over the tensor's largest displacement.

    NaN where either side makes one.
    """
    problem = Problem.make(shapes=run.shapes)
    return apart(ours(program, run, problem), theirs(name, run, problem), problem)


def of_bf16(name: str, run: Run) -> float:
    """The same between the collection's class with its matrix signs' products in bf16, as they are
    by default, and itself with them in float64; the most of several problems."""

    def once(problem: Problem) -> float:
        exact = theirs(name, run, problem)
        return apart(theirs(name, run, problem, torch.bfloat16), exact, problem)

    return float(np.max([once(Problem.make(seed, run.shapes)) for seed in range(DRAWS)]))


def signs_matrices(program: Program) -> bool:
    """Whether it has a matrix sign."""
    return any(isinstance(n, Op) and n.fn == "msign" for e in everything(program) for n in walk(e))


def rounding(spec: str, program: Program, run: Run) -> float:
    """The same between the compiled optimizer and its float64 meaning."""
    problem = Problem.make(shapes=run.shapes)
    meant = [x[:STEPS] for x in ours(program, run, problem)]
    return apart(compiled(spec, run, problem), meant, problem)


def apart(a: list[Array], b: list[Array], problem: Problem) -> float:
    """The largest difference of two runs, over the displacement of its tensor in the second."""
    made = zip(a, b, problem.start, strict=True)
    parts = [np.max(np.abs(x - y)) / np.max(np.abs(y - start)) for x, y, start in made]
    return float(np.max(parts))  # Python's max loses a NaN that is not the first
