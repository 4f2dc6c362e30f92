from signconv.dsl import Optimizer, ema, grad, hyper, max, t, where


class MSVAG(Optimizer):
    """M-SVAG (Balles & Hennig 2018, arXiv 1705.07774, Alg. 2): m times what its variance leaves.

    The variance v - m**2 is a difference of near numbers while a gradient repeats.
    """

    lr = hyper(1e-2, ge=0)
    beta = hyper(0.9, gt=0, lt=1)

    m = ema(grad, beta)
    v = ema(grad**2, beta)
    first = m.corrected
    rho = (1 - beta) * (1 + beta**t) / ((1 + beta) * (1 - beta**t))
    spread = max(v.corrected - first**2, 0) * rho / where(t > 1, 1 - rho, 1)
    update = first * first**2 / (first**2 + spread + 1e-30)
