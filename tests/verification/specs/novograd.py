from signconv.dsl import Optimizer, ema, grad, hyper, norm, param, sqrt, state


class NovoGrad(Optimizer):
    """NovoGrad (Ginsburg et al. 2019, arXiv 1905.11286, Alg. 1): one second moment per tensor.

    It is kept for every element, all of them equal.
    """

    lr = hyper(1e-2, ge=0)
    beta1, beta2 = hyper(0.95, ge=0, lt=1), hyper(0.98, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(1e-3, ge=0)

    size = norm(grad)
    v = ema(size**2 + 0 * grad, beta2)
    m = state()
    m.next = beta1 * m.prev + (grad / (sqrt(v) + eps) + weight_decay * param)
    update = m
