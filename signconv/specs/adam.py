from signconv.dsl import Optimizer, ema, grad, hyper, l2, sqrt


class Adam(Optimizer):
    """Adam with bias correction (Kingma & Ba 2015, arXiv 1412.6980, Alg. 1), l2 weight decay."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = m.corrected
    denominator = sqrt(v.corrected) + eps
    decay = l2(weight_decay)
