from signconv.dsl import Optimizer, abs, decoupled, ema, grad, hyper, max_ema


class AdaMax(Optimizer):
    """Adam with the infinity norm (Kingma & Ba 2015, Alg. 2), decoupled weight decay.

    eps is added to u, as in arXiv 2604.15416, Alg. 7; torch.optim.Adamax puts it inside the max.
    """

    lr = hyper(2e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    u = max_ema(abs(grad), beta2)
    numerator = m.corrected
    denominator = u + eps
    decay = decoupled(weight_decay)
