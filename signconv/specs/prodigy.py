from signconv.dsl import (
    Optimizer,
    abs,
    decoupled,
    ema,
    grad,
    hyper,
    max,
    param,
    sqrt,
    state,
    sum,
    where,
)


class Prodigy(Optimizer):
    """Prodigy (Mishchenko & Defazio 2023, arXiv 2306.06101, Alg. 4), Adam's form.

    The distance d to the solution is estimated over all tensors, so that lr stays 1, or is a
    schedule with a peak of 1. d grows from d0, times d_coef.
    """

    lr = hyper(1.0, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)
    d0, d_coef = hyper(1e-6, gt=0), hyper(1.0, gt=0)

    d = state(0)
    now = where(d.prev > 0, d.prev, d0)
    beta3 = sqrt(beta2)
    rate = lr * now**2
    start = state(param)
    start.next = start.prev
    s = ema(rate * grad, beta3)
    progress = state(0)
    progress.next = beta3 * progress.prev + (1 - beta3) * sum(
        rate * grad * (start - param), over="all"
    )
    size = sum(abs(s), over="all")
    d.next = max(now, where(size == 0, 0, d_coef * progress / size))

    m = ema(now * grad, beta1)
    v = ema((now * grad) ** 2, beta2)
    numerator = m
    denominator = sqrt(v) / now + eps
    decay = decoupled(weight_decay * now)
