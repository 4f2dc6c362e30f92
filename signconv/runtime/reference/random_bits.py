"""Random numbers in PyTorch (docs/design.md#random-numbers)."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime.formats import BLOCK
from signconv.runtime.reference.bits import MASK, shift_right


def mix32(x: int) -> int:
    """A bijection of 32-bit integers with full avalanche (two multiplies, lowbias32)."""
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ x >> 16


def draw_keys(seed: int, t: int, stream: int) -> tuple[int, int]:
    """Two 32-bit keys from (seed, t, stream)."""
    word = stream * 0x9E3779B9
    keys = []
    for start in (0x243F6A88, 0x85A308D3):
        x = mix32((seed + start) & MASK)
        x = mix32(mix32(x ^ (seed >> 32 & MASK)) ^ (t & MASK))
        keys.append(mix32((x + word) & MASK))
    return keys[0], keys[1]


def signed32(x: int) -> int:
    """The int32 of the same bits."""
    x &= MASK
    return x - (x >> 31 << 32)


#: Multipliers of a word's fields, chosen for what they leave of the hash's weak spots: how nearly
#: independent fields are of each other, and elements of their neighbours (docs/design.md#bits).
MULTIPLIERS = (0x6C9B576F, 0x64AC5DB9, 0xCA2E3611)


class Word:
    """Random bits of the elements of a tensor: three fields of 32 bits each.

    hashed: int32 [numel], a hash of (seed, t, word, element).
    """

    def __init__(self, hashed: Tensor) -> None:
        self.hashed = hashed

    def field(self, which: int) -> Tensor:
        """int32 [numel], whose upper bits count most."""
        return self.hashed * signed32(MULTIPLIERS[which])


def draw(seed: int, t: int, word: int, base: int, numel: int, device: torch.device) -> Word:
    """The random bits of ``numel`` elements from the global element ``base`` on, a multiple of 32.

    A pure function of (seed, t, word, element).
    """
    key0, key1 = draw_keys(seed, t, word)
    i = torch.arange(numel, device=device, dtype=torch.int64)
    index = base + (i & -BLOCK)
    row = (((index & MASK) ^ key0) + (index >> 32) * 0x9E3779B9) & MASK
    x = (row ^ (row >> 16)) ^ (i & (BLOCK - 1))
    x = torch.where(x > 0x7FFFFFFF, x - (1 << 32), x).to(torch.int32)
    x = x * 0x7FEB352D
    return Word(x ^ shift_right(x, 15) ^ signed32(key1))


def sign_noise(field: Tensor) -> Tensor:
    """Midpoints (2u + 1 - N) / N with N = 2^22: symmetric in (-1, 1), never 0, exact in fp32."""
    return (shift_right(field, 9) | 0x40000001).view(torch.float32) - 3.0
