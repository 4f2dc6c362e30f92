"""Specs that only tests use: right-hand sides of identities, and bounds no built-in has.

Named ``tests.support.own_specs:PlainSGD`` wherever a SPEC is asked for.
"""

from signconv.dsl import (
    Optimizer,
    abs,
    decoupled,
    ema,
    grad,
    hyper,
    max_ema,
    root,
    sqrt,
    state,
    stochastic_sign,
    t,
    where,
)


class PlainSGD(Optimizer):
    """SGD without momentum."""

    lr = hyper(1e-3, ge=0)
    weight_decay = hyper(0.0, ge=0)
    numerator = grad
    decay = decoupled(weight_decay)


class MomentumFromZero(Optimizer):
    """Momentum SGD whose EMA starts from zero."""

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)
    m = ema(grad, momentum)
    numerator = m
    decay = decoupled(weight_decay)


class LookAhead(Optimizer):
    """Momentum from zero, read ahead with a weight of its own: what Lion reads
    (docs/design.md#identities)."""

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.99, ge=0, lt=1)
    a = hyper(0.9, ge=0, le=1)
    weight_decay = hyper(0.0, ge=0)
    m = ema(grad, momentum)
    numerator = a * m + (1 - a) * grad
    decay = decoupled(weight_decay)


class OnlineStoSignSGD(Optimizer):
    """A12 without projection; beta2 < 1 lets G decay."""

    lr = hyper(1e-3, ge=0)
    beta2 = hyper(1.0, ge=0, le=1)
    weight_decay = hyper(0.0, ge=0)
    G = max_ema(abs(grad), beta2)
    update = stochastic_sign(grad, G)
    decay = decoupled(weight_decay)


class SignAdamW(Optimizer):
    """A15 of AdamW: arXiv 2604.15416, Alg. 8."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)
    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    update = stochastic_sign(m.corrected, sqrt(v.corrected) + eps)
    decay = decoupled(weight_decay)


class SignAdaMax(Optimizer):
    """A15 of AdaMax: arXiv 2604.15416, Alg. 9."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)
    m = ema(grad, beta1)
    u = max_ema(abs(grad), beta2)
    update = stochastic_sign(m.corrected, u + eps)
    decay = decoupled(weight_decay)


class SignRMSprop(Optimizer):
    """A15 of RMSprop, eps gone as the pass drops it."""

    lr = hyper(1e-3, ge=0)
    alpha = hyper(0.99, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)
    v = ema(grad**2, alpha)
    update = stochastic_sign(grad, sqrt(v))
    decay = decoupled(weight_decay)


class AdamOneBeta(Optimizer):
    """Adam with beta1 = beta2, no bias correction, eps = 0."""

    lr = hyper(1e-3, ge=0)
    beta = hyper(0.95, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)
    m = ema(grad, beta)
    v = ema(grad**2, beta)
    numerator = m
    denominator = sqrt(v)
    decay = decoupled(weight_decay)


class AdanNumerator(Optimizer):
    """Adan's m + beta*d with one beta, uncorrected, g_0 = 0."""

    lr = hyper(1e-3, ge=0)
    beta = hyper(0.9, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)
    g_prev = state(init=0)
    g_prev.next = grad
    m = ema(grad, beta)
    d = ema(grad - g_prev.prev, beta)
    numerator = m + beta * d
    decay = decoupled(weight_decay)


class AdanOwnStart(Optimizer):
    """The same with Adan's own g_0 = g_1."""

    lr = hyper(1e-3, ge=0)
    beta = hyper(0.9, ge=0, lt=1)
    g_prev = state(init=0)
    g_prev.next = grad
    m = ema(grad, beta)
    d = ema(where(t == 1, 0, 1) * (grad - g_prev.prev), beta)
    numerator = m + beta * d


class SimpleNAdam(Optimizer):
    """A7's simple form: NAdam with constant momentum."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = beta1 * m / (1 - beta1 * beta1**t) + (1 - beta1) * grad / (1 - beta1**t)
    denominator = sqrt(v.corrected) + eps


class S3Order2(Optimizer):
    """A10 with p = 2."""

    lr = hyper(1e-3, ge=0)
    beta = hyper(0.95, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)
    m = ema(grad, beta)
    s = ema(grad**2, beta)
    numerator = beta * m + (1 - beta) * grad
    denominator = sqrt(beta * s + (1 - beta) * grad**2)
    decay = decoupled(weight_decay)


class HeavyBallRatio(Optimizer):
    """A momentum that is no average, as a recurrence of the language, over a root mean square."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    m = state(init=0)
    m.next = beta1 * m.prev + grad
    v = ema(grad**2, beta2)
    numerator = m
    denominator = sqrt(v) + eps


class TwoBetas1(Optimizer):
    """C2 with two betas, order 1."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    m = ema(grad, beta1)
    s = ema(abs(grad), beta2)
    numerator = beta1 * m + (1 - beta1) * grad
    denominator = beta2 * s + (1 - beta2) * abs(grad)


class TwoBetasThreeHalves(Optimizer):
    """C2 with two betas, order 3/2."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    power = abs(grad) * sqrt(abs(grad))
    m = ema(grad, beta1)
    s = ema(power, beta2)
    numerator = beta1 * m + (1 - beta1) * grad
    denominator = root(beta2 * s + (1 - beta2) * power, 1.5)


class TwoBetas2(Optimizer):
    """C2 with two betas, order 2."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    m = ema(grad, beta1)
    s = ema(grad**2, beta2)
    numerator = beta1 * m + (1 - beta1) * grad
    denominator = sqrt(beta2 * s + (1 - beta2) * grad**2)


class TwoBetas3(Optimizer):
    """C2 with two betas, order 3."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    m = ema(grad, beta1)
    s = ema(abs(grad) ** 3, beta2)
    numerator = beta1 * m + (1 - beta1) * grad
    denominator = root(beta2 * s + (1 - beta2) * abs(grad) ** 3, 3)


class SmoothedOrder3(Optimizer):
    """C2 with two betas, order 3, without nesterov."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    m = ema(grad, beta1)
    s = ema(abs(grad) ** 3, beta2)
    numerator = m
    denominator = root(s, 3)
