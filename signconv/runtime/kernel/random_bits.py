"""Random numbers in Triton (docs/design.md#random-numbers)."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ptx
from signconv.runtime.kernel.constants import ARITHMETIC

#: Multipliers of a word's fields, as in the reference.
FIRST = tl.constexpr(0x6C9B576F)
SECOND = tl.constexpr(0x64AC5DB9)
THIRD = tl.constexpr(0xCA2E3611)


@triton.jit
def mix32(x):
    """A bijection of uint32 with full avalanche (two multiplies, Wellons' lowbias32)."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def _key(seed, t, word, START: tl.constexpr):
    seed_lo = seed.to(tl.uint32)
    x = mix32(mix32(seed_lo + START) ^ (seed >> 32).to(tl.uint32))
    return mix32(mix32(x ^ t.to(tl.uint32)) + word)


@triton.jit
def draw_keys(seed, t, stream):
    """Four 32-bit keys (uint32) from (seed, t, stream): of the hash, and of the word's fields.

    seed and t are int64, not literals.
    """
    word = tl.full((), stream, tl.uint32) * 0x9E3779B9
    hashed, first = _key(seed, t, word, 0x243F6A88), _key(seed, t, word, 0x85A308D3)
    second, third = _key(seed, t, word, 0x13198A2E), _key(seed, t, word, 0x03707344)
    return hashed, first, second, third


@triton.jit
def hash_elements(index, lane, key):
    """uint32 [ROWS, 32] that the fields of a word are made of: index is int64 [ROWS, 1] (first of
    the row), lane int32 [1, 32].

    A lane changes only the low five bits, so the first xor-shift is done once per row.
    """
    key = key.to(tl.uint32, bitcast=True)
    x = (index.to(tl.uint32) ^ key) + (index >> 32).to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) ^ lane.to(tl.uint32)  # index is a multiple of 32
    x *= 0x7FEB352D
    return x ^ (x >> 15)


@triton.jit
def field(hashed, key, WHICH: tl.constexpr):
    """One of the three fields of a word: uint32 whose upper bits count most.

    Each has a multiplier and a key of its own.  Without the key, which comes after the hash, every
    step would permute the same draws.
    """
    key = key.to(tl.uint32, bitcast=True)
    if WHICH == 0:
        x = hashed * FIRST + key
    elif WHICH == 1:
        x = hashed * SECOND + key
    else:
        x = hashed * THIRD + key
    return x


@triton.jit
def sign_noise(field, CODEC: tl.constexpr):
    """Midpoints (2u + 1 - N) / N with N = 2^22, of a field's upper 22 bits u: symmetric in (-1, 1),
    never 0, exact in fp32."""
    if CODEC == ARITHMETIC:
        two_to_four = ((field >> 9) | 0x40000001).to(tl.float32, bitcast=True)
    else:
        two_to_four = ptx.two_to_four(field | 0x200)
    return two_to_four - 3.0


@triton.jit
def store_keys(keys, seed, t, active, WORDS: tl.constexpr):
    """One row of keys: whether the step is taken, then four 32-bit keys per word of random bits."""
    tl.store(keys, active.to(tl.int32))
    for word in tl.static_range(WORDS):
        hashed, first, second, third = draw_keys(seed, t, word)
        tl.store(keys + 1 + 4 * word, hashed.to(tl.int32, bitcast=True))
        tl.store(keys + 2 + 4 * word, first.to(tl.int32, bitcast=True))
        tl.store(keys + 3 + 4 * word, second.to(tl.int32, bitcast=True))
        tl.store(keys + 4 + 4 * word, third.to(tl.int32, bitcast=True))
