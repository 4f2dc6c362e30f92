from signconv.dsl import Optimizer, clip, decoupled, ema, grad, hyper, max, sqrt, t, where


class ADOPT(Optimizer):
    """Adam that converges for any beta2 (Taniguchi et al. 2024, arXiv 2411.02853, Alg. 2).

    Gradients are divided by the root of the second moment before they enter it, and clipped at
    (t - 1)**0.25.  The first step sets the second moment and moves nothing.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.9999, ge=0, lt=1)
    eps = hyper(1e-6, gt=0)
    weight_decay = hyper(0.0, ge=0)

    v = ema(grad**2, beta2, init="first")
    limit = (t - 1) ** 0.25
    scaled = clip(grad / max(sqrt(v.prev), eps), -limit, limit)
    m = ema(where(t > 1, scaled, 0), beta1)
    update = m
    decay = decoupled(where(t > 1, weight_decay, 0))
