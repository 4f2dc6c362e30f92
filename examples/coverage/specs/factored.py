"""Optimizers whose second moments are numbers of rows, columns or other parts of a tensor.

Rows are what the first dimension counts, all others together their columns (``axis=(1, ...)`` and
``axis=0``), but for Adafactor and AdaLOMO, which take the last two dimensions.
"""

from signconv.dsl import (
    Optimizer,
    decoupled,
    ema,
    exp,
    grad,
    hyper,
    max,
    mean,
    min,
    ndim,
    norm,
    param,
    sqrt,
    state,
    stepped,
    sum,
    t,
    where,
)


class AdaFactor(Optimizer):
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) as BigVision has it: a momentum of its
    steps, a cap on the decay of second moments, and a weight decay that the size of the weights
    scales as it does the step."""

    lr = hyper(1e-3, gt=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    decay_rate = hyper(0.8, gt=0)
    eps1, eps2 = hyper(1e-30, ge=0), hyper(1e-3, ge=0)
    clip_threshold = hyper(1.0, gt=0)
    weight_decay = hyper(0.0, ge=0)

    beta = min(beta2, 1 - t ** (-decay_rate))
    squares = grad**2 + eps1
    row = ema(mean(squares, axis=-1), beta)
    column = ema(mean(squares, axis=-2), beta)
    row_factor = 1 / sqrt(row / mean(row, axis=-2))
    u = grad * row_factor / sqrt(column)
    size = lr * max(eps2, sqrt(mean(param**2)))
    m = ema(size * u / max(1, sqrt(mean(u**2)) / clip_threshold), beta1)
    update = (m + size * weight_decay * param) / lr


class AdaLOMO(Optimizer):
    """Adafactor's second moments under steps of the size of the weights (Lv et al. 2023, arXiv
    2310.10195, Alg. 1), with a weight decay that is scaled as the step is."""

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
    u = grad * row_factor / sqrt(column)
    size = max(eps2, sqrt(mean(param**2)))
    update = size * (u / max(1, sqrt(mean(u**2)) / clip_threshold) + weight_decay * param)


class Adalite(Optimizer):
    """Both moments of a matrix as products of a row and a column, rows and columns weighed by their
    variance (github.com/VatsaDev/adalite).

    Of a vector, whose columns are its elements, the moments are kept as they are.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    g_norm_min, ratio_min = hyper(1e-10, gt=0), hyper(1e-4, ge=0)
    tau = hyper(1.0, gt=0)
    eps1, eps2 = hyper(1e-6, ge=0), hyper(1e-10, gt=0)
    weight_decay = hyper(1e-2, ge=0)

    trust = max(norm(param) / max(norm(grad), g_norm_min), ratio_min)
    scaled = grad * trust
    v_row, v_column, m_row, m_column, core = state(), state(), state(), state(), state()

    m0 = where(ndim >= 2, m_row.prev * core.prev * m_column.prev, m_column.prev)
    v0 = where(
        ndim >= 2, v_row.prev * v_column.prev / max(sum(v_row.prev, axis=0), eps2), v_column.prev
    )
    first = beta1 * m0 + (1 - beta1) * scaled
    v = beta2 * v0 + (1 - beta2) * (scaled - first) ** 2

    row_mean, column_mean = mean(v, axis=(1, ...)), mean(v, axis=0)
    row_exp = exp(row_mean - max(row_mean, axis=0))
    column_exp = exp(column_mean - max(column_mean, axis=(1, ...)))
    kept = row_exp / sum(row_exp, axis=0) * (column_exp / sum(column_exp, axis=(1, ...)))
    m = where(ndim >= 2, kept * first + (1 - kept) * scaled, first)

    row_soft = exp((row_mean - max(row_mean, axis=0)) / tau)
    column_soft = exp((column_mean - max(column_mean, axis=(1, ...))) / tau)
    row_weight = row_soft / sum(row_soft, axis=0)
    column_weight = column_soft / sum(column_soft, axis=(1, ...))
    v_row.next = sum(v, axis=(1, ...))
    v_column.next = where(ndim >= 2, sum(v, axis=0) / max(sum(v), eps2), sum(v, axis=0))
    m_row.next = sum(m * column_weight, axis=(1, ...))
    m_column.next = where(ndim >= 2, sum(m * row_weight, axis=0), sum(m, axis=0))
    squares = sum(m_row**2, axis=0) * sum(m_column**2, axis=(1, ...))
    core.next = sum(m_row * m * m_column) / max(squares, eps2)

    update = (beta1 * m + (1 - beta1) * scaled) / sqrt(v / (1 - beta2**t) + eps1)
    decay = decoupled(weight_decay)


class RACS(Optimizer):
    """SGD scaled by rows and columns, its length let grow slowly (Gong et al. 2025, arXiv
    2502.07752, Alg. 1); averages of squares of columns start from 1. A vector is a column."""

    lr = hyper(1e-3, ge=0)
    beta = hyper(0.9, ge=0, lt=1)
    alpha, gamma = hyper(0.05, ge=0, lt=1), hyper(1.01, gt=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    row, column, theta = state(), state(), state()
    row0 = where(t == 1, where(ndim >= 2, 0, 1), row.prev)
    column0 = where(t == 1, where(ndim >= 2, 1, 0), column.prev)
    row.next = beta * row0 + (1 - beta) * mean(grad**2, axis=(1, ...))
    column.next = beta * column0 + (1 - beta) * mean(grad**2, axis=0)
    scaled = grad / (sqrt(row + eps) * sqrt(column + eps))
    length = norm(scaled)
    limit = where(t == 1, 1, gamma / max(length / (theta.prev + eps), gamma))
    theta.next = length * limit
    update = alpha * limit * scaled
    decay = decoupled(weight_decay)


class AdamMini(Optimizer):
    """AdamW with one second moment for each block (Zhang et al. 2024, arXiv 2406.16793, Alg. 1).

    ``blocks``, given by group, is 2 where a block is the tensor, 1 where it is a row, such as a
    query or key whose heads have one row, and 0 where it is an element, as in embeddings.
    """

    lr = hyper(1.0, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    blocks = hyper(2, ge=0, le=2)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.1, ge=0)

    square = grad**2
    of_rows = where(blocks > 0, mean(square, axis=(1, ...)), square)
    m = ema(grad, beta1)
    v = ema(where(blocks > 1, mean(square), of_rows), beta2)
    numerator = m.corrected
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay)


class AdamWSN(Optimizer):
    """AdamW with a sum of squares for each subset of a tensor (Nguyen & Nguyen 2024, arXiv
    2411.07120, AdamSN): of a matrix its rows, of a vector its elements. Weights are decayed after
    the step."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    squares = where(ndim >= 2, sum(grad**2, axis=(1, ...)), grad**2)
    m = ema(grad, beta1)
    v = ema(squares, beta2)
    numerator = m.corrected * sqrt(1 - beta2**t)
    denominator = sqrt(v) + eps
    new_param = stepped * (1 - lr * weight_decay)
