"""The workloads A to E: lists of shapes, and the tensors made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from signconv.errors import BenchError, nearest

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """A list of parameter shapes; every row is a multiple of 32."""

    key: str
    title: str
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        return sum(prod(s) for s in self.shapes)

    def tensors(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        """Parameters with gradients, random values, the same at every call."""
        rng = torch.Generator(device).manual_seed(0)
        made = []
        for shape in self.shapes:
            p = torch.empty(shape, dtype=dtype, device=device).normal_(generator=rng)
            p.requires_grad_()
            p.grad = torch.empty_like(p).normal_(std=1e-3, generator=rng)
            made.append(p)
        return made


def _one(quick: bool) -> list[Shape]:
    return [(2**9, 32)] if quick else [(2**16, 2**12)]


def _llama(quick: bool) -> list[Shape]:
    d, kv, ff, vocab, layers = (32, 32, 128, 501, 1) if quick else (2048, 512, 8192, 128256, 16)
    layer = [(d, d), (kv, d), (kv, d), (d, d), (ff, d), (ff, d), (d, ff), (d,), (d,)]
    return [(vocab, d), *layer * layers]


def _matrices(quick: bool) -> list[Shape]:
    """What a rule of matrices steps of that: all but the embedding and the norms."""
    return [s for s in _llama(quick)[1:] if len(s) == 2]


def _gpt2(quick: bool) -> list[Shape]:
    d, vocab, positions, layers = (32, 502, 32, 1) if quick else (768, 50257, 1024, 12)
    layer: list[Shape] = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,)]
    layer += [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(vocab, d), (positions, d), *layer * layers, (d,), (d,)]


def _small(quick: bool) -> list[Shape]:
    count = 3 if quick else 1000
    return [(64, 64)] * count + [(64,)] * count


MADE: dict[str, tuple[str, Callable[[bool], list[Shape]]]] = {
    "A": ("one tensor", _one),
    "B": ("Llama-1B-like", _llama),
    "C": ("GPT-2 124M", _gpt2),
    "D": ("small tensors", _small),
    "E": ("matrices of B", _matrices),
}


def choose(text: str, quick: bool = False) -> list[Workload]:
    """The workloads named by ``A,C`` or ``all``, in that order; BenchError for another name."""
    keys = list(MADE) if text == "all" else [k.strip().upper() for k in text.split(",")]
    for key in keys:
        if key not in MADE:
            raise BenchError("SC714", f"unknown workload {key!r}; {nearest(key, [*MADE, 'all'])}")
    unique = dict.fromkeys(keys)
    return [Workload(k, MADE[k][0], tuple(MADE[k][1](quick))) for k in unique]
