from signconv.dsl import Optimizer, abs, decoupled, ema, grad, hyper, moment, root


class S3(Optimizer):
    """SoftSignSGD, S3 (arXiv 2507.06464, Alg. 1) with p = 3: one beta, Nesterov, no eps.

    abs(update) <= 1 for every gradient sequence.  No bias correction: the zero start is a built-in
    warm-up.  Other orders: signconv build adamw --convert soft:p=2,nesterov.
    """

    lr = hyper(3e-3, ge=0)
    beta = hyper(0.95, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta)
    s = moment(grad, order=3, beta=beta)
    numerator = beta * m + (1 - beta) * grad
    denominator = root(beta * s + (1 - beta) * abs(grad) ** 3, 3)
    decay = decoupled(weight_decay)
