from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sqrt


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012, lecture 6.5), no bias correction, decoupled weight decay."""

    lr = hyper(1e-2, ge=0)
    alpha = hyper(0.99, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    v = ema(grad**2, alpha)
    numerator = grad
    denominator = sqrt(v) + eps
    decay = decoupled(weight_decay)
