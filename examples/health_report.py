"""Read a health report: what ``signconv.inspect`` says of an optimizer's state, and what to do.

    python examples/health_report.py

A small language model in bf16 is trained with FP8 moments on text that uses a quarter of its
vocabulary, and one of its matrices is multiplied by 0 by mistake. Both show in the report. A few
seconds on a CPU.
"""

from __future__ import annotations

import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import nn

import signconv
from signconv.runtime.inspect import Health

VOCABULARY, USED, WIDTH = 256, 64, 64


class Model(nn.Module):
    """Predicts the next token from this one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.forgotten = nn.Parameter(torch.zeros(WIDTH, WIDTH))  # times 0 below: a mistake
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.hidden(self.embedding(tokens)))
        return self.head(x + 0.0 * (x @ self.forgotten))


def trained(steps: int) -> tuple[Model, AdamWStoSign, Health]:
    """Train, and watch the last step: inspect before it, and again after it."""
    torch.manual_seed(0)
    model = Model().to(torch.bfloat16)
    optimizer = AdamWStoSign(model.parameters(), lr=1e-3)
    for step in range(steps):
        tokens = torch.randint(USED, (128,))
        loss = nn.functional.cross_entropy(model(tokens).float(), (tokens * 5 + 1) % USED)
        optimizer.zero_grad()
        loss.backward()
        if step == steps - 1:
            signconv.inspect(optimizer, model)  # stalls need the values before a step
        optimizer.step()
    return model, optimizer, signconv.inspect(optimizer, model)


def findings(health: Health) -> list[str]:
    """The report in sentences: the rules by which one reads it."""
    found = []
    for row in health.rows:
        name = f"{row.parameter}, {row.moment or 'weights'}"
        if row.nonfinite:
            found.append(f"{name}: Inf or NaN. Load the last checkpoint; lower lr, or clip.")
        if row.saturated > 0.01:
            found.append(f"{name}: {row.saturated:.0%} at the end of the format. --state bf16.")
        if row.moment and row.zero == 1.0:
            found.append(f"{name}: all zero. It never got a gradient: is it used at all?")
        elif row.moment and row.zero > 0.5:
            found.append(f"{name}: {row.zero:.0%} zero. Most of it got no gradient: unseen tokens?")
    return found


def main(steps: int = 200) -> tuple[Health, list[str]]:
    """Print report and findings; returns both."""
    _, _, health = trained(steps)
    print(health)
    print("""How to read a row
  zero       stored values that are 0: elements without a gradient, or too small for their block
  saturated  at the largest number of the format: the moment is cut off there
  stalled    did not move in the watched step. Of moments and bf16 weights most do so at any one
             step: they are rounded at random, which moves a few by a whole code and keeps the mean
  nonfinite  Inf or NaN: never fine
""")
    print("What this report says")
    found = findings(health)
    for sentence in found:
        print(f"  - {sentence}")
    return health, found


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small are slower on several
    main()
