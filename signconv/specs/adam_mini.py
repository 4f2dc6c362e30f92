from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, mean, sqrt


class AdamMini(Optimizer):
    """AdamW with one second moment for each row (Zhang et al. 2024, arXiv 2406.16793, Alg. 1).

    A row, all but the first dimension, is what one output neuron or one token has; of a vector it
    is the whole.  The paper's blocks of query and key are the heads': split those parameters.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.95, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.1, ge=0)

    m = ema(grad, beta1)
    v = ema(mean(grad**2, axis=(1, ...)), beta2)
    numerator = m.corrected
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay)
