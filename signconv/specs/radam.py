from signconv.dsl import Optimizer, ema, grad, hyper, l2, max, sqrt, t, where


class RAdam(Optimizer):
    """Adam that waits for its second moment (Liu et al. 2020, arXiv 1908.03265, Alg. 2).

    rho is the length of v's average; up to 5 the update is the momentum alone.  eps as in
    torch.optim.RAdam: beside the root of v before its bias correction.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    longest = 2 / (1 - beta2) - 1
    rho = longest - 2 * t * beta2**t / (1 - beta2**t)
    long = max(rho, 5)
    ends = max(longest, 5)
    variance = (long - 4) * (long - 2) * ends / ((ends - 4) * (ends - 2) * long)
    numerator = m.corrected * where(rho > 5, sqrt(variance), 1)
    denominator = where(rho > 5, (sqrt(v) + eps) / sqrt(1 - beta2**t), 1)
    decay = l2(weight_decay)
