from signconv.dsl import Optimizer, ema, grad, hyper, mean, param, sqrt, state


class Amos(Optimizer):
    """Amos (Tian & Parikh 2022, arXiv 2210.11693, Alg. 1), without momentum, eta = 1.

    The decay of every element follows from the mean square of the gradient; b is kept for every
    element, all of them equal.
    """

    lr = hyper(1e-2, ge=0)
    beta = hyper(0.999, ge=0, lt=1)
    c = hyper(0.25, gt=0)

    square = mean(grad**2)
    v = ema(square + 0 * grad, beta)
    b = state()
    rate = 1 / sqrt(1 + 0.25 * sqrt(c) * b.prev)
    shrink = rate**2 * square / (v.corrected + 1e-18)
    b.next = b.prev + shrink * (1 + b.prev) * 0.01
    update = rate * grad / sqrt(v.corrected + 1e-18) + 0.5 * shrink * param
