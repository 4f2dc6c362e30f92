from signconv.dsl import Optimizer, abs, decoupled, ema, grad, hyper, max_ema, stochastic_sign


class StoSignSGD(Optimizer):
    """StoSignSGD, practical form (arXiv 2604.15416, Alg. 3): an unbiased sign of the momentum.

    G is the running maximum of abs(m), so abs(m) <= G always.  beta2 < 1 lets G decay, which is
    StoSignSGDv2 as far as the sources allow to recover it (its Alg. 11 is not in them; a value
    of 0.99995 is reported by a third party).
    """

    lr = hyper(2e-4, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    beta2 = hyper(1.0, ge=0, le=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum, init="first")
    G = max_ema(abs(m), beta2)
    update = stochastic_sign(m, G)
    decay = decoupled(weight_decay)
