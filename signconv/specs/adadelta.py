from signconv.dsl import Optimizer, ema, grad, hyper, l2, sqrt, state


class Adadelta(Optimizer):
    """Updates in the parameter's own units (Zeiler 2012, arXiv 1212.5701, Alg. 1)."""

    lr = hyper(1.0, ge=0)
    rho = hyper(0.9, ge=0, lt=1)
    eps = hyper(1e-6, gt=0)
    weight_decay = hyper(0.0, ge=0)

    v = ema(grad**2, rho)
    acc_delta = state(0)
    delta = sqrt(acc_delta.prev + eps) / sqrt(v + eps) * grad
    acc_delta.next = rho * acc_delta.prev + (1 - rho) * delta**2
    update = delta
    decay = l2(weight_decay)
