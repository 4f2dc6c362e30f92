"""One independent float64 step per built-in optimizer, written from the papers or torch.optim.

They share no code with the compiler.  Every hyperparameter is off its default, so that a spec
which ignores one, or takes one for another, disagrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from signconv.verification.oracles import Array, Oracle

#: x, g, own memory (empty at first), t, lr and the spec's other hyperparameters -> new x.
Step = Callable[..., Array]


def draws(steps: int, size: int) -> list[Array]:
    """The noise of a stochastic sign, step by step, for an oracle and for what it is held to."""
    rng = np.random.default_rng(1604)
    return [rng.uniform(-1, 1, size) for _ in range(steps)]


def by_hand(source: str, step: Step, **hypers: float) -> Oracle:
    """An oracle from one step's function."""

    def run(param: Array, grads: Sequence[Array], lr: float) -> Array:
        x, memory = param.copy(), {"noise": iter(draws(len(grads), param.size))}
        for t, g in enumerate(grads, 1):
            x = step(x, g, memory, t, lr, **hypers)
        return x

    return Oracle(source, run, hypers)


def by_torch(make: Callable[..., torch.optim.Optimizer], shrink: float, **hypers: float) -> Oracle:
    """An oracle from torch.optim; ``shrink`` is decoupled decay where torch has none."""

    def run(param: Array, grads: Sequence[Array], lr: float) -> Array:
        p = torch.tensor(param, dtype=torch.float64, requires_grad=True)
        optimizer = make([p], lr)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # NAdam's mu_product would be fp32: 1e-10 apart
        try:
            for g in grads:
                p.data.mul_(1 - lr * shrink)
                p.grad = torch.tensor(g)
                optimizer.step()
        finally:
            torch.set_default_dtype(default)
        return p.detach().numpy()

    return Oracle(f"torch.optim.{make([torch.zeros(1)], 0.0).__class__.__name__}", run, hypers)


def average(memory: dict, name: str, beta: float, u: Array) -> Array:
    """An EMA from zero."""
    memory[name] = beta * memory.get(name, 0.0) + (1 - beta) * u
    return memory[name]


def momentum_first(memory: dict, t: int, beta: float, g: Array) -> Array:
    """An EMA whose first value is the first gradient."""
    memory["m"] = g if t == 1 else beta * memory["m"] + (1 - beta) * g
    return memory["m"]


# ---------------------------------------------------------------- one function each


def signsgd(x, g, memory, t, lr, weight_decay):
    """Bernstein et al. 2018, Alg. 1."""
    return x - lr * np.sign(g) - lr * weight_decay * x


def signum(x, g, memory, t, lr, momentum, weight_decay):
    """arXiv 2604.15416, Alg. 5."""
    return x - lr * np.sign(momentum_first(memory, t, momentum, g)) - lr * weight_decay * x


def stosignsgd(x, g, memory, t, lr, momentum, beta2, weight_decay):
    """arXiv 2604.15416, Alg. 3, with a decaying maximum."""
    m = momentum_first(memory, t, momentum, g)
    memory["G"] = np.maximum(beta2 * memory.get("G", 0.0), np.abs(m))
    return x - lr * np.sign(m + memory["G"] * next(memory["noise"])) - lr * weight_decay * x


def s3(x, g, memory, t, lr, beta, weight_decay):
    """arXiv 2507.06464, Alg. 1, p = 3."""
    m = average(memory, "m", beta, g)
    s = average(memory, "s", beta, np.abs(g) ** 3)
    above = beta * m + (1 - beta) * g
    below = np.cbrt(beta * s + (1 - beta) * np.abs(g) ** 3)
    return x - lr * above / np.where(below == 0, 1, below) - lr * weight_decay * x


def s3gd(x, g, memory, t, lr, momentum, weight_decay):
    """The S3GD post: decay first, then the EMA of signs."""
    return x * (1 - lr * weight_decay) - lr * average(memory, "m", momentum, np.sign(g))


def adamax(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    """Kingma & Ba 2015, Alg. 2, eps added to u (torch.optim has it inside the maximum)."""
    m = average(memory, "m", beta1, g)
    memory["u"] = np.maximum(beta2 * memory.get("u", 0.0), np.abs(g))
    return x - lr / (1 - beta1**t) * m / (memory["u"] + eps) - lr * weight_decay * x


def adabelief(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    """Zhuang et al. 2020, Alg. 2, eps outside the root alone."""
    m = average(memory, "m", beta1, g)
    s = average(memory, "s", beta2, (g - m) ** 2)
    update = m / (1 - beta1**t) / (np.sqrt(s / (1 - beta2**t)) + eps)
    return x - lr * update - lr * weight_decay * x


def adan(x, g, memory, t, lr, beta1, beta2, beta3, eps, weight_decay):
    """Xie et al. 2022 as its reference implementation has it (betas weigh the old), no_prox."""
    change = g - memory.get("g", g)
    memory["g"] = g
    m = average(memory, "m", beta1, g) / (1 - beta1**t)
    v = average(memory, "v", beta2, change) / (1 - beta2**t)
    n = average(memory, "n", beta3, (g + beta2 * change) ** 2) / (1 - beta3**t)
    return x * (1 - lr * weight_decay) - lr * (m + beta2 * v) / (np.sqrt(n) + eps)


def lion(x, g, memory, t, lr, beta1, beta2, weight_decay):
    """Chen et al. 2023, Alg. 2."""
    update = np.sign(beta1 * memory.get("m", 0.0) + (1 - beta1) * g)
    average(memory, "m", beta2, g)
    return x - lr * (update + weight_decay * x)


def adam_direction(g, memory, t, beta1, beta2, eps):
    m = average(memory, "m", beta1, g) / (1 - beta1**t)
    v = average(memory, "v", beta2, g * g) / (1 - beta2**t)
    return m / (np.sqrt(v) + eps)


def lamb(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    """You et al. 2020, Alg. 2, phi(z) = z; the trust ratio is 1 where a norm is 0."""
    u = adam_direction(g, memory, t, beta1, beta2, eps) + weight_decay * x
    norms = np.sqrt(np.sum(x * x)), np.sqrt(np.sum(u * u))
    return x - lr * (norms[0] / norms[1] if all(norms) else 1.0) * u


def cautious_adamw(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    """Liang et al. 2024, Alg. 1, with the mean kept above 1e-3 as their code does."""
    u = adam_direction(g, memory, t, beta1, beta2, eps)
    agree = (u * g > 0).astype(float)
    return x * (1 - lr * weight_decay) - lr * u * agree / max(agree.mean(), 1e-3)


# ---------------------------------------------------------------- the table

BETAS = {"beta1": 0.8, "beta2": 0.95}
ADAM = {**BETAS, "eps": 1e-3, "weight_decay": 0.1}
PAIR = (0.8, 0.95)

ORACLES = {
    "adabelief": by_hand("Zhuang et al. 2020, Alg. 2", adabelief, **ADAM),
    "adam": by_torch(lambda p, lr: torch.optim.Adam(p, lr, PAIR, 1e-3, 0.1), 0.0, **ADAM),
    "adamax": by_hand("Kingma & Ba 2015, Alg. 2", adamax, **ADAM),
    "adamw": by_torch(lambda p, lr: torch.optim.AdamW(p, lr, PAIR, 1e-3, 0.1), 0.0, **ADAM),
    "adan": by_hand("Xie et al. 2022, Alg. 1", adan, beta3=0.9, **ADAM),
    "amsgrad": by_torch(
        lambda p, lr: torch.optim.AdamW(p, lr, PAIR, 1e-3, 0.1, amsgrad=True), 0.0, **ADAM
    ),
    "cautious_adamw": by_hand("Liang et al. 2024, Alg. 1", cautious_adamw, **ADAM),
    "lamb": by_hand("You et al. 2020, Alg. 2", lamb, **ADAM),
    "lion": by_hand("Chen et al. 2023, Alg. 2", lion, **BETAS, weight_decay=0.1),
    "nadam": by_torch(
        lambda p, lr: torch.optim.NAdam(p, lr, PAIR, 1e-3, 0.1, 0.01, decoupled_weight_decay=True),
        0.0,
        momentum_decay=0.01,
        **ADAM,
    ),
    "rmsprop": by_torch(
        lambda p, lr: torch.optim.RMSprop(p, lr, 0.9, 1e-3),
        0.1,
        alpha=0.9,
        eps=1e-3,
        weight_decay=0.1,
    ),
    "s3": by_hand("arXiv 2507.06464, Alg. 1", s3, beta=0.9, weight_decay=0.1),
    "s3gd": by_hand("the S3GD post", s3gd, momentum=0.8, weight_decay=0.1),
    "sgd": by_torch(
        lambda p, lr: torch.optim.SGD(p, lr, 0.8, dampening=0.8),
        0.1,
        momentum=0.8,
        weight_decay=0.1,
    ),
    "signsgd": by_hand("Bernstein et al. 2018, Alg. 1", signsgd, weight_decay=0.1),
    "signum": by_hand("arXiv 2604.15416, Alg. 5", signum, momentum=0.8, weight_decay=0.1),
    "stosignsgd": by_hand(
        "arXiv 2604.15416, Alg. 3", stosignsgd, momentum=0.8, beta2=0.97, weight_decay=0.1
    ),
}
