from signconv.dsl import Optimizer, grad, hyper, l2, sqrt, state, t


class Adagrad(Optimizer):
    """The gradient over the root of the sum of its squares (Duchi et al. 2011), as torch.optim's.

    lr falls as 1 / (1 + (t - 1) * lr_decay).  The sum only grows, so it is kept in fp32: in few
    bits most steps would leave it as it is.
    """

    lr = hyper(1e-2, ge=0)
    lr_decay = hyper(0.0, ge=0)
    eps = hyper(1e-10, ge=0)
    weight_decay = hyper(0.0, ge=0)

    v = state(0, store="fp32")
    v.next = v.prev + grad**2
    numerator = grad / (1 + (t - 1) * lr_decay)
    denominator = sqrt(v) + eps
    decay = l2(weight_decay)
