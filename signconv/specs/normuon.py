from signconv.dsl import (
    Optimizer,
    decoupled,
    ema,
    grad,
    hyper,
    mean,
    msign,
    norm,
    numel,
    sqrt,
    where,
)


class NorMuon(Optimizer):
    """Muon with a second moment by row, one neuron's (Li et al. 2025, arXiv 2510.05491, Alg. 1)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.95, ge=0, lt=1), hyper(0.95, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.1, ge=0)

    m = ema(grad, beta1)
    o = msign(m)
    v = ema(mean(o**2, axis=(1, ...)), beta2)
    u = where(o == 0, 0, o / (sqrt(v) + eps))  # also of eps = 0
    numerator = 0.2 * sqrt(numel) * u
    denominator = norm(u)
    decay = decoupled(weight_decay)
