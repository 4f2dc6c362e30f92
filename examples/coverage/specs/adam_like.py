"""Adam with another moment, denominator or correction, as the collection computes them.

It adds 1e-15 below most roots: where nothing but its rounding error depends on that, the specs
leave it out, and the gradients of the comparison are far above.
"""

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
    max_ema,
    min,
    norm,
    sign,
    sqrt,
    state,
    stepped,
    t,
    where,
)


class AdamG(Optimizer):
    """Golden step sizes, parameter-free (Pang et al. 2024, arXiv 2405.04376), l2 decay.

    The paper's p and q are called scale and power. Weight decay is the collection's.
    """

    lr = hyper(1.0, gt=0)
    beta1, beta2 = hyper(0.95, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    beta3 = hyper(0.95, ge=0, lt=1)
    scale, power = hyper(0.2, ge=0), hyper(0.24, gt=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    v = ema(grad**2, beta2)
    r = ema(scale * exp(power * log(v)), beta3)
    m = ema(r * grad, beta1)
    numerator = min(lr, 1 / sqrt(t)) / lr * m.corrected
    denominator = sqrt(v.corrected) + eps
    decay = l2(weight_decay)


class AdaMod(Optimizer):
    """Adam below a slow average of its step sizes (Ding et al. 2019, arXiv 1910.12249)."""

    lr = hyper(1e-3, gt=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    beta3 = hyper(0.9999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    size = lr * sqrt(1 - beta2**t) / (1 - beta1**t) / (sqrt(v) + eps)
    slow = ema(size, beta3)
    update = min(size, slow) * m / lr
    decay = decoupled(weight_decay)


class AdaBound(Optimizer):
    """Adam between bounds that close in on SGD (Luo et al. 2019, arXiv 1902.09843, Alg. 2).

    ``base_lr`` is the lr at construction: the bounds follow a schedule of lr, as the authors'
    code does.
    """

    lr = hyper(1e-3, gt=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    base_lr, final_lr, gamma = hyper(1e-3, gt=0), hyper(0.1, ge=0), hyper(1e-3, gt=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    end = final_lr * lr / base_lr
    size = lr * sqrt(1 - beta2**t) / (1 - beta1**t) / (sqrt(v) + eps)
    rate = clip(size, end * (1 - 1 / (gamma * t + 1)), end * (1 + 1 / (gamma * t)))
    update = rate * m / lr
    decay = decoupled(weight_decay)


class AdaMax(Optimizer):
    """Adam with the infinity norm (Kingma & Ba 2015, arXiv 1412.6980, Alg. 2), l2 decay; eps is
    added to each gradient's size before the maximum, as torch.optim does."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    u = max_ema(abs(grad) + eps, beta2)
    numerator = m.corrected
    denominator = u
    decay = l2(weight_decay)


class AdaBelief(Optimizer):
    """The second moment of g - m (Zhuang et al. 2020, arXiv 2010.07468, Alg. 2), eps added to it
    in every step and kept, as there."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-16, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    s = state()
    s.next = beta2 * s.prev + (1 - beta2) * (grad - m) ** 2 + eps
    numerator = m.corrected
    denominator = sqrt(s) / sqrt(1 - beta2**t) + eps
    decay = decoupled(weight_decay)


class AdaNorm(Optimizer):
    """AdamW on gradients no shorter than usual (Dubey et al. 2022, arXiv 2210.06364)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    r = hyper(0.95, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    size = norm(grad)
    usual = ema(size, r)
    lengthened = where(size > 0, where(usual > size, grad * usual / size, grad), grad)
    m = ema(lengthened, beta1)
    v = ema(grad**2, beta2)
    numerator = m.corrected
    denominator = (sqrt(v) + eps) / sqrt(1 - beta2**t)
    decay = decoupled(weight_decay)


class AdaPNM(Optimizer):
    """Positive-negative momentum in AMSGrad (Xie et al. 2021, arXiv 2103.17182)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    beta3 = hyper(1.0, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    odd = t % 2 == 1
    slow = beta1**2
    first, second = state(), state()
    first.next = where(odd, slow * first.prev + (1 - slow) * grad, first.prev)
    second.next = where(odd, second.prev, slow * second.prev + (1 - slow) * grad)
    now, before = where(odd, first, second), where(odd, second, first)
    mixed = ((1 + beta3) * now - beta3 * before) / sqrt((1 + beta3) ** 2 + beta3**2)
    v = ema(grad**2, beta2)
    largest = max_ema(v)
    numerator = mixed / (1 - beta1**t)
    denominator = (sqrt(largest) + eps) / sqrt(1 - beta2**t)
    decay = decoupled(weight_decay)


class AdamC(Optimizer):
    """AdamW whose decay falls as lr squared (Defazio 2025, arXiv 2506.02285), for layers
    that a normalization follows; ``max_lr`` is the largest lr of the schedule."""

    lr = hyper(1e-3, ge=0)
    max_lr = hyper(1e-3, gt=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = m.corrected
    denominator = (sqrt(v) + eps) / sqrt(1 - beta2**t)
    decay = decoupled(weight_decay * lr / max_lr)


class SimplifiedAdEMAMix(Optimizer):
    """One momentum and the gradient itself (Morwani et al. 2025, arXiv 2502.02431).

    The collection keeps the paper's sum of gradients as an EMA, so lr means 1 - beta1 as much.
    """

    lr = hyper(1e-4, ge=0)
    beta1, beta2 = hyper(0.99, ge=0, lt=1), hyper(0.95, ge=0, lt=1)
    alpha = hyper(0.0, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    weights = sqrt(1 - beta2**t)
    numerator = m + alpha * grad
    denominator = (sqrt(v) + weights * eps) * weights
    decay = decoupled(weight_decay)


class Ano(Optimizer):
    """The gradient's size, the momentum's sign (Kegreisz 2025, arXiv 2508.18258)."""

    lr = hyper(1e-4, ge=0)
    beta1, beta2 = hyper(0.92, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = state()
    v.next = beta2 * v.prev + (1 - beta2) * sign(grad**2 - v.prev) * grad**2
    numerator = abs(grad) * sign(m)
    denominator = sqrt(v / (1 - beta2**t)) + eps
    decay = decoupled(weight_decay)


class BCOS(Optimizer):
    """Block-coordinate optimal steps with a conditional second moment (Jiang & Xiao 2025,
    arXiv 2507.08963: BCOS-c)."""

    lr = hyper(1e-3, ge=0)
    beta = hyper(0.9, ge=0, lt=1)
    eps = hyper(1e-6, ge=0)
    weight_decay = hyper(0.1, ge=0)

    m = ema(grad, beta, init="first")
    kept = (3 * beta**2 - 2 * beta**3) * m**2
    v = kept + (1 - beta) ** 2 * grad**2 + 2 * beta * (1 - beta) ** 2 * m * grad
    numerator = m
    denominator = sqrt(v) + eps
    decay = decoupled(weight_decay)


class DiffGrad(Optimizer):
    """Adam with friction where the gradient changes little (Dubey et al. 2019, arXiv
    1909.11015); the root is corrected after eps is added."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    last = state()
    last.next = grad
    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    friction = 1 / (1 + exp(-abs(last.prev - grad)))
    numerator = friction * m.corrected
    denominator = (sqrt(v) + eps) / sqrt(1 - beta2**t)
    decay = decoupled(weight_decay)


class DualAdam(Optimizer):
    """Adam's inverse, handed over to Adam (arXiv 2603.07122), l2 decay."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    switch_rate = hyper(0.01, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    inverse = max(0, 1 - t * switch_rate)
    share = where(inverse >= switch_rate, inverse, 0)
    size = sqrt(v.corrected) + eps
    update = m.corrected * (share * size + (1 - share) / size)
    decay = l2(weight_decay)


class EXAdam(Optimizer):
    """Moments that correct each other (Adly 2024, arXiv 2412.20302)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    d1 = 1 + v / (v + eps) * beta2**t
    d2 = 1 + m**2 / (m**2 + eps) * beta1**t
    numerator = (m + grad) / (1 - beta1**t) * d1
    denominator = sqrt(d2 * v.corrected) + eps
    decay = decoupled(weight_decay)


class GrokFastAdamW(Optimizer):
    """AdamW on gradients whose slow part is amplified (Lee et al. 2024, arXiv 2405.20233).

    eps is the least the root may be.
    """

    lr = hyper(1e-4, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    grokfast_alpha, grokfast_lamb = hyper(0.98, ge=0, lt=1), hyper(2.0, ge=0)
    grokfast_after_step = hyper(0, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    on = t > grokfast_after_step
    slow = state()
    start = where(t == 1, grad, slow.prev)
    slow.next = where(on, grokfast_alpha * start + (1 - grokfast_alpha) * grad, start)
    amplified = where(on, grad + grokfast_lamb * slow, grad)
    m = ema(amplified, beta1)
    v = ema(amplified**2, beta2)
    numerator = m.corrected
    denominator = max(sqrt(v.corrected), eps)
    decay = decoupled(weight_decay)


class PAdam(Optimizer):
    """Adam with a denominator to the power 2 * partial (Chen et al. 2018, arXiv 1806.06763,
    Alg. 1 without AMSGrad), l2 decay."""

    lr = hyper(0.1, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    partial = hyper(0.25, gt=0)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = sqrt(1 - beta2**t) * m.corrected
    denominator = exp(2 * partial * log(sqrt(v) + eps))
    decay = l2(weight_decay)


class QHAdam(Optimizer):
    """Quasi-hyperbolic Adam (Ma & Yarats 2019, arXiv 1810.06801), l2 decay."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    nu1, nu2 = hyper(1.0, ge=0), hyper(1.0, ge=0, le=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = nu1 * m.corrected + (1 - nu1) * grad
    denominator = sqrt(nu2 * v.corrected + (1 - nu2) * grad**2) + eps
    decay = l2(weight_decay)


class Grams(Optimizer):
    """Sign of the gradient, size of Adam's update (Cao et al. 2024, arXiv 2412.17107)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-6, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = sign(grad) * abs(m.corrected)
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay)


class LaProp(Optimizer):
    """The momentum of normalized gradients (Ziyin et al. 2020, arXiv 2002.04839, Alg. 1).

    lr stands inside the average, as in the authors' code, and weights are decayed after the step.
    """

    lr = hyper(4e-4, gt=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-15, ge=0)
    weight_decay = hyper(0.0, ge=0)

    v = ema(grad**2, beta2)
    m = ema(lr * grad * sqrt(1 - beta2**t) / (sqrt(v) + eps), beta1)
    usual_lr = state()
    usual_lr.next = beta1 * usual_lr.prev + (1 - beta1) * lr
    update = m / usual_lr
    new_param = stepped * (1 - lr * weight_decay)
