from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, max, norm, sqrt, state, t, where


class MARS(Optimizer):
    """AdamW on gradients of less variance (Yuan et al. 2024, arXiv 2411.10438, Alg. 2, approx).

    The last step's gradient stands in for that of the last parameters on this step's data, as in
    the paper's MARS-approx.  The corrected gradient is clipped to norm 1 per tensor.
    """

    lr = hyper(3e-3, ge=0)
    beta1, beta2 = hyper(0.95, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    gamma = hyper(0.025, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    g_prev = state(0)
    g_prev.next = grad
    change = where(t == 1, 0, 1) * (grad - g_prev.prev)
    c = grad + gamma * beta1 / (1 - beta1) * change
    clipped = c / max(norm(c), 1)
    m = ema(clipped, beta1)
    v = ema(clipped**2, beta2)
    numerator = m.corrected
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay)
