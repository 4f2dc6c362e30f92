from signconv.dsl import Optimizer, columns, decoupled, ema, grad, hyper, max, msign, rows, sqrt


class MuonRMS(Optimizer):
    """Muon with updates of AdamW's size (Liu et al. 2025, arXiv 2502.16982, equation 4).

    One learning rate and one weight decay then serve both rules of a hybrid.
    """

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.95, ge=0, lt=1)
    weight_decay = hyper(0.1, ge=0)

    m = ema(grad, momentum)
    ahead = momentum * m + (1 - momentum) * grad  # Nesterov
    update = 0.2 * sqrt(max(rows, columns)) * msign(ahead)
    decay = decoupled(weight_decay)
