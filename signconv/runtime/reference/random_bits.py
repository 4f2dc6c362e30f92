"""Random numbers in PyTorch (docs/design.md#random-numbers)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from signconv.runtime.formats import BLOCK
from signconv.runtime.program import lasting
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


def _sign_keys(seed: int, t: int, noise: str) -> tuple[int, int]:
    """Keys of word 0 where its first field is the sign's: of antithetic noise those of the even
    step of a pair, of golden noise the same at every step."""
    return draw_keys(seed, {"antithetic": t & ~1, "golden": 0}.get(noise, t), 0)


def _turn(t: int, noise: str) -> int:
    """What brings the sign's field of word 0 to step t: antithetic all ones at odd steps, to be
    complemented with; golden t times TURN, to be added."""
    return (-(t & 1) if noise == "antithetic" else t * TURN) & MASK


def step_keys(seed: int, t: int, words: int, noise: str) -> list[int]:
    """All keys of a step: two for each word; where the sign's hash lasts then the turn, and what
    makes word 0 anew for what is rounded: of antithetic noise the multipliers of its fields 1 and
    2, of golden noise two keys."""
    keys = [*_sign_keys(seed, t, noise)]
    for word in range(1, words):
        keys += draw_keys(seed, t, word)
    if not lasting(noise):
        return keys
    anew = draw_keys(seed, t, ROUNDING)
    if noise == "antithetic":
        anew = ODD if t & 1 else MULTIPLIERS[1:]
    return [*keys, _turn(t, noise), *anew]


def signed32(x: int) -> int:
    """The int32 of the same bits."""
    x &= MASK
    return x - (x >> 31 << 32)


#: Multipliers of a word's fields, chosen for what they leave of the hash's weak spots: how nearly
#: independent fields are of each other, and elements of their neighbours (docs/design.md#bits).
MULTIPLIERS = (0x6C9B576F, 0x64AC5DB9, 0xCA2E3611)
#: Those of fields 1 and 2 of word 0 at the odd step of an antithetic pair, whose hash is the same.
ODD = (0xD3891F61, 0x62B1A43D)


#: Odd, near 2^32 over the golden ratio, and such that no partial quotient of TURN / 2^32 is above
#: 3: so t*TURN mod 2^32 is spread evenly for all 2^32 steps (docs/design.md#kinds-of-noise).
TURN = 0x9E3778C1
#: The stream of the keys that make word 0 anew, beyond those of words.
ROUNDING = 0xFFFF


class Word:
    """Random bits of the elements of a tensor: three fields of 32 bits each.

    hashed: int32 [numel], a hash of (seed, t, word, element).
    """

    def __init__(self, hashed: Tensor) -> None:
        self.hashed = hashed

    def field(self, which: int) -> Tensor:
        """int32 [numel], whose upper bits count most."""
        return self.hashed * signed32(MULTIPLIERS[which])


class GoldenWord(Word):
    """Word 0 of golden noise: field 0 comes from a hash that stays, and those that round from the
    same hash mixed with this step's keys."""

    def __init__(self, word: Word, turn: Tensor, key0: Tensor, key1: Tensor) -> None:
        self.sign, self.turn = word, turn
        x = (word.hashed ^ key0) * signed32(0x846CA68B)
        super().__init__(x ^ shift_right(x, 15) ^ key1)

    def field(self, which: int) -> Tensor:
        return super().field(which) if which else self.sign.field(0) + self.turn


class AntitheticWord(Word):
    """Word 0 of antithetic noise: one hash for two steps, whose fields that round have multipliers
    of their own at each."""

    def __init__(self, word: Word, turn: Tensor, second: Tensor, third: Tensor) -> None:
        super().__init__(word.hashed)
        self.turn, self.multipliers = turn, (second, third)

    def field(self, which: int) -> Tensor:
        if which:
            return self.hashed * self.multipliers[which - 1]
        return super().field(0) ^ self.turn


def lasting_word(word: Word, noise: str, turn: Any, first: Any, second: Any) -> Word:
    """Word 0 where the sign's noise is not fresh, of the last three of ``step_keys``."""
    kind = GoldenWord if noise == "golden" else AntitheticWord
    return kind(word, turn, first, second)


def element_numbers(
    base: int, numel: int, device: torch.device, length: int = 1, pitch: int = 1
) -> Tensor:
    """int64 [numel] from ``base`` on: each ``length`` elements are numbered ``pitch`` apart."""
    number = torch.arange(numel, device=device, dtype=torch.int64)
    if pitch != length:
        number = number + number // length * (pitch - length)
    return base + number


def draw_words(seed: int, t: int, words: int, noise: str, element: Tensor) -> list[Word]:
    """The words of random bits of one step, as ``draw`` gives one, of elements by their numbers
    (int64 [numel])."""
    device = element.device
    keys = step_keys(seed, t, words, noise)
    made = [_hashed(keys[2 * w], keys[2 * w + 1], element) for w in range(words)]
    if lasting(noise):
        rest = torch.tensor(
            [signed32(k) for k in keys[2 * words :]], dtype=torch.int32, device="cpu"
        )
        made[0] = lasting_word(made[0], noise, *rest.to(device).unbind())
    return made


def draw(seed: int, t: int, word: int, base: int, numel: int, device: torch.device) -> Word:
    """The random bits of ``numel`` elements from the global element ``base`` on.

    A pure function of (seed, t, word, element).
    """
    key0, key1 = draw_keys(seed, t, word)
    return _hashed(key0, key1, element_numbers(base, numel, device))


def _hashed(key0: int, key1: int, element: Tensor) -> Word:
    """The word with these keys."""
    index = element & -BLOCK
    row = (((index & MASK) ^ key0) + (index >> 32) * 0x9E3779B9) & MASK
    x = (row ^ (row >> 16)) ^ (element & (BLOCK - 1))
    x = torch.where(x > 0x7FFFFFFF, x - (1 << 32), x).to(torch.int32)
    x = x * 0x7FEB352D
    return Word(x ^ shift_right(x, 15) ^ signed32(key1))


def sign_noise(field: Tensor) -> Tensor:
    """Midpoints (2u + 1 - N) / N with N = 2^22: symmetric in (-1, 1), never 0, exact in fp32."""
    return (shift_right(field, 9) | 0x40000001).view(torch.float32) - 3.0
