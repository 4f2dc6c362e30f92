"""Optimizers whose steps depend on all tensors together, other than by a distance."""

from signconv.dsl import (
    Optimizer,
    abs,
    clip,
    decoupled,
    ema,
    exp,
    grad,
    hyper,
    l2,
    log,
    max,
    mean,
    min,
    norm,
    param,
    sqrt,
    state,
    sum,
    t,
    where,
)


class Adai(Optimizer):
    """Momentum of its own for each element, from its second moment over the mean of all (Xie et al.
    2022, arXiv 2006.15815), with a dampening, l2 decay."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.1, gt=0), hyper(0.99, ge=0, lt=1)
    dampening = hyper(1.0, ge=0, le=1)
    eps = hyper(1e-3, gt=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    v = ema(grad**2, beta2)
    usual = max(mean(v.corrected, over="all"), eps)
    power = 1 / (3 - 2 * dampening)
    keep = clip(1 - beta1 * exp(power * log(v.corrected / usual)), 0, 1 - eps)
    kept = state(1)
    kept.next = kept.prev * keep
    m = state()
    m.next = keep * m.prev + exp(dampening * log(1 - keep)) * grad
    update = m / (1 - kept) * exp((1 - dampening) * log(beta1))
    decay = l2(weight_decay)


class AdamS(Optimizer):
    """Adam whose weight decay is over the root of the mean of all second moments (Xie et al. 2023,
    arXiv 2011.11152)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(1e-4, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = m.corrected
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay / (sqrt(mean(v.corrected, over="all")) + eps))


class AvaGrad(Optimizer):
    """Adam by the second moment of the step before, on a scale that all step sizes share
    (Savarese et al. 2019, arXiv 1912.01823). There is no first step, nor a scale for it.

    Each scale is that of the step before, and is made of the moment before it, corrected as this
    one would be.
    """

    lr = hyper(1e-1, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-1, gt=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    gamma = state(0)
    size = sqrt(v.prev) / sqrt(1 - beta2**t) + eps
    gamma.next = 1 / sqrt(mean(1 / size**2, over="all"))
    before = where(t > 1, 1 - beta2 ** (t - 1), 1)
    numerator = where(t > 1, gamma.prev * m.corrected, 0)
    denominator = sqrt(v.prev) / sqrt(before) + eps
    decay = decoupled(weight_decay)


class ASGD(Optimizer):
    """SGD whose learning rate is at most the change of the weights' norm over that of the
    gradients', and grows where that does not say less (after Malitsky & Mishchenko 2020, arXiv
    1910.09529, which has norms of changes). lr is where it starts."""

    lr = hyper(1e-2, gt=0)
    amplifier, theta, dampening = hyper(0.02, ge=0), hyper(1.0, gt=0), hyper(1.0, gt=0)
    eps = hyper(1e-5, ge=0)
    weight_decay = hyper(0.0, ge=0)

    rate, ratio = state(0), state(0)
    weights, gradients = norm(param, over="all"), norm(grad, over="all")
    last_weights, last_gradients = state(0), state(0)
    last_weights.next, last_gradients.next = weights, gradients
    change = where(rate.prev > 0, weights - last_weights.prev, 0)
    change_of_gradients = where(rate.prev > 0, gradients - last_gradients.prev, 0)
    before = where(rate.prev > 0, rate.prev, lr)
    grown = before * sqrt(1 + amplifier * where(rate.prev > 0, ratio.prev, theta))
    smooth = min(grown, change / (dampening * change_of_gradients)) + eps
    rate.next = where(change > 0, where(change_of_gradients > 0, smooth, grown), grown)
    ratio.next = rate / before
    update = rate / lr * grad
    decay = decoupled(weight_decay * rate / lr)


class SWATS(Optimizer):
    """Adam until the learning rate of SGD that would go as far settles for a tensor, then SGD with
    it for all (Keskar & Socher 2017, arXiv 1712.07628, Alg. 1), l2 decay.

    Where several tensors are ready in one step, it is the mean of theirs: the collection takes
    that of the last.
    """

    lr = hyper(1e-3, gt=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-6, gt=0)
    weight_decay = hyper(0.0, ge=0)

    rate = state(0)
    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    adam = m.corrected * sqrt(1 - beta2**t) / (sqrt(v + 1e-15) + eps)
    average = state(0)
    product = sum(adam * grad)
    scaling = where(product == 0, 0, lr * sum(adam**2) / product)
    mixed = beta2 * average.prev + (1 - beta2) * scaling
    now = where(product == 0, average.prev, mixed)
    average.next = now
    corrected = now / (1 - beta2**t)
    near = where(abs(corrected - scaling) <= 1e-8 + eps * abs(scaling), 1, 0)
    settled = where(t > 1, where(product == 0, 0, where(corrected > 0, near, 0)), 0)
    elements = sum(where(grad > 0, 1, 1))
    tensors = sum(settled / elements, over="all")
    found = sum(corrected * settled / elements, over="all")
    rate.next = where(rate.prev > 0, rate.prev, where(tensors > 0, found / tensors, 0))

    buffer = state()
    buffer.next = where(rate.prev > 0, beta1 * buffer.prev + grad, 0)
    update = where(rate.prev > 0, rate.prev / lr * (1 - beta1) * buffer, adam)
    decay = l2(weight_decay)
