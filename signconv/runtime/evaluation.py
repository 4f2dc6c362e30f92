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
from signconv.runtime.program import Evaluation
from signconv.runtime.reference import ops
from signconv.runtime.settings import host_number

if TYPE_CHECKING:
    from signconv.runtime.optimizer import FusedOptimizer

#: Of a param group: whether its parameters are what the model is evaluated with.
EVALUATING = "evaluating"
#: Of a parameter's state then: its values in training.
TRAINING = "training"


def enter(optimizer: FusedOptimizer, evaluation: Evaluation) -> None:
    """Swap in what the model is evaluated with; of DTensors every rank must call."""
    try:
        for group in optimizer.param_groups:
            scalars = evaluation.scalars([float(h.read(group)) for h in optimizer.program.hypers])
            group[EVALUATING] = True
            for p in group["params"]:
                entry = optimizer.state.get(p, {})
                if optimizer._has_state(p) and TRAINING not in entry:
                    kept = p.detach().clone()
                    _swap(optimizer, evaluation, p, entry, scalars)
                    entry[TRAINING] = kept
    except BaseException:  # out of memory: nothing is half swapped
        _put_back(optimizer)
        raise


def _swap(
    optimizer: FusedOptimizer,
    evaluation: Evaluation,
    p: Tensor,
    entry: Mapping[str, Tensor],
    scalars: Sequence[float],
) -> None:
    program = optimizer.program
    values, plain = sharded.readable(p, entry)
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

    Raises RuntimeError, with nothing changed, where a checkpoint came without them.
    """
    for group in optimizer.param_groups:
        if group.get(EVALUATING):
            for p in group["params"]:
                if optimizer._has_state(p) and TRAINING not in optimizer.state[p]:
                    raise coded(
                        RuntimeError,
                        "SC459",
                        "the checkpoint was saved while the model was evaluated, and has not the "
                        "values of training: save after optimizer.train(), or load with the whole "
                        "state_dict of optimizer.state_dict()",
                    )
    _put_back(optimizer)


def _put_back(optimizer: FusedOptimizer) -> None:
    for group in optimizer.param_groups:
        group[EVALUATING] = False
        for p in group["params"]:
            kept: Any = optimizer.state.get(p, {}).pop(TRAINING, None)
            if kept is not None:
                with torch.no_grad():
                    mesh.local(p).detach().copy_(mesh.local(kept))


def refuse_step(optimizer: FusedOptimizer) -> None:
    """Raise RuntimeError for a step in evaluation."""
    if any(g.get(EVALUATING) for g in optimizer.param_groups):
        raise coded(
            RuntimeError,
            "SC460",
            f"{type(optimizer).__name__} holds what the model is evaluated with: call "
            "optimizer.train() before training goes on",
        )
