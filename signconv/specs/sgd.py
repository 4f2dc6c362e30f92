from signconv.dsl import Optimizer, decoupled, ema, grad, hyper


class SGD(Optimizer):
    """Momentum SGD in EMA form, m1 = g1 (StoSignSGD paper, arXiv 2604.15416, the base of Alg. 5).

    Equals torch.optim.SGD with dampening = momentum.
    """

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum, init="first")
    numerator = m
    decay = decoupled(weight_decay)
