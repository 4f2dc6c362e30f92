from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, max_ema, sqrt, t


class AMSGrad(Optimizer):
    """AdamW whose second moment never falls (Reddi et al. 2018, arXiv 1904.09237, Alg. 2).

    As torch.optim.AdamW(amsgrad=True): the running maximum is of the uncorrected moment.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(1e-2, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    v_max = max_ema(v, 1.0)
    numerator = m.corrected
    denominator = sqrt(v_max / (1 - beta2**t)) + eps
    decay = decoupled(weight_decay)
