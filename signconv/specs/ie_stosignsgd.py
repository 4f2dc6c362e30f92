from signconv.dsl import Optimizer, abs, decoupled, ema, grad, hyper, max_ema


class IEStoSignSGD(Optimizer):
    """IE-StoSignSGD (arXiv 2604.15416, Alg. 10): the mean of StoSignSGD's sign, without its noise.

    Since abs(m) <= G, the mean of sign(m + G*n) over n in [-1, 1] is m / G: nothing is clipped.
    The sources have Alg. 10 down to its second line; G is that of StoSignSGD, as its beta2 of up
    to 1 says.  beta2 = 1 never forgets; the default is StoSignSGD's here.
    """

    lr = hyper(2e-4, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    beta2 = hyper(0.99, ge=0, le=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum, init="first")
    G = max_ema(abs(m), beta2)
    numerator = m
    denominator = G
    decay = decoupled(weight_decay)
