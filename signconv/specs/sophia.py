from signconv.dsl import (
    Optimizer,
    clip,
    decoupled,
    ema,
    extra,
    given,
    grad,
    hyper,
    max,
    state,
    where,
)


class Sophia(Optimizer):
    """Momentum over a Hessian diagonal, clipped (Liu et al. 2023, arXiv 2305.14342, Alg. 3).

    step(hessian=...) takes an estimate of the diagonal every ten steps or so, and nothing at the
    others: Hutchinson's (Sophia-H) or Gauss-Newton-Bartlett's (Sophia-G).
    """

    lr = hyper(1e-4, ge=0)
    beta1, beta2 = hyper(0.96, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    gamma = hyper(0.01, gt=0)
    rho = hyper(1.0, gt=0)
    eps = hyper(1e-12, gt=0)
    weight_decay = hyper(1e-1, ge=0)

    hessian = extra(per="element")
    m = ema(grad, beta1)
    h = state(0)
    h.next = where(given(hessian), beta2 * h.prev + (1 - beta2) * hessian, h.prev)
    update = clip(m / max(gamma * h, eps), -rho, rho)
    decay = decoupled(weight_decay)
