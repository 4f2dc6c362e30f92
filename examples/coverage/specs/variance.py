"""Optimizers that weigh a gradient by what is known of its noise, and AdaGrad's family."""

from signconv.dsl import (
    Optimizer,
    abs,
    clip,
    decoupled,
    ema,
    grad,
    hyper,
    min,
    param,
    sign,
    sqrt,
    state,
    t,
    where,
)


class MSVAG(Optimizer):
    """Momentum SGD, shrunk by its estimated variance (Balles & Hennig 2018, arXiv 1705.07774)."""

    lr = hyper(1e-2, ge=0)
    beta = hyper(0.9, ge=0, lt=1)

    m = ema(grad, beta)
    v = ema(grad**2, beta)
    left = (1 - beta ** (2 * t)) * (1 - beta) ** 2
    rho = min(left / ((1 - beta**2) * (1 - beta**t) ** 2), 0.9999)
    s = (v.corrected - m.corrected**2) / (1 - rho)
    whole = rho * s + m.corrected**2
    factor = where(whole == 0, 0, m.corrected**2 / whole)
    update = m.corrected * clip(factor, 0, 1)


class VSGD(Optimizer):
    """Variational SGD (Chen et al. 2024, arXiv 2404.06549, Alg. 1): a posterior of the gradient."""

    lr = hyper(0.1, ge=0)
    ghattg, ps = hyper(30.0, gt=0), hyper(1e-8, gt=0)
    tau1, tau2 = hyper(0.81, ge=0), hyper(0.9, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    shape = 2 * ps + 1 + 1e-4
    rate, rate_hat = 2 * ps, 2 * ghattg * ps
    bg, bhg, mu = state(), state(), state()
    bg0, bhg0 = where(t == 1, rate, bg.prev), where(t == 1, rate_hat, bhg.prev)
    sg = bg0 / where(t == 1, shape - 1, shape)
    shg = bhg0 / where(t == 1, shape - 1, shape)
    mu.next = (mu.prev * shg + grad * sg) / (sg + shg)
    square = mu**2 + sg * shg / (sg + shg)
    bg.next = bg0 + t**-tau1 * (rate + square - 2 * mu * mu.prev + mu.prev**2 - bg0)
    bhg.next = bhg0 + t**-tau2 * (rate_hat + square - 2 * grad * mu + grad**2 - bhg0)
    numerator = mu
    denominator = sqrt(square) + eps
    decay = decoupled(weight_decay)


class Yogi(Optimizer):
    """Additive second moment (Zaheer et al. 2018, NeurIPS, Alg. 2); both moments start from
    ``initial_accumulator``, as in the collection."""

    lr = hyper(1e-2, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    initial_accumulator = hyper(1e-6, ge=0)
    eps = hyper(1e-3, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m, v = state(), state()
    m0 = where(t == 1, initial_accumulator, m.prev)
    v0 = where(t == 1, initial_accumulator, v.prev)
    m.next = beta1 * m0 + (1 - beta1) * grad
    v.next = v0 - (1 - beta2) * sign(v0 - grad**2) * grad**2
    numerator = m / (1 - beta1**t)
    denominator = sqrt(v) / sqrt(1 - beta2**t) + eps
    decay = decoupled(weight_decay)


class Kate(Optimizer):
    """AdaGrad without the root (Choudhury et al. 2024, arXiv 2403.02648, Alg. 1).

    The paper's b² and m² are kept as their roots, as in the collection, which decays the weights.
    """

    lr = hyper(1e-3, ge=0)
    delta = hyper(0.0, ge=0)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.0, ge=0)

    b, m = state(), state()
    squares = b.prev**2 + grad**2 + eps
    b.next = sqrt(squares)
    m.next = sqrt(m.prev**2 + delta * grad**2 + grad**2 / squares)
    update = m * grad / squares
    decay = decoupled(weight_decay)


class SaRA(Optimizer):
    """Adam on the weights that start near zero (Hu et al. 2024, arXiv 2409.06633), of
    which those stay that still are near it after ``progressive_iter`` steps."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    threshold, progressive_iter = hyper(1e-3, gt=0), hyper(1000, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.01, ge=0)

    small = where(abs(param) < threshold, 1, 0)
    kept = state()
    later = where(t == progressive_iter + 1, kept.prev * small, kept.prev)
    kept.next = where(t == 1, small, later)
    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    moved = m.corrected / (sqrt(v.corrected) + eps) + weight_decay * param
    update = where(kept > 0, moved, 0)
