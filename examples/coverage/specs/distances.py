"""Optimizers that estimate the distance to the solution from sums over all tensors, as the
collection computes them: lr stays 1, or is a schedule with a peak of 1, and d grows from d0."""

from signconv.dsl import (
    Optimizer,
    abs,
    decoupled,
    ema,
    grad,
    hyper,
    l2,
    max,
    norm,
    param,
    sign,
    sqrt,
    state,
    sum,
    t,
    where,
)


class Prodigy(Optimizer):
    """Prodigy (Mishchenko & Defazio 2023, arXiv 2306.06101, Alg. 4), Adam's form, with eps times
    the distance that this step finds: Alg. 4 has the one before."""

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
    r = state(0)
    r.next = beta3 * r.prev + (1 - beta3) * sum(rate * grad * (start - param), over="all")
    size = sum(abs(s), over="all")
    d.next = max(now, where(size == 0, 0, d_coef * r / size))

    m = ema(now * grad, beta1)
    v = ema((now * grad) ** 2, beta2)
    numerator = now * m
    denominator = sqrt(v) + eps * d
    decay = decoupled(weight_decay * now)


class DAdaptAdam(Optimizer):
    """D-Adaptation, Adam's form (Defazio & Mishchenko 2023, arXiv 2301.07733, Alg. 5), whose
    distance is made of the second moment before this step: Alg. 5 has the new one."""

    lr = hyper(1.0, gt=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.0, ge=0)
    d0 = hyper(1e-6, gt=0)

    d = state(0)
    now = where(d.prev > 0, d.prev, d0)
    rate = lr * now
    beta3 = sqrt(beta2)
    s = ema(rate * grad, beta3)
    m = ema(rate * grad, beta1)
    v = ema(grad**2, beta2)
    product = sum(rate * grad * s.prev / (sqrt(v.prev) + eps), over="all")
    r = state(0)
    r.next = beta3 * r.prev + (1 - beta3) * product
    size = sum(abs(s), over="all")
    d.next = max(now, where(size == 0, 0, r / ((1 - beta3) * size)))

    numerator = m / lr
    denominator = sqrt(v) + eps
    decay = decoupled(weight_decay * now)


class DAdaptSGD(Optimizer):
    """D-Adaptation, SGD's form (Defazio & Mishchenko 2023, arXiv 2301.07733, Alg. 4), l2 decay.

    Steps are relative to the norm of the first gradients, without their decay.
    """

    lr = hyper(1.0, gt=0)
    momentum = hyper(0.9, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)
    d0 = hyper(1e-6, gt=0)

    d = state(0)
    now = where(d.prev > 0, d.prev, d0)
    first = state(0)
    first.next = where(first.prev > 0, first.prev, sqrt(sum(grad**2, over="all")))
    rate = lr * now / first
    start = state(param)
    start.next = start.prev
    decayed = grad + weight_decay * param
    s = state()
    s.next = s.prev + rate * decayed
    r = state(0)
    r.next = r.prev + sum(rate * decayed * s.prev, over="all")
    d.next = max(now, 2 * r / norm(s, over="all"))

    z = start - s
    update = (1 - momentum) * (param - z) / lr


class DAdaptAdaGrad(Optimizer):
    """D-Adaptation, AdaGrad's form (Defazio & Mishchenko 2023, arXiv 2301.07733, Alg. 3), with
    momentum and l2 decay. The sum of squares starts at 1e-6."""

    lr = hyper(1.0, gt=0)
    momentum = hyper(0.0, ge=0, lt=1)
    eps = hyper(0.0, ge=0)
    weight_decay = hyper(0.0, ge=0)
    d0 = hyper(1e-6, gt=0)

    d = state(0)
    now = where(d.prev > 0, d.prev, d0)
    rate = lr * now
    start = state(param)
    start.next = start.prev
    s = state()
    s.next = s.prev + rate * grad
    squares = state(1e-6)
    squares.next = squares.prev + grad**2
    scale = sqrt(squares) + eps
    r = state(0)
    r.next = r.prev + rate**2 * sum(grad**2 / scale, over="all")
    size = sum(abs(s), over="all")
    d.next = max(now, where(size == 0, 0, (sum(s**2 / scale, over="all") - r) / size))

    z = start - s / scale
    update = (1 - momentum) * (param - z) / lr
    decay = l2(weight_decay)


class DAdaptAdan(Optimizer):
    """D-Adaptation (Defazio & Mishchenko 2023, arXiv 2301.07733) of Adan (Xie et al. 2022, arXiv
    2208.06677), as the collection has it: the second moment is of fourth powers."""

    lr = hyper(1.0, gt=0)
    beta1, beta2, beta3 = (
        hyper(0.98, ge=0, lt=1),
        hyper(0.92, ge=0, lt=1),
        hyper(0.99, gt=0, lt=1),
    )
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.0, ge=0)
    d0 = hyper(1e-6, gt=0)

    d = state(0)
    now = where(d.prev > 0, d.prev, d0)
    rate = lr * now
    last = state()
    last.next = grad
    change = where(t > 1, grad - last.prev, 0)
    m = ema(rate * grad, beta1)
    n = ema(rate * change, beta2)
    v = ema((grad + beta2 * change) ** 4, beta3)
    scale = sqrt(v) + eps
    s = ema(rate * grad, beta3)
    r = state(0)
    r.next = beta3 * r.prev + (1 - beta3) * rate**2 * sum(grad**2 / scale, over="all")
    size = sum(abs(s), over="all")
    weighted = sum(s**2 / scale, over="all") / (1 - beta3)
    d.next = max(now, where(size == 0, 0, (weighted - r) / size))

    numerator = (m + beta2 * n) / lr
    denominator = scale
    decay = decoupled(weight_decay * now)


class DAdaptLion(Optimizer):
    """D-Adaptation (Defazio & Mishchenko 2023, arXiv 2301.07733) of Lion (Chen et al. 2023, arXiv
    2302.06675), as the collection has it: the momentum grows with d, and the gradient beside it
    does not."""

    lr = hyper(1.0, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)
    d0 = hyper(1e-6, gt=0)

    d = state(0)
    now = where(d.prev > 0, d.prev, d0)
    rate = lr * now
    beta3 = sqrt(beta2)
    m = ema(rate * grad, beta2)
    side = sign(beta1 * m.prev + (1 - beta1) * grad)
    s = ema(rate * side, beta3)
    r = state(0)
    r.next = beta3 * r.prev + (1 - beta3) * sum(rate * side * s.prev, over="all")
    size = sum(abs(s), over="all")
    d.next = max(now, where(size == 0, 0, r / ((1 - beta3) * size)))

    update = now * side
    decay = decoupled(weight_decay * now)
