"""RAdam's rectified step size, and the optimizers that are built on it."""

from signconv.dsl import (
    Optimizer,
    decoupled,
    ema,
    grad,
    hyper,
    max,
    mean,
    ndim,
    param,
    sqrt,
    state,
    stepped,
    t,
    where,
)


class RAdam(Optimizer):
    """Adam that waits for its second moment (Liu et al. 2020, arXiv 1908.03265, Alg. 2).

    It does nothing until then, weight decay neither; eps is added before the root is corrected.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    n_sma_threshold = hyper(5, ge=5)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    whole = 2 / (1 - beta2) - 1
    n = whole - 2 * t * beta2**t / (1 - beta2**t)
    ready = n >= n_sma_threshold
    share = (n - 4) / (whole - 4) * (n - 2) / n * whole / (whole - 2)
    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    size = where(ready, sqrt((1 - beta2**t) * max(share, 0)), 0)
    numerator = size * m.corrected
    denominator = sqrt(v) + eps
    decay = decoupled(where(ready, weight_decay, 0))


class Ranger(Optimizer):
    """RAdam in Lookahead, on gradients that are centered by channel (Wright 2019,
    github.com/lessw2020/Ranger-Deep-Learning-Optimizer)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.95, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    alpha, k = hyper(0.5, ge=0, le=1), hyper(6, ge=1)
    n_sma_threshold = hyper(5, ge=5)
    eps = hyper(1e-5, ge=0)
    weight_decay = hyper(0.0, ge=0)

    whole = 2 / (1 - beta2) - 1
    n = whole - 2 * t * beta2**t / (1 - beta2**t)
    share = (n - 4) / (whole - 4) * (n - 2) / n * whole / (whole - 2)
    centered = where(ndim >= 2, grad - mean(grad, axis=(1, ...)), grad)
    m = ema(centered, beta1)
    v = ema(centered**2, beta2)
    size = sqrt((1 - beta2**t) * max(share, 0))
    update = where(n >= n_sma_threshold, size * m.corrected / (sqrt(v) + eps), m.corrected)
    decay = decoupled(weight_decay)

    slow = state(param)
    synchronized = t % k == 0
    slow.next = where(synchronized, slow.prev + alpha * (stepped - slow.prev), slow.prev)
    new_param = where(synchronized, slow, stepped)


class ScheduleFreeRAdam(Optimizer):
    """Schedule-Free on RAdam's step size (Defazio et al. 2024, arXiv 2405.15682).

    The steps before the second moment is ready do nothing but fill it.
    """

    lr = hyper(2.5e-3, ge=0)
    beta1, beta2 = hyper(0.9, gt=0, lt=1), hyper(0.999, ge=0, lt=1)
    r, weight_lr_power = hyper(0.0, ge=0), hyper(2.0, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    whole = 2 / (1 - beta2) - 1
    n = whole - 2 * t * beta2**t / (1 - beta2**t)
    share = (n - 4) / (whole - 4) * (n - 2) / n * whole / (whole - 2)
    size = where(n > 4, sqrt(max(share, 0)), 0)
    longest, total = state(), state()
    longest.next = max(longest.prev, lr * size)
    weight = t**r * longest**weight_lr_power
    total.next = total.prev + weight
    c = where(total > 0, weight / max(total, 1e-30), 0)

    v = ema(grad**2, beta2)
    normed = grad / (sqrt(v.corrected) + eps)
    update = size * (normed + weight_decay * param)
    moved = stepped - param
    z = state(param)
    z.next = z.prev + moved
    new_param = param + c * (z.prev - param) + (1 - beta1 * (1 - c)) * moved
    eval_param = param + (1 - 1 / beta1) * (z - param)
