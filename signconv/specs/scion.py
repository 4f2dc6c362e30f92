from signconv.dsl import Optimizer, columns, decoupled, ema, grad, hyper, msign, rows, sqrt


class Scion(Optimizer):
    """Steps to the corner of a ball in the spectral norm (Pethick et al. 2025, arXiv 2502.07529,
    Alg. 1 and 2, with Table 2's norm of hidden layers).

    weight_decay = 1 is the constrained form, whose weights stay near the ball of this radius once
    they are in it (1.2 of it, which the quintic reaches) and lr <= 1.
    """

    lr = hyper(2.0**-12, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    radius = hyper(50.0, gt=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum)
    update = radius * sqrt(rows / columns) * msign(m)
    decay = decoupled(weight_decay)
