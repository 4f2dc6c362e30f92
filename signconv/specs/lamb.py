from signconv.dsl import Optimizer, ema, grad, hyper, norm, param, sqrt, where


class LAMB(Optimizer):
    """Layerwise adaptive moments (You et al. 2020, arXiv 1904.00962, Alg. 2), phi(z) = z.

    The trust ratio norm(p) / norm(u) is taken per tensor, and is 1 where either norm is 0.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-6, ge=0)
    weight_decay = hyper(1e-2, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    u = m.corrected / (sqrt(v.corrected) + eps) + weight_decay * param
    ratio = where(norm(u) > 0, norm(param) / norm(u), 1)
    trust = where(norm(param) > 0, ratio, 1)
    update = trust * u
