from signconv.dsl import Optimizer, decoupled, ema, exp, grad, hyper, log, min, sqrt, t


class AdEMAMix(Optimizer):
    """AdamW with a second, slow momentum (Pagliardini et al. 2024, arXiv 2409.03137, Alg. 1).

    Over ``warmup`` steps alpha rises from 0 and beta3 from beta1, so that the length of its
    average grows evenly (the paper's schedulers, their T as long as training).
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, gt=0, lt=1), hyper(0.999, ge=0, lt=1)
    beta3 = hyper(0.9999, gt=0, lt=1)
    alpha = hyper(5.0, ge=0)
    warmup = hyper(1.0, ge=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    part = min(t / warmup, 1)
    a = alpha * part
    b = exp(log(beta1) * log(beta3) / ((1 - part) * log(beta3) + part * log(beta1)))
    m = ema(grad, beta1)
    m_slow = ema(grad, min(b, beta3))
    v = ema(grad**2, beta2)
    numerator = m.corrected + a * m_slow
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay)
