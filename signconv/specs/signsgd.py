from signconv.dsl import Optimizer, decoupled, grad, hyper, sign


class SignSGD(Optimizer):
    """The sign of the gradient (Bernstein et al. 2018, arXiv 1802.04434, Alg. 1)."""

    lr = hyper(1e-4, ge=0)
    weight_decay = hyper(0.0, ge=0)

    update = sign(grad)
    decay = decoupled(weight_decay)
