from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, max, mean, sqrt, where


class CautiousAdamW(Optimizer):
    """AdamW without the elements whose update opposes the gradient (Liang et al. 2024).

    arXiv 2411.16085, Alg. 1: the rest is scaled up by the share that is left, at least 1e-3.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(1e-2, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    u = m.corrected / (sqrt(v.corrected) + eps)
    agrees = where(u * grad > 0, 1, 0)
    update = u * agrees / max(mean(agrees), 1e-3)
    decay = decoupled(weight_decay)
