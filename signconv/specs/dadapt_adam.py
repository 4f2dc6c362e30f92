from signconv.dsl import (
    Optimizer,
    abs,
    decoupled,
    ema,
    grad,
    hyper,
    max,
    sqrt,
    state,
    sum,
    where,
)


class DAdaptAdam(Optimizer):
    """D-Adaptation, Adam's form (Defazio & Mishchenko 2023, arXiv 2301.07733, Alg. 5).

    The distance d to the solution is estimated over all tensors, so that lr stays 1, or is a
    schedule with a peak of 1. d grows from d0.
    """

    lr = hyper(1.0, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)
    d0 = hyper(1e-6, gt=0)

    d = state(0)
    now = where(d.prev > 0, d.prev, d0)
    rate = lr * now
    beta3 = sqrt(beta2)
    s = ema(rate * grad, beta3)
    m = ema(rate * grad, beta1)
    v = ema(grad**2, beta2)
    scale = sqrt(v) + eps
    progress = state(0)
    progress.next = beta3 * progress.prev + (1 - beta3) * sum(
        rate * grad * s.prev / scale, over="all"
    )
    size = sum(abs(s), over="all")
    d.next = max(now, where(size == 0, 0, progress / ((1 - beta3) * size)))

    numerator = m
    denominator = scale * where(lr > 0, lr, 1)
    decay = decoupled(weight_decay * now)
