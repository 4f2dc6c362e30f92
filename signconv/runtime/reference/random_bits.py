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


def _signed32(x: int) -> int:
    x &= MASK
    return x - (x >> 31 << 32)


def random_bits(base: int, numel: int, key0: int, key1: int, device: torch.device) -> Tensor:
    """32 random bits per element as int32 [numel], for global element indices base, base+1, …"""
    i = torch.arange(numel, device=device, dtype=torch.int64)
    high = (base + (i & -BLOCK)) >> 32
    low = (base + i) & MASK
    low = torch.where(low > 0x7FFFFFFF, low - (1 << 32), low)
    high = high.to(torch.int32)
    x = low.to(torch.int32) ^ (high * _signed32(0x9E3779B9) ^ _signed32(key0))
    x = x ^ shift_right(x, 16)
    x = x * 0x7FEB352D
    x = x ^ shift_right(x, 15)
    return x * _signed32(0x846CA68B) + (high * _signed32(0x85EBCA6B) + _signed32(key1))


def high_field(bits: Tensor) -> Tensor:
    """A 32-bit field for one use of ``bits``; its upper 16 bits are those of ``bits``."""
    return bits


def low_field(bits: Tensor) -> Tensor:
    """A 32-bit field whose upper 16 bits are independent of those of ``high_field``.

    Its upper half is the xor of both halves of ``bits``, its lower half the lower one.  Bit 9 is
    set: the half unit that centres 22-bit numbers.
    """
    return ((bits << 16) ^ bits) | 0x200


def sign_noise(field: Tensor) -> Tensor:
    """Midpoints (2u + 1 - N) / N with N = 2^22: symmetric in (-1, 1), never 0, exact in fp32."""
    return (shift_right(field, 9) | 0x40000001).view(torch.float32) - 3.0
