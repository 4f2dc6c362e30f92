"""Optimizers that are given more than gradients: a diagonal of the Hessian, or the loss."""

from typing import Any

from signconv.dsl import (
    Optimizer,
    abs,
    decoupled,
    ema,
    exp,
    extra,
    given,
    grad,
    hyper,
    log,
    max,
    min,
    ndim,
    norm,
    sign,
    sqrt,
    state,
    t,
    tanh,
    where,
)


class AdaHessian(Optimizer):
    """Adam with the Hessian's diagonal for its denominator (Yao et al. 2020, arXiv 2006.00719).

    What is passed is squared and averaged as it is: an average over a kernel's elements, which the
    paper takes, is taken of the estimate.
    """

    lr = hyper(1e-1, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    hessian_power = hyper(1.0, gt=0, le=1)
    eps = hyper(1e-16, ge=0)
    weight_decay = hyper(0.0, ge=0)

    hessian = extra(per="element")
    m = ema(grad, beta1)
    h = state()
    h.next = where(given(hessian), beta2 * h.prev + (1 - beta2) * hessian**2, h.prev)
    numerator = m.corrected
    denominator = exp(hessian_power / 2 * log(h / (1 - beta2**t))) + eps
    decay = decoupled(weight_decay)


class AliG(Optimizer):
    """A Polyak step with a cap, momentum after the step (Berrada et al. 2019, arXiv 1906.05661).

    lr is the cap.
    """

    lr = hyper(0.1, gt=0)
    momentum = hyper(0.0, ge=0, lt=1)

    loss = extra(per="step", ge=0)
    step = min(loss / (norm(grad, over="all") ** 2 + 1e-6), lr)
    velocity = state()
    velocity.next = momentum * velocity.prev - step * grad
    update = (step * grad - momentum * velocity) / lr


def emotion(short: Any, medium: Any, long: Any) -> Any:
    """How much of a step to take, from a short, a medium and a long average of the loss.

    ``trend`` says how far the loss has fallen of late, from -1 to 1: a step is longer where that is
    middling, and little is left of it where that is much. The two products of ``nearer`` are one
    number but for their rounding, which decides in the collection's class too.
    """
    change = long - short
    by_long, by_medium = change / max(long, 1e-5), change / max(medium, 1e-5)
    nearer = abs(by_medium) * max(medium, 1e-5) < abs(by_long) * max(long, 1e-5)
    trend = tanh(where(abs(by_long) < 0.05, by_long, where(nearer, by_medium, by_long)))
    size = abs(trend)
    trust = where(trend < 0, size - 1, 1 - size)
    middle = where(size > 0.25, where(size < 0.5, 8 * abs(trust) * (1 + 0.1 * trust), 1), 1)
    return where(size > 0.75, 1 - size, middle)


class EmoNavi(Optimizer):
    """Adam without corrections, its steps driven by how the loss moves (github.com/muooon/EmoNavi).

    A short, a medium and a long average of the loss say whether it falls.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(1e-2, ge=0)

    loss = extra(per="step")
    short, medium, long = state(), state(), state()
    short.next = 0.3 * loss + 0.7 * where(t == 1, loss, short.prev)
    medium.next = 0.05 * loss + 0.95 * where(t == 1, loss, medium.prev)
    long.next = 0.01 * loss + 0.99 * where(t == 1, loss, long.prev)
    drive = emotion(short, medium, long)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = drive * m
    denominator = sqrt(v) + eps
    decay = decoupled(weight_decay)


class EmoLynx(Optimizer):
    """Lion, its steps driven by how the loss moves, as EmoNavi's (github.com/muooon/EmoNavi)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    weight_decay = hyper(1e-2, ge=0)

    loss = extra(per="step")
    short, medium, long = state(), state(), state()
    short.next = 0.3 * loss + 0.7 * where(t == 1, loss, short.prev)
    medium.next = 0.05 * loss + 0.95 * where(t == 1, loss, medium.prev)
    long.next = 0.01 * loss + 0.99 * where(t == 1, loss, long.prev)
    drive = emotion(short, medium, long)

    m = ema(grad, beta2)
    update = drive * sign(beta1 * m.prev + (1 - beta1) * grad)
    decay = decoupled(weight_decay)


class EmoFact(Optimizer):
    """Signs of matrices' gradients and of vectors' momentum, driven as EmoNavi's steps are
    (github.com/muooon/EmoNavi).

    The collection divides them by positive second moments, by rows and columns or by elements, and
    takes the sign of that, which is the sign of what it divides.
    """

    lr = hyper(1e-3, ge=0)
    beta = hyper(0.9, ge=0, lt=1)
    weight_decay = hyper(1e-2, ge=0)

    loss = extra(per="step")
    short, medium, long = state(), state(), state()
    short.next = 0.3 * loss + 0.7 * where(t == 1, loss, short.prev)
    medium.next = 0.05 * loss + 0.95 * where(t == 1, loss, medium.prev)
    long.next = 0.01 * loss + 0.99 * where(t == 1, loss, long.prev)
    drive = emotion(short, medium, long)

    m = ema(grad, beta)
    update = drive * sign(where(ndim >= 2, grad, m))
    decay = decoupled(weight_decay)
