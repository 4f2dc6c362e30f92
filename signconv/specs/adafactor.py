from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, max, mean, min, param, sqrt, t


class Adafactor(Optimizer):
    """Second moments by rows and columns (Shazeer & Stern 2018, arXiv 1804.04235, Alg. 4).

    lr bounds the relative step size, min(lr, 1 / sqrt(t)) of the parameter's size.  What a matrix
    keeps is one number for each row and each column; further dimensions in front are matrices of
    their own.  Of a vector, a matrix of one row, this is Alg. 5: a number for each element.
    """

    lr = hyper(1e-2, ge=0)
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
    relative = min(1, 1 / (lr * sqrt(t)))
    size = max(eps2, sqrt(mean(param**2)))
    length = size * relative / max(1, sqrt(mean(u**2)) / clip_threshold)
    update = length * u
    decay = decoupled(weight_decay)
