from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sqrt, state, t


class NAdam(Optimizer):
    """Adam with Nesterov momentum in the numerator (Dozat 2016), as torch.optim.NAdam.

    mu, the momentum schedule, enters the bias correction as its running product.
    """

    lr = hyper(2e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)
    momentum_decay = hyper(4e-3, ge=0)

    mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
    mu_product = state(init=1)
    mu_product.next = mu_product.prev * mu
    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = mu_next * m / (1 - mu_product * mu_next) + (1 - mu) * grad / (1 - mu_product)
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay)
