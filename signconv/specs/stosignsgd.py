from signconv.dsl import Optimizer, abs, decoupled, ema, grad, hyper, max_ema, stochastic_sign


class StoSignSGD(Optimizer):
    """StoSignSGD, practical form (arXiv 2604.15416, Alg. 3): an unbiased sign of the momentum.

    G is the running maximum of abs(m), so abs(m) <= G always.  The paper's G never forgets
    (beta2 = 1), which its theorem needs; by default it does, since a G that the first gradients
    set for good ended 0.17 nats higher (docs/results.md).  What is known of StoSignSGDv2 is the
    spec stosignsgd_v2; the mean of this sign, without noise, is ie_stosignsgd.
    """

    lr = hyper(2e-4, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    beta2 = hyper(0.99, ge=0, le=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum, init="first")
    G = max_ema(abs(m), beta2)
    update = stochastic_sign(m, G)
    decay = decoupled(weight_decay)
