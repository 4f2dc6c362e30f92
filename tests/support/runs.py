"""Shared by the tests of identities and theorems: converted programs, built classes, their runs."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from signconv.ir.evaluate import Evaluator
from signconv.ir.nodes import Program
from signconv.passes.base import canonical
from signconv.pipeline import apply_passes, build, requests_of, resolve
from signconv.runtime.optimizer import FusedOptimizer
from tests.support import class_of

Array = npt.NDArray[np.float64]
OWN = "tests.support.own_specs:"


@cache
def converted(spec: str, convert: str | None = None) -> Program:
    """A spec after its passes, in canonical order."""
    return apply_passes(resolve(spec), canonical(requests_of(convert)))


def in_this_order(spec: str, *requests: str) -> Program:
    """A spec after its passes in the order given, which the command line never applies."""
    return apply_passes(resolve(spec), requests_of(",".join(requests)))


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="signconv_tests_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def built(spec: str, convert: str | None = None, state: str = "fp32") -> type[FusedOptimizer]:
    """The generated class; one build per test session."""
    made = build(spec, convert=convert, state=state)
    return class_of(made, _folder() / f"{len(list(_folder().iterdir()))}")


def keywords(cls: type[FusedOptimizer], hypers: Mapping[str, float]) -> dict[str, object]:
    """Constructor arguments from the spec's hyperparameters: beta1 and beta2 become betas."""
    made: dict[str, object] = {}
    for h in cls.program.hypers:
        if h.index is None:
            made[h.key] = hypers.get(h.name, h.default)
        else:
            made[h.key] = (*made.get(h.key, ()), hypers.get(h.name, h.default))
    return made


def run(
    cls: type[FusedOptimizer],
    grads: Iterable[torch.Tensor],
    hypers: Mapping[str, float],
    start: torch.Tensor,
    seed: int = 0,
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The reference backend: the parameter after every step, and the final state."""
    p = start.clone().requires_grad_()
    optimizer = cls([p], backend="reference", seed=seed, **keywords(cls, hypers))
    points = []
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
        points.append(p.detach().clone())
    return points, dict(optimizer.state[p])


def updates(
    p: Program,
    grads: Iterable[Array],
    first_t: int = 1,
    noise: Array | None = None,
    **hypers: float,
) -> list[Array]:
    """The float64 evaluator's update of every step, the parameter held at 0 and without decay.

    A stochastic sign gives the ratio it is drawn from, unless ``noise`` is given.
    """
    link = "ratio" if p.link in ("stosign", "expected") and noise is None else p.link
    evaluator = Evaluator(replace(p, decay=None, link=link, hypers=_read(p)), lr=1.0, **hypers)
    made: list[Array] = []
    state = None
    for t, g in enumerate(grads, first_t):
        zero = np.zeros_like(g)
        state = evaluator.initial_state(zero) if state is None else state
        after, state = evaluator.step(zero, g, state, t, noise)
        made.append(-after)
    return made


def _read(p: Program) -> tuple:
    """Without the hyperparameters of weight decay."""
    return tuple(h for h in p.hypers if h.name != "weight_decay")
