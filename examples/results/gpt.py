"""A GPT-2-like transformer on bytes or byte-pair tokens: learned positions, tied embedding.

There is no normalization of queries and keys and no clipping: what keeps a run stable here is the
optimizer.  Every row is a multiple of 32 long, so that all blocks are whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from fp8_matmul import FP8Linear
from torch import Tensor, nn

VOCAB = 256  # one token per byte


@dataclass(frozen=True)
class Size:
    """Shape of the model and of a batch."""

    width: int
    layers: int
    heads: int
    context: int
    batch: int
    held_out_windows: int  # of the held-out text, fixed; a multiple of batch
    vocab: int = VOCAB  # more than 256: byte-pair tokens
    matmul: str = "bf16"  # fp8: the products of the blocks' matrices (fp8_matmul.py)

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.context


FULL = Size(width=512, layers=8, heads=8, context=512, batch=64, held_out_windows=512)
LARGE = Size(width=768, layers=16, heads=12, context=512, batch=64, held_out_windows=512)
SMALL = Size(width=64, layers=1, heads=2, context=64, batch=16, held_out_windows=1024)
TINY = Size(width=64, layers=2, heads=2, context=64, batch=16, held_out_windows=32)

#: On byte-pair tokens.  42.2M parameters, the first stage; GPT-2 small's blocks, 111M; GPT-2
#: medium's, 337M.
GPT42 = replace(FULL, batch=32, held_out_windows=256, vocab=32_768)
GPT42_FP8 = replace(GPT42, matmul="fp8")
GPT110 = Size(
    width=768, layers=12, heads=12, context=1024, batch=16, held_out_windows=128, vocab=32_768
)
GPT336 = replace(GPT110, width=1024, layers=24, heads=16)
TINY_TOKENS = replace(TINY, vocab=512)
#: By the names that plans give; one call trains one of them.
MODELS = {
    "full": FULL,
    "large": LARGE,
    "small": SMALL,
    "gpt42": GPT42,
    "gpt42_fp8": GPT42_FP8,
    "gpt110": GPT110,
    "gpt336": GPT336,
}


class Block(nn.Module):
    """Pre-norm causal attention, then a two-layer perceptron, each added to the stream."""

    def __init__(self, width: int, heads: int, matmul: str) -> None:
        super().__init__()
        linear = FP8Linear if matmul == "fp8" else nn.Linear
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = linear(width, 3 * width, bias=False)
        self.attention_out = linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_in = linear(width, 4 * width, bias=False)
        self.mlp_out = linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, context, width) in and out."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, context, width / heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))


class GPT(nn.Module):
    """The model; ``Size`` says how large.  25.6M parameters at FULL, 113.8M at LARGE."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(size.vocab, size.width)  # also the output matrix
        self.position = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, size.matmul) for _ in range(size.layers)
        )
        self.final_norm = nn.LayerNorm(size.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token, (batch, context, vocab)."""
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.embedding.weight)

    def loss(self, rows: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token of windows, (batch, context + 1) of integers."""
        rows = rows.long()
        logits = self(rows[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def initial_weights(model: GPT, seed: int) -> list[Tensor]:
    """fp32 weights of every parameter, drawn on the CPU: the same on every device.

    Normal with deviation 0.02, the matrices that write into the stream smaller by
    sqrt(2 * layers) (GPT-2); norms start at 1.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for name, p in model.named_parameters():
        if p.dim() < 2:
            made.append(torch.ones(p.shape))
            continue
        std = 0.02 / (2 * model.size.layers) ** 0.5 if name.endswith("_out.weight") else 0.02
        made.append(torch.empty(p.shape).normal_(std=std, generator=generator))
    return made
