from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sqrt


class LaProp(Optimizer):
    """The momentum of normalized gradients (Ziyin et al. 2020, arXiv 2002.04839, Alg. 1)."""

    lr = hyper(4e-4, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-15, ge=0)
    weight_decay = hyper(0.0, ge=0)

    v = ema(grad**2, beta2)
    m = ema(grad / (sqrt(v.corrected) + eps), beta1)
    update = m.corrected
    decay = decoupled(weight_decay)
