from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sign


class Lion(Optimizer):
    """Lion, evolved sign momentum (Chen et al. 2023, arXiv 2302.06675, Alg. 2)."""

    lr = hyper(1e-4, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta2)
    c = beta1 * m.prev + (1 - beta1) * grad
    update = sign(c)
    decay = decoupled(weight_decay)
