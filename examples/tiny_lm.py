"""A byte-level transformer small enough for a CPU, and text that every machine has.

The text is the source of Python's own standard library. Files, not windows, are split into
training and held-out, so no held-out line stands next to a training line.

    corpus = load_bytes()
    model = TinyLM()
    for inputs, targets in batches(corpus.train, steps=10, seed=1):
        loss = model.loss(inputs, targets)
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB = 256  # one token per byte
CONTEXT = 96
BATCH = 48

# Third-party packages, tests and their data, tables of numbers or generated
# text; and files that differ between two installations of one Python version.
SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "encodings", "idlelib", "idle_test", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
SKIPPED_PREFIXES = ("_sysconfigdata", "sitecustomize", "usercustomize")


@dataclass(frozen=True)
class Corpus:
    """Training and held-out text as uint8 tensors, and what they were made of."""

    train: Tensor
    held_out: Tensor
    train_files: int
    held_out_files: int
    digest: str  # sha256 over every file's side of the split, path and contents


def load_bytes(folder: Path | None = None, max_bytes: int = 10_000_000) -> Corpus:
    """Read `folder`'s .py files (the standard library's) until `max_bytes`, and split them.

    A file's place in the reading order and its side of the split (1 in 10 is held out) are
    functions of the sha256 of its relative path alone, so the cap cuts no letter of the
    alphabet off and a file never changes sides.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    keyed = []
    for parent, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for name in files:
            if name.endswith(".py") and not name.startswith(SKIPPED_PREFIXES):
                path = Path(parent, name)
                relative = path.relative_to(root).as_posix()
                keyed.append((hashlib.sha256(relative.encode()).digest(), path))

    sides: tuple[list[bytes], list[bytes]] = ([], [])
    digest = hashlib.sha256()
    total = 0
    for key, path in sorted(keyed):
        text = path.read_bytes()
        if total + len(text) > max_bytes:
            break
        total += len(text)
        side = int(key[8] % 10 == 0)  # a later byte than those that decide the order
        sides[side].append(text)
        digest.update(key + bytes([side]) + hashlib.sha256(text).digest())

    train, held_out = (b"".join(texts) for texts in sides)
    if min(len(train), len(held_out)) <= CONTEXT:
        raise ValueError(f"too little Python source in {root}: {total} bytes in {len(keyed)} files")
    return Corpus(
        train=torch.frombuffer(bytearray(train), dtype=torch.uint8),
        held_out=torch.frombuffer(bytearray(held_out), dtype=torch.uint8),
        train_files=len(sides[0]),
        held_out_files=len(sides[1]),
        digest=digest.hexdigest(),
    )


def windows(
    text: Tensor, count: int, generator: torch.Generator, context: int = CONTEXT
) -> tuple[Tensor, Tensor]:
    """`count` random windows of `text`: inputs and next-byte targets, (count, context) int64."""
    starts = torch.randint(len(text) - context, (count, 1), generator=generator)
    rows = text[starts + torch.arange(context + 1)].long()
    return rows[:, :-1], rows[:, 1:]


def batches(
    text: Tensor, steps: int, seed: int, batch: int = BATCH, context: int = CONTEXT
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of random windows; the same seed gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield windows(text, batch, generator, context)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on (…, context, head width)."""
    context, width = x.shape[-2:]
    frequency = 1e4 ** (-torch.arange(0, width, 2, device=x.device) / width)
    angle = torch.arange(context, device=x.device).unsqueeze(1) * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """Pre-norm causal attention, then a two-layer perceptron, each added to the stream.

    Queries and keys are normalized, which keeps a wide range of learning rates stable (without
    it, AdamW at 4e-3 ends 300 steps 0.1 nats higher).
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, context, width) in and out."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, context, width / heads)
        q, k = (rotate(F.rms_norm(x, x.shape[-1:])) for x in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class TinyLM(nn.Module):
    """A byte-level transformer with rotary positions: 0.39M parameters.

    Every row is a multiple of 32 long, so that all blocks are whole.
    """

    def __init__(
        self, width: int = 128, layers: int = 2, heads: int = 4, hidden: int = 384, seed: int = 0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)

        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = 0.02
                if name == "embedding.weight":
                    std = 0.5
                elif name.endswith("_out.weight"):  # into the stream: smaller, as in GPT-2
                    std = 0.02 / (2 * layers) ** 0.5
                nn.init.normal_(weight, std=std, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next byte, (batch, context, VOCAB)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.final_norm(x))
        return logits

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte, in nats."""
        return F.cross_entropy(self(inputs).flatten(0, 1), targets.flatten())


def make() -> tuple[TinyLM, Callable[[int], Tensor]]:
    """The model and the loss of a step, for ``signconv lr examples/tiny_lm.py:make``."""
    model, corpus = TinyLM(), load_bytes()
    generator = torch.Generator().manual_seed(1)

    def loss(step: int) -> Tensor:
        made: Tensor = model.loss(*windows(corpus.train, BATCH, generator))
        return made

    return model, loss
