from signconv.dsl import Optimizer, clip, ema, grad, hyper, mean, state


class Adai(Optimizer):
    """Adai (Xie et al. 2022, arXiv 2006.15815, Alg. 2): the inertia of each element adapts.

    1 - beta is small where v is far above its mean, and a product of all betas corrects the bias.
    """

    lr = hyper(1.0, ge=0)
    beta0 = hyper(0.1, ge=0)
    beta2 = hyper(0.99, ge=0, lt=1)
    eps = hyper(1e-3, ge=0, lt=1)

    v = ema(grad**2, beta2)
    hat = v.corrected
    inertia = clip(1 - beta0 * hat / mean(hat), 0, 1 - eps)
    left = state(init=1)
    left.next = left.prev * inertia
    m = state()
    m.next = inertia * m.prev + (1 - inertia) * grad
    update = m / (1 - left)
