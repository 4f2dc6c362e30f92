from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sqrt


class AdaBelief(Optimizer):
    """AdaBelief: the second moment of g - m (Zhuang et al. 2020, arXiv 2010.07468, Alg. 2).

    eps stands outside the root only; the paper also adds it to v at every step.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(1e-2, ge=0)

    m = ema(grad, beta1)
    v = ema((grad - m) ** 2, beta2)
    numerator = m.corrected
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay)
