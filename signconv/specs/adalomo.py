from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, max, mean, param, sqrt, t


class AdaLomo(Optimizer):
    """Adafactor's second moments, one number for each row and column (Lv et al. 2023, arXiv
    2310.10195, Alg. 1), with the step of its code: lr of the parameter's size.

    With ``signconv.gradient_release`` a gradient is stepped as soon as it is there, and never held.
    """

    lr = hyper(1e-3, ge=0)
    decay_rate = hyper(0.8, gt=0)
    eps1, eps2 = hyper(1e-30, ge=0), hyper(1e-3, ge=0)
    clip_threshold = hyper(1.0, gt=0)
    weight_decay = hyper(0.0, ge=0)

    beta2 = 1 - t ** (-decay_rate)
    squares = grad**2 + eps1
    row = ema(mean(squares, axis=-1), beta2)
    column = ema(mean(squares, axis=-2), beta2)
    row_factor = 1 / sqrt(row / mean(row, axis=-2))
    column_factor = 1 / sqrt(column)
    u = grad * row_factor * column_factor
    size = max(eps2, sqrt(mean(param**2)))
    length = size / max(1, sqrt(mean(u**2)) / clip_threshold)
    update = length * u
    decay = decoupled(weight_decay)
