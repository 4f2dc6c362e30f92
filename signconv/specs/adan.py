from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sqrt, state, t, where


class Adan(Optimizer):
    """Adaptive Nesterov momentum (Xie et al. 2022, arXiv 2208.06677, Alg. 1).

    betas weigh the OLD term here, as in the public reference implementation; the paper's are 1
    minus these.  Weight decay is decoupled (the reference's no_prox option).
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.98, ge=0, lt=1), hyper(0.92, ge=0, lt=1)
    beta3 = hyper(0.99, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    g_prev = state(init=0)
    g_prev.next = grad
    later = where(t == 1, 0, 1)
    change = later * (grad - g_prev.prev)
    m = ema(grad, beta1)
    d = ema(change, beta2)
    n = ema((grad + beta2 * change) ** 2, beta3)
    numerator = m.corrected + beta2 * d.corrected
    denominator = sqrt(n.corrected) + eps
    decay = decoupled(weight_decay)
