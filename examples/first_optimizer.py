"""A first optimizer of your own: write it, convert it, verify it, train with it.

    python examples/first_optimizer.py

Half a minute on a CPU, most of it in verification.
"""

from __future__ import annotations

import torch

import signconv
from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sqrt


# 1. Write it. The body is read once and becomes formulas; nothing in it runs at a step.
class RMSMomentum(Optimizer):
    """Momentum over the root mean square of the gradient, without bias correction."""

    lr, eps, weight_decay = hyper(1e-3, ge=0), hyper(1e-8, ge=0), hyper(0.0, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    numerator = m
    denominator = sqrt(v) + eps
    decay = decoupled(weight_decay)


def train(name: str, cls: type[torch.optim.Optimizer], steps: int) -> list[float]:
    """Fit a wave with a small network; every run starts alike and sees the same batches."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(),
        torch.nn.Linear(64, 1),
    )  # fmt: skip
    optimizer = cls(model.parameters(), lr=3e-3)  # type: ignore[call-arg]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    losses = []
    for _ in range(steps):
        x = 4 * torch.rand(128, 1) - 2
        loss = (model(x) - torch.sin(3 * x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    tail = sum(losses[-20:]) / 20
    print(f"  {name:<28} loss {losses[0]:.4f} at first, {tail:.5f} over the last 20 steps")
    return losses


def main(steps: int = 400, verify: bool = True) -> dict[str, list[float]]:
    """The walk; returns the losses of the three runs."""
    # 2. Convert it. A pass rewrites the formulas; the header of the module shows what they became.
    print("The module of RMSMomentum after the pass stosign begins like this:\n")
    made = signconv.build(RMSMomentum, convert="stosign")
    print("    " + made.module.source.split('"""')[1].replace("\n", "\n    "))

    # 3. Verify it: formulas in float64, PyTorch reference and Triton kernel, each by the next.
    if verify:
        print("Each account of it is compared with the next:\n")
        report = signconv.verify(RMSMomentum, convert="stosign", device="cpu", steps=1)
        print(report)
        assert report.ok

    # 4. Train with it. compile returns a torch.optim.Optimizer.
    print(f"\nA wave, {steps} steps each, lr 3e-3 with a cosine:\n")
    optimizers: dict[str, type[torch.optim.Optimizer]] = {
        "torch.optim.AdamW, fp32": torch.optim.AdamW,
        "RMSMomentum, FP8": signconv.compile(RMSMomentum),
        "RMSMomentum + stosign, FP8": signconv.compile(RMSMomentum, convert="stosign"),
    }
    return {name: train(name, cls, steps) for name, cls in optimizers.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small are slower on several
    main()
