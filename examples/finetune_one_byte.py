"""Fine-tune a small Llama with one byte of optimizer state per parameter, beside AdamW's eight.

    python examples/finetune_one_byte.py

The model is made from a config and learns one task first (sequences that count by one), so nothing
is downloaded. Then it is fine-tuned to another (by three) from the same weights on the same
batches: once with torch.optim.AdamW, once with AdamW on 4-bit moments. Under a minute on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from signconv.generated.adamw_fp4 import AdamWFP4
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTH, BATCH = 64, 24, 16


@dataclass(frozen=True)
class Run:
    """What one optimizer did: losses of all steps, and bytes of its state per parameter."""

    losses: list[float]
    state_bytes: int
    parameters: int

    @property
    def per_parameter(self) -> float:
        return self.state_bytes / self.parameters


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=LENGTH,
        )
    )  # fmt: skip


def batches(stride: int, steps: int) -> Iterator[torch.Tensor]:
    """Sequences that count by ``stride`` from a random number, a tenth of the tokens random."""
    draw = torch.Generator().manual_seed(stride)
    for _ in range(steps):
        first = torch.randint(VOCABULARY, (BATCH, 1), generator=draw)
        tokens = (first + stride * torch.arange(LENGTH)) % VOCABULARY
        noise = torch.randint(VOCABULARY, tokens.shape, generator=draw)
        yield torch.where(torch.rand(tokens.shape, generator=draw) < 0.1, noise, tokens)


def train(m: LlamaForCausalLM, optimizer: Any, stride: int, steps: int) -> Run:
    losses = []
    for tokens in batches(stride, steps):
        loss = m(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tensors = [x for s in optimizer.state.values() for x in s.values() if torch.is_tensor(x)]
    size = sum(x.numel() * x.element_size() for x in tensors if x.numel() > 1)  # not step counts
    return Run(losses, size, sum(p.numel() for p in m.parameters()))


def main(steps: int = 100) -> dict[str, Run]:
    """Print both runs side by side; returns them."""
    base = model()
    before = train(base, torch.optim.AdamW(base.parameters(), lr=2e-3), stride=1, steps=steps)
    print(f"{before.parameters:,} parameters, which count by one: loss {before.losses[-1]:.3f}")

    runs = {}
    for name, cls in {"torch.optim.AdamW": torch.optim.AdamW, "AdamWFP4": AdamWFP4}.items():
        tuned = copy.deepcopy(base)
        runs[name] = train(tuned, cls(tuned.parameters(), lr=1e-3), stride=3, steps=steps)

    print("\nfine-tuned to count by three, loss (mean of ten steps):")
    print(f"{'step':>8}" + "".join(f"{name:>20}" for name in runs))
    for end in sorted({10, steps // 4, steps // 2, steps}):
        means = [sum(r.losses[max(end - 10, 0) : end]) / min(end, 10) for r in runs.values()]
        print(f"{end:>8}" + "".join(f"{x:>20.3f}" for x in means))
    print("\nstate" + "".join(f"{r.state_bytes / 2**20:>17.2f} MiB" for r in runs.values())[2:])
    print("a parameter" + "".join(f"{r.per_parameter:>14.2f} bytes" for r in runs.values())[2:])
    return runs


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small are slower on several
    main()
