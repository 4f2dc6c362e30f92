"""Hand-written or torch.optim steps in float64, which share no code with the compiler.

An oracle says how a built-in spec must behave; it is what catches a wrong spec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Oracle:
    """An independent implementation of one spec.

    ``run(param, grads, lr)`` returns the parameter after all gradients, in float64; ``hypers`` are
    the spec's hyperparameters under which the two are the same algorithm, and ``source`` says what
    it is.
    """

    source: str
    run: Callable[[Array, Sequence[Array], float], Array]
    hypers: dict[str, float] = field(default_factory=dict)


def _torch(
    make: Callable[[list[torch.Tensor], float], torch.optim.Optimizer],
) -> Callable[..., Array]:
    def run(param: Array, grads: Sequence[Array], lr: float) -> Array:
        p = torch.tensor(param, dtype=torch.float64, requires_grad=True)
        optimizer = make([p], lr)
        for g in grads:
            p.grad = torch.tensor(g, dtype=torch.float64)
            optimizer.step()
        return p.detach().numpy()

    return run


def lion(param: Array, grads: Sequence[Array], lr: float) -> Array:
    """Chen et al. 2023, Alg. 2, with betas (0.9, 0.99) and decoupled decay 0.1."""
    p, m = param.copy(), np.zeros_like(param)
    for g in grads:
        update = np.sign(0.9 * m + (1 - 0.9) * g)
        m = 0.99 * m + (1 - 0.99) * g
        p = p - lr * (update + 0.1 * p)
    return p


ORACLES = {
    "adamw": Oracle(
        "torch.optim.AdamW",
        _torch(lambda p, lr: torch.optim.AdamW(p, lr, (0.9, 0.999), 1e-8, weight_decay=0.1)),
        {"weight_decay": 0.1},
    ),
    "sgd": Oracle(
        "torch.optim.SGD, dampening = momentum",
        _torch(lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, dampening=0.9)),
    ),
    "adamax": Oracle(
        "torch.optim.Adamax, eps = 0",
        _torch(lambda p, lr: torch.optim.Adamax(p, lr, (0.9, 0.999), eps=0)),
        {"eps": 0.0},
    ),
    "rmsprop": Oracle(
        "torch.optim.RMSprop", _torch(lambda p, lr: torch.optim.RMSprop(p, lr, 0.99, 1e-8))
    ),
    "lion": Oracle("Chen et al. 2023, Alg. 2, by hand", lion, {"weight_decay": 0.1}),
}
