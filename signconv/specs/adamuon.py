from signconv.dsl import (
    Optimizer,
    decoupled,
    ema,
    grad,
    hyper,
    msign,
    norm,
    numel,
    sign,
    sqrt,
    where,
)


class AdaMuon(Optimizer):
    """Muon of the momentum's signs with a second moment of every element (Si et al. 2025, arXiv
    2507.11005, Alg. 1)."""

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.95, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.1, ge=0)

    m = ema(grad, momentum)
    o = msign(sign(m))
    v = ema(o**2, momentum)
    u = where(o == 0, 0, o / (sqrt(v) + eps))  # also of eps = 0
    numerator = 0.2 * sqrt(numel) * u
    denominator = norm(u)
    decay = decoupled(weight_decay)
