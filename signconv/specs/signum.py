from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sign


class Signum(Optimizer):
    """The sign of the momentum, m1 = g1 (practical SignSGD, arXiv 2604.15416, Alg. 5)."""

    lr = hyper(1e-4, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum, init="first")
    update = sign(m)
    decay = decoupled(weight_decay)
