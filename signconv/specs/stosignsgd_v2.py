from signconv.dsl import Optimizer, abs, decoupled, ema, grad, hyper, max_ema, stochastic_sign


class StoSignSGDv2(Optimizer):
    """StoSignSGDv2, a reconstruction: its algorithm (arXiv 2604.15416, Alg. 11) is not known here.

    The sources have the name alone, above FP8 loss curves (Figure 6).  A third party calls it a
    damped maximum and names 0.99995, and the box beside it takes a beta2 of up to 1: so StoSignSGD
    whose G forgets that slowly.
    """

    lr = hyper(2e-4, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    beta2 = hyper(0.99995, ge=0, le=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum, init="first")
    G = max_ema(abs(m), beta2)
    update = stochastic_sign(m, G)
    decay = decoupled(weight_decay)
