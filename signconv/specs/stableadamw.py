from signconv.dsl import Optimizer, ema, grad, hyper, max, mean, param, sqrt


class StableAdamW(Optimizer):
    """AdamW with AdaFactor's clipping (Wortsman et al. 2023, arXiv 2304.13013, Alg. 2).

    The step, decay included, shrinks where the root mean square of grad / sqrt(v), over the
    tensor, is above 1.  Their averages with betas that rise are the bias-corrected ones.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(1e-2, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    size = sqrt(mean(grad**2 / max(v.corrected, eps**2)))
    u = m.corrected / (sqrt(v.corrected) + eps) + weight_decay * param
    update = u / max(size, 1)
