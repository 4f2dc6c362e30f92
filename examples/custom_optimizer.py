import torch

import signconv
from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sqrt


class AdamS(Optimizer):
    """AdamS: the momentum is its own normalizer (Zhang et al. 2025, arXiv 2505.16363)."""

    lr, eps, weight_decay = hyper(1e-3, ge=0), hyper(1e-8, ge=0), hyper(1e-2, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.95, ge=0, lt=1)

    m = ema(grad, beta1)
    v = beta2 * m.prev**2 + (1 - beta2) * grad**2  # computed afresh: only m is stored
    numerator = m
    denominator = sqrt(v) + eps
    decay = decoupled(weight_decay)


if __name__ == "__main__":
    inputs, model = torch.randn(256, 32), torch.nn.Linear(32, 1)
    optimizer = signconv.compile(AdamS, convert="stosign")(model.parameters(), 1e-2)
    losses = []
    for _ in range(200):
        losses.append((model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    print(f"loss before {losses[0].item():.3f}, after {losses[-1].item():.3f}")
