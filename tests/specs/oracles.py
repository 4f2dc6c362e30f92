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


def hessians(steps: int, size: int) -> list[Array | None]:
    """Sophia's extra input, step by step: an estimate at each third, of either sign."""
    rng = np.random.default_rng(2305)
    made = [rng.standard_normal(size) + 0.5 for _ in range(steps)]
    return [h if t % 3 == 0 else None for t, h in enumerate(made)]


def draws(steps: int, size: int) -> list[Array]:
    """The noise of a stochastic sign, step by step, for an oracle and for what it is held to."""
    rng = np.random.default_rng(1604)
    return [rng.uniform(-1, 1, size) for _ in range(steps)]


def by_hand(source: str, step: Step, **hypers: float) -> Oracle:
    """An oracle from one step's function."""

    def run(param: Array, grads: Sequence[Array], lr: float) -> Array:
        x, memory = param.copy(), {"noise": iter(draws(len(grads), param.size))}
        memory["hessian"] = iter(hessians(len(grads), param.size))
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


def ie_stosignsgd(x, g, memory, t, lr, momentum, beta2, weight_decay):
    """arXiv 2604.15416, Alg. 10: the mean of Alg. 3's sign."""
    m = momentum_first(memory, t, momentum, g)
    memory["G"] = np.maximum(beta2 * memory.get("G", 0.0), np.abs(m))
    return x - lr * m / np.where(memory["G"] == 0, 1, memory["G"]) - lr * weight_decay * x


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


def sophia(x, g, memory, t, lr, beta1, beta2, gamma, rho, eps, weight_decay):
    """Liu et al. 2023, Alg. 3; where no estimate comes, the average of those before stays."""
    m, hessian = average(memory, "m", beta1, g), next(memory["hessian"])
    if hessian is not None:
        average(memory, "h", beta2, hessian)
    below = np.maximum(gamma * memory.get("h", np.zeros_like(x)), eps)
    size = np.minimum(np.abs(m) / below, rho)
    return x - lr * weight_decay * x - lr * np.copysign(size, m)


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


def laprop(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    """Ziyin et al. 2020, Alg. 1."""
    n = average(memory, "n", beta2, g * g) / (1 - beta2**t)
    m = average(memory, "m", beta1, g / (np.sqrt(n) + eps)) / (1 - beta1**t)
    return x - lr * m - lr * weight_decay * x


def adopt(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    """Taniguchi et al. 2024, Alg. 2, clipped at t**0.25 as their code counts t, from 0."""
    if t == 1:
        memory["v"] = g * g
        return x
    bound = (t - 1) ** 0.25
    scaled = np.clip(g / np.maximum(np.sqrt(memory["v"]), eps), -bound, bound)
    memory["v"] = beta2 * memory["v"] + (1 - beta2) * g * g
    return x * (1 - lr * weight_decay) - lr * average(memory, "m", beta1, scaled)


def ademamix(x, g, memory, t, lr, beta1, beta2, beta3, alpha, warmup, eps, weight_decay):
    """Pagliardini et al. 2024, Alg. 1, with the schedulers of its Section 3."""
    part = min(t / warmup, 1.0)
    start, end = np.log(beta1), np.log(beta3)
    slow = min(np.exp(start * end / ((1 - part) * end + part * start)), beta3)
    m1 = average(memory, "m1", beta1, g) / (1 - beta1**t)
    m2 = average(memory, "m2", slow, g)
    v = average(memory, "v", beta2, g * g) / (1 - beta2**t)
    update = (m1 + alpha * part * m2) / (np.sqrt(v) + eps)
    return x - lr * update - lr * weight_decay * x


def mars(x, g, memory, t, lr, beta1, beta2, gamma, eps, weight_decay):
    """Yuan et al. 2024, Alg. 2 (MARS-AdamW, approximate), clipping by the tensor's norm."""
    c = g + gamma * beta1 / (1 - beta1) * (g - memory.get("g", g))
    memory["g"] = g
    c = c / max(1.0, np.sqrt(np.sum(c * c)))
    return x * (1 - lr * weight_decay) - lr * adam_direction(c, memory, t, beta1, beta2, eps)


def stableadamw(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    """Wortsman et al. 2023, Alg. 2, with its betas that rise from 0."""
    b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (beta1, beta2))
    m, v = average(memory, "m", b1, g), average(memory, "v", b2, g * g)
    rms = np.sqrt(np.mean(g * g / np.maximum(v, eps * eps)))
    eta = lr / max(1.0, rms)
    return x - eta * weight_decay * x - eta * m / (np.sqrt(v) + eps)


def orthogonalized(m):
    """Jordan et al. 2024: five steps of their quintic, of the tensor as rows of its first
    dimension."""
    x = m.reshape(m.shape[0] if m.ndim > 1 else 1, -1)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.reshape(m.shape)


def sides(x: Array) -> tuple[int, int]:
    return (x.shape[0], x[0].size) if x.ndim > 1 else (1, x.size)


def muon(x, g, memory, t, lr, momentum, weight_decay):
    m = average(memory, "m", momentum, g)
    high, wide = sides(x)
    o = orthogonalized((1 - momentum) * g + momentum * m)
    return x * (1 - lr * weight_decay) - lr * max(1, high / wide) ** 0.5 * o


def muon_rms(x, g, memory, t, lr, momentum, weight_decay):
    m = average(memory, "m", momentum, g)
    o = orthogonalized((1 - momentum) * g + momentum * m)
    return x - lr * (0.2 * max(sides(x)) ** 0.5 * o + weight_decay * x)


def normuon(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    o = orthogonalized(average(memory, "m", beta1, g))
    rows = np.mean(o**2, axis=tuple(range(1, o.ndim)) if o.ndim > 1 else None, keepdims=True)
    o = o / (np.sqrt(average(memory, "v", beta2, rows)) + eps)
    step = 0.2 * lr * x.size**0.5 / np.linalg.norm(o)
    return x - lr * weight_decay * x - step * o


def adamuon(x, g, memory, t, lr, momentum, eps, weight_decay):
    o = orthogonalized(np.sign(average(memory, "m", momentum, g)))
    o = o / (np.sqrt(average(memory, "v", momentum, o**2)) + eps)
    return x - lr * (0.2 * x.size**0.5 / np.linalg.norm(o) * o + weight_decay * x)


def scion(x, g, memory, t, lr, momentum, radius, weight_decay):
    high, wide = sides(x)
    o = orthogonalized(average(memory, "m", momentum, g))
    return (1 - lr * weight_decay) * x - lr * radius * (high / wide) ** 0.5 * o


# ---------------------------------------------------------------- the table

BETAS = {"beta1": 0.8, "beta2": 0.95}
ADAM = {**BETAS, "eps": 1e-3, "weight_decay": 0.1}
PAIR = (0.8, 0.95)


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


def factored(memory: dict, name: str, beta: float, u: Array) -> Array:
    """Averages of rows and columns, and their product as an average of every element; of a vector
    that average itself."""
    if u.ndim < 2:
        return average(memory, name, beta, u)
    row = average(memory, f"{name} row", beta, u.mean(axis=-1, keepdims=True))
    column = average(memory, f"{name} column", beta, u.mean(axis=-2, keepdims=True))
    return row * column / row.mean(axis=-2, keepdims=True)


def adafactor(x, g, memory, t, lr, decay_rate, eps1, eps2, clip_threshold, weight_decay):
    u = g / np.sqrt(factored(memory, "v", 1 - t**-decay_rate, g**2 + eps1))
    u = u / max(1.0, rms(u) / clip_threshold)
    alpha = max(eps2, rms(x)) * min(lr, t**-0.5)
    return x - alpha * u - lr * weight_decay * x


def adalomo(x, g, memory, t, lr, decay_rate, eps1, eps2, clip_threshold, weight_decay):
    u = g / np.sqrt(factored(memory, "v", 1 - t**-decay_rate, g**2 + eps1))
    u = u / max(1.0, rms(u) / clip_threshold) * max(eps2, rms(x))
    return x - lr * (u + weight_decay * x)


def came(x, g, memory, t, lr, beta1, beta2, beta3, eps1, eps2, clip_threshold, weight_decay):
    u = g / np.sqrt(factored(memory, "v", beta2, g**2 + eps1))
    u = u / max(1.0, rms(u) / clip_threshold)
    m = average(memory, "m", beta1, u)
    trusted = m
    if x.ndim >= 2:
        trusted = m / np.sqrt(factored(memory, "change", beta3, (u - m) ** 2 + eps2))
    return x - lr * (trusted + weight_decay * x)


def adam_mini(x, g, memory, t, lr, beta1, beta2, eps, weight_decay):
    axis = tuple(range(1, x.ndim)) or None
    m = average(memory, "m", beta1, g) / (1 - beta1**t)
    v = average(memory, "v", beta2, np.mean(g**2, axis=axis, keepdims=True)) / (1 - beta2**t)
    return x - lr * (m / (np.sqrt(v) + eps) + weight_decay * x)


def sm3(x, g, memory, t, lr, weight_decay):
    if x.ndim < 2:
        memory["v"] = v = memory.get("v", 0.0) + g**2
    else:
        v = np.minimum(memory.get("row", 0.0), memory.get("column", 0.0)) + g**2
        memory["row"], memory["column"] = v.max(-1, keepdims=True), v.max(-2, keepdims=True)
    step = np.divide(g, np.sqrt(v), out=np.zeros_like(g), where=v > 0)
    return x - lr * (step + weight_decay * x)


def prodigy(x, g, memory, t, lr, beta1, beta2, eps, weight_decay, d0, d_coef):
    d, r = memory.get("d", d0), memory.get("r", 0.0)
    start = memory.setdefault("x0", x.copy())
    share = beta2**0.5
    m, v, s = (memory.get(name, np.zeros_like(x)) for name in "mvs")
    memory["m"] = m = beta1 * m + (1 - beta1) * d * g
    memory["v"] = v = beta2 * v + (1 - beta2) * d**2 * g**2
    memory["r"] = r = share * r + (1 - share) * lr * d**2 * np.dot(g, start - x)
    memory["s"] = s = share * s + (1 - share) * lr * d**2 * g
    size = np.abs(s).sum()
    memory["d"] = max(d, d_coef * r / size) if size > 0 else d
    return x - lr * weight_decay * d * x - lr * d * m / (np.sqrt(v) + d * eps)


def dadapt_adam(x, g, memory, t, lr, beta1, beta2, eps, weight_decay, d0):
    d, r = memory.get("d", d0), memory.get("r", 0.0)
    share = beta2**0.5
    m, v, s = (memory.get(name, np.zeros_like(x)) for name in "mvs")
    memory["m"] = m = beta1 * m + (1 - beta1) * d * lr * g
    memory["v"] = v = beta2 * v + (1 - beta2) * g**2
    scale = np.sqrt(v) + eps
    memory["r"] = r = share * r + (1 - share) * d * lr * np.dot(g, s / scale)
    memory["s"] = s = share * s + (1 - share) * d * lr * g
    size = np.abs(s).sum()
    memory["d"] = max(d, r / ((1 - share) * size)) if size > 0 else d
    return x - lr * weight_decay * d * x - m / scale


def schedulefree_adamw(
    y: Array, g: Array, memory: dict, t: int, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, warmup_steps: float, r: float, weight_lr_power: float,
) -> Array:  # fmt: skip
    """All three points, of which the spec keeps two."""
    now = lr * min(1.0, t / warmup_steps)
    memory["highest"] = max(memory.get("highest", 0.0), now)
    weight = t**r * memory["highest"] ** weight_lr_power
    memory["weights"] = memory.get("weights", 0.0) + weight
    c = weight / memory["weights"]
    v = average(memory, "v", beta2, g**2) / (1 - beta2**t)
    u = g / (np.sqrt(v) + eps) + weight_decay * y
    memory["z"] = memory.get("z", y) - now * u
    memory["x"] = (1 - c) * memory.get("x", y) + c * memory["z"]
    return (1 - beta1) * memory["z"] + beta1 * memory["x"]


ORACLES = {
    "adabelief": by_hand("Zhuang et al. 2020, Alg. 2", adabelief, **ADAM),
    "adafactor": by_hand(
        "Shazeer & Stern 2018, Alg. 4 and 5",
        adafactor,
        decay_rate=0.7,
        eps1=1e-3,
        eps2=2.0,
        clip_threshold=0.8,
        weight_decay=0.1,
    ),
    "adadelta": by_torch(
        lambda p, lr: torch.optim.Adadelta(p, lr, 0.8, 1e-3, 0.1),
        0.0,
        rho=0.8,
        eps=1e-3,
        weight_decay=0.1,
    ),
    "adagrad": by_torch(
        lambda p, lr: torch.optim.Adagrad(p, lr, 0.02, 0.1, eps=1e-2),
        0.0,
        lr_decay=0.02,
        weight_decay=0.1,
        eps=1e-2,
    ),
    "adam_mini": by_hand(
        "Zhang et al. 2024, Alg. 1", adam_mini, **{**ADAM, "beta2": 0.9, "weight_decay": 0.2}
    ),
    "adam": by_torch(lambda p, lr: torch.optim.Adam(p, lr, PAIR, 1e-3, 0.1), 0.0, **ADAM),
    "adalomo": by_hand(
        "Lv et al. 2023, Alg. 1",
        adalomo,
        decay_rate=0.7,
        eps1=1e-3,
        eps2=2.0,
        clip_threshold=0.8,
        weight_decay=0.1,
    ),
    "adamax": by_hand("Kingma & Ba 2015, Alg. 2", adamax, **ADAM),
    "adamw": by_torch(lambda p, lr: torch.optim.AdamW(p, lr, PAIR, 1e-3, 0.1), 0.0, **ADAM),
    "adamuon": by_hand("Si et al. 2025, Alg. 1", adamuon, momentum=0.9, eps=1e-3, weight_decay=0.2),
    "adan": by_hand("Xie et al. 2022, Alg. 1", adan, beta3=0.9, **ADAM),
    "ademamix": by_hand(
        "Pagliardini et al. 2024, Alg. 1", ademamix, beta3=0.99, alpha=2.0, warmup=60.0, **ADAM
    ),
    "adopt": by_hand(
        "Taniguchi et al. 2024, Alg. 2", adopt, **{**BETAS, "eps": 0.3, "weight_decay": 0.1}
    ),
    "amsgrad": by_torch(
        lambda p, lr: torch.optim.AdamW(p, lr, PAIR, 1e-3, 0.1, amsgrad=True), 0.0, **ADAM
    ),
    "came": by_hand(
        "Luo et al. 2023, Alg. 2",
        came,
        beta1=0.8,
        beta2=0.9,
        beta3=0.95,
        eps1=1e-3,
        eps2=1e-2,
        clip_threshold=0.8,
        weight_decay=0.1,
    ),
    "cautious_adamw": by_hand("Liang et al. 2024, Alg. 1", cautious_adamw, **ADAM),
    "dadapt_adam": by_hand(
        "Defazio & Mishchenko 2023, Alg. 5",
        dadapt_adam,
        **{**ADAM, "weight_decay": 3.0},
        d0=0.1,
    ),
    "ie_stosignsgd": by_hand(
        "arXiv 2604.15416, Alg. 10", ie_stosignsgd, momentum=0.8, beta2=0.97, weight_decay=0.1
    ),
    "lamb": by_hand("You et al. 2020, Alg. 2", lamb, **ADAM),
    "laprop": by_hand("Ziyin et al. 2020, Alg. 1", laprop, **ADAM),
    "lion": by_hand("Chen et al. 2023, Alg. 2", lion, **BETAS, weight_decay=0.1),
    "mars": by_hand("Yuan et al. 2024, Alg. 2", mars, gamma=0.05, **ADAM),
    "muon": by_hand("Jordan et al. 2024", muon, momentum=0.9, weight_decay=0.2),
    "muon_rms": by_hand("Liu et al. 2025, eq. 4", muon_rms, momentum=0.9, weight_decay=0.2),
    "nadam": by_torch(
        lambda p, lr: torch.optim.NAdam(p, lr, PAIR, 1e-3, 0.1, 0.01, decoupled_weight_decay=True),
        0.0,
        momentum_decay=0.01,
        **ADAM,
    ),
    "normuon": by_hand(
        "Li et al. 2025, Alg. 1", normuon, **{**BETAS, "beta2": 0.9, "eps": 1e-3}, weight_decay=0.2
    ),
    "radam": by_torch(lambda p, lr: torch.optim.RAdam(p, lr, PAIR, 1e-3, 0.1), 0.0, **ADAM),
    "rmsprop": by_torch(
        lambda p, lr: torch.optim.RMSprop(p, lr, 0.9, 1e-3),
        0.1,
        alpha=0.9,
        eps=1e-3,
        weight_decay=0.1,
    ),
    "prodigy": by_hand(
        "Mishchenko & Defazio 2023, Alg. 4",
        prodigy,
        **{**ADAM, "weight_decay": 3.0},
        d0=0.01,
        d_coef=170.0,
    ),
    "rprop": by_torch(
        lambda p, lr: torch.optim.Rprop(p, lr, (0.6, 1.3), (0.2 * lr, 1.5 * lr)),
        0.0,
        eta_minus=0.6,
        eta_plus=1.3,
        step_min=0.2,
        step_max=1.5,
    ),
    "s3": by_hand("arXiv 2507.06464, Alg. 1", s3, beta=0.9, weight_decay=0.1),
    "s3gd": by_hand("the S3GD post", s3gd, momentum=0.8, weight_decay=0.1),
    "scion": by_hand(
        "Pethick et al. 2025, Alg. 1", scion, momentum=0.8, radius=2.0, weight_decay=1.0
    ),
    "schedulefree_adamw": by_hand(
        "Defazio et al. 2024, Alg. 1",
        schedulefree_adamw,
        **ADAM,
        warmup_steps=7.0,
        r=0.5,
        weight_lr_power=1.5,
    ),
    "sgd": by_torch(
        lambda p, lr: torch.optim.SGD(p, lr, 0.8, dampening=0.8),
        0.1,
        momentum=0.8,
        weight_decay=0.1,
    ),
    "signsgd": by_hand("Bernstein et al. 2018, Alg. 1", signsgd, weight_decay=0.1),
    "signum": by_hand("arXiv 2604.15416, Alg. 5", signum, momentum=0.8, weight_decay=0.1),
    "sm3": by_hand("Anil et al. 2019, SM3-II", sm3, weight_decay=0.1),
    "sophia": by_hand(
        "Liu et al. 2023, Alg. 3", sophia, **BETAS, gamma=2.0, rho=0.7, eps=0.3, weight_decay=0.2
    ),
    "stableadamw": by_hand("Wortsman et al. 2023, Alg. 2", stableadamw, **ADAM),
    "stosignsgd": by_hand(
        "arXiv 2604.15416, Alg. 3", stosignsgd, momentum=0.8, beta2=0.97, weight_decay=0.1
    ),
    "stosignsgd_v2": by_hand(
        "arXiv 2604.15416, Alg. 3, damped as Alg. 10 allows",
        stosignsgd,
        momentum=0.8,
        beta2=0.95,
        weight_decay=0.1,
    ),
}
