"""The step as one operator of torch: a graph of torch.compile keeps it and does not break there."""

from __future__ import annotations

import itertools
import secrets
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.errors import coded

#: From a number that no other process begins at: an exported graph may come to one.
_numbers = itertools.count(secrets.randbits(60))
#: What the operator steps, by the number that a graph has for it.
_living: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def enter(optimizer: Any) -> int:
    """A number for a new optimizer."""
    number = next(_numbers)
    _living[number] = optimizer
    return number


def trace(number: int, groups: Sequence[dict[str, Any]]) -> None:
    """Put the step of all parameters with gradients into the graph that is being traced."""
    params: list[Tensor] = []
    grads: list[Tensor] = []
    places: list[int] = []
    place = 0
    for group in groups:
        for p in group["params"]:
            if p.grad is not None:
                params.append(p)
                grads.append(p.grad)
                places.append(place)
            place += 1
    if params:
        torch.ops.signconv.step(params, grads, places, number)


@torch.library.custom_op("signconv::step", mutates_args=("params",))
def _step(params: list[Tensor], grads: list[Tensor], places: list[int], number: int) -> None:
    """Step the optimizer with this number, whose parameters at ``places`` are ``params``.

    A graph may give a copy in a parameter's place, which holds what the graph has made of it so
    far; then the copy is stepped, and the parameter itself is as it was afterwards, for the graph
    copies what it wants.
    """
    optimizer = _living.get(number)
    if optimizer is None:
        raise coded(
            RuntimeError,
            "SC450",
            "a compiled or exported step's optimizer is gone, or of another process: keep it while "
            "the step is in use, and leave optimizers out of what is exported",
        )
    every = [p for group in optimizer.param_groups for p in group["params"]]
    own = [every[i] for i in places]
    before = [p.grad for p in own]
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for p, given, g in zip(own, params, grads, strict=True):
            if p.grad is not g:
                p.grad = g
            if given.data_ptr() != p.data_ptr():
                kept.append((p, given, p.detach().clone()))
                p.copy_(given)
        try:
            optimizer._step()
        finally:
            for p, g in zip(own, before, strict=True):
                if p.grad is not g:
                    p.grad = g
            for p, given, old in kept:
                given.copy_(p)
                p.copy_(old)


@_step.register_fake
def _(params: list[Tensor], grads: list[Tensor], places: list[int], number: int) -> None:
    return None
