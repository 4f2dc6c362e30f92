from signconv.dsl import Optimizer, columns, decoupled, ema, grad, hyper, max, msign, rows, sqrt


class Muon(Optimizer):
    """Momentum orthogonalized by Newton-Schulz (Jordan et al. 2024, as torch.optim.Muon has it).

    For the matrices inside a model; embeddings, heads and vectors belong to another rule
    (``signconv.hybrid``).
    """

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.95, ge=0, lt=1)
    weight_decay = hyper(0.1, ge=0)

    m = ema(grad, momentum)
    ahead = momentum * m + (1 - momentum) * grad  # Nesterov
    update = sqrt(max(rows / columns, 1)) * msign(ahead)
    decay = decoupled(weight_decay)
