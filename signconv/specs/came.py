from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, max, mean, ndim, sqrt, where


class CAME(Optimizer):
    """Adafactor with momentum, whose elements are trusted by how little they change (Luo et al.
    2023, arXiv 2307.02047, Alg. 2).

    Of a vector the authors' code keeps a second moment of each element, and no trust.
    """

    lr = hyper(2e-4, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    beta3 = hyper(0.9999, ge=0, lt=1)
    eps1, eps2 = hyper(1e-30, ge=0), hyper(1e-16, ge=0)
    clip_threshold = hyper(1.0, gt=0)
    weight_decay = hyper(0.0, ge=0)

    squares = grad**2 + eps1
    row = ema(mean(squares, axis=-1), beta2)
    column = ema(mean(squares, axis=-2), beta2)
    row_factor = 1 / sqrt(row / mean(row, axis=-2))
    column_factor = 1 / sqrt(column)
    u = grad * row_factor * column_factor
    clipped = u * (1 / max(1, sqrt(mean(u**2)) / clip_threshold))
    m = ema(clipped, beta1)
    change = (clipped - m) ** 2 + eps2
    row_change = ema(mean(change, axis=-1), beta3)
    column_change = ema(mean(change, axis=-2), beta3)
    row_trust = 1 / sqrt(row_change / mean(row_change, axis=-2))
    column_trust = 1 / sqrt(column_change)
    update = m * where(ndim >= 2, row_trust * column_trust, 1)
    decay = decoupled(weight_decay)
