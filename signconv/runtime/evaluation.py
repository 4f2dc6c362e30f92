"""Evaluation at another point than the one that is trained (``OptimizerProgram.evaluation``).

The parameters are swapped, not computed back: their training values are kept in the state while the
model is evaluated, and put back bit for bit.  So a checkpoint of either mode goes on in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from signconv.runtime import mesh, sharded
from signconv.runtime.errors import coded
from signconv.runtime.program import Evaluation, OptimizerProgram, check_shape
from signconv.runtime.reference import ops
from signconv.runtime.settings import host_number
from signconv.runtime.state import names

if TYPE_CHECKING:
    from signconv.runtime.optimizer import FusedOptimizer

#: Of a param group: whether its parameters are what the model is evaluated with.
EVALUATING = "evaluating"
#: Of a parameter's state then: its values in training.
TRAINING = "training"


def enter(optimizer: FusedOptimizer, evaluation: Evaluation) -> None:
    """Swap in what the model is evaluated with; of DTensors every rank must call."""
    program = optimizer.program
    optimizer._values.settle(optimizer.param_groups, optimizer.defaults)
    held = [(g, p) for g in optimizer.param_groups for p in g["params"] if optimizer._has_state(p)]
    for _, p in held:
        check_shape(p, optimizer.state[p], program)
    try:
        for group, p in held:
            entry = optimizer.state[p]
            if TRAINING not in entry:
                kept = p.detach().clone()
                numbers = [float(h.read(group)) for h in program.hypers]
                _swap(program, evaluation, p, entry, evaluation.scalars(numbers))
                entry[TRAINING] = kept
    except BaseException:  # out of memory: nothing is half swapped
        _put_back(optimizer)
        raise
    for group in optimizer.param_groups:
        group[EVALUATING] = True


def _swap(
    program: OptimizerProgram,
    evaluation: Evaluation,
    p: Tensor,
    entry: Mapping[str, Any],
    scalars: Sequence[float],
) -> None:
    own = names(program)  # others may keep anything there
    values, plain = sharded.readable(p, {n: x for n, x in entry.items() if n in own})
    moments = []
    for m in program.moments:
        scale = plain.get(f"{m.name}_scale")
        moments.append(ops.load_moment(plain[m.name], scale, m.stored, values.numel()))
    exact = ops.load_param(values.contiguous(), plain)
    numbers = [host_number(x, torch.float64).to(torch.float32).to(exact.device) for x in scalars]
    made = evaluation.math(exact, tuple(moments), numbers)
    sharded.write_back(p, {}, made.view(values.shape).to(p.dtype), {})


def leave(optimizer: FusedOptimizer) -> None:
    """Put the training values back.

    Raises RuntimeError, with nothing changed, where a checkpoint came without them, or where a
    parameter has another shape by now.
    """
    for group in optimizer.param_groups:
        for p in group["params"] if group.get(EVALUATING) else ():
            if optimizer._has_state(p) and TRAINING not in optimizer.state[p]:
                raise coded(
                    RuntimeError,
                    "SC459",
                    "the checkpoint was saved while the model was evaluated, and has not the "
                    "values of training: save after optimizer.train(), or load with the whole "
                    "state_dict of optimizer.state_dict()",
                )
    for p, entry in _swapped(optimizer):
        check_shape(p, entry, optimizer.program)
    _put_back(optimizer)


def _swapped(optimizer: FusedOptimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    """Parameters that hold another point, those taken out of their group since among them."""
    return [(p, e) for p, e in optimizer.state.items() if isinstance(p, Tensor) and TRAINING in e]


def _put_back(optimizer: FusedOptimizer) -> None:
    for p, entry in _swapped(optimizer):
        mesh.local(p).detach().copy_(mesh.local(entry[TRAINING]))
        del entry[TRAINING]
    for group in optimizer.param_groups:
        group[EVALUATING] = False


def refuse(optimizer: FusedOptimizer, what: str) -> None:
    """Raise RuntimeError for what is not done in evaluation: it would be undone by its end."""
    if optimizer.program.evaluation is None:
        return
    if any(g.get(EVALUATING) for g in optimizer.param_groups):
        raise coded(
            RuntimeError,
            "SC460",
            f"{type(optimizer).__name__} holds what the model is evaluated with: call "
            f"optimizer.train() before {what}",
        )
