"""Random numbers in Triton (docs/design.md#random-numbers)."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ptx
from signconv.runtime.kernel.constants import ARITHMETIC


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
def draw_keys(seed, t, stream):
    """Two 32-bit keys (uint32) from (seed, t, stream); seed and t are int64, not literals."""
    seed_lo = seed.to(tl.uint32)
    seed_hi = (seed >> 32).to(tl.uint32)
    step = t.to(tl.uint32)
    word = tl.full((), stream, tl.uint32) * 0x9E3779B9
    first = mix32(mix32(mix32(seed_lo + 0x243F6A88) ^ seed_hi) ^ step) + word
    second = mix32(mix32(mix32(seed_lo + 0x85A308D3) ^ seed_hi) ^ step) + word
    return mix32(first), mix32(second)


@triton.jit
def random_bits(index, lane, key0, key1):
    """32 random bits per element: index is int64 [ROWS, 1] (first of the row), lane int32 [1, 32].

    The key enters twice: by xor alone every step would permute the same draws.  A lane changes
    only the low five bits, so the first xor-shift is done once per row.
    """
    key0 = key0.to(tl.uint32, bitcast=True)
    key1 = key1.to(tl.uint32, bitcast=True)
    high = (index >> 32).to(tl.uint32)
    x = index.to(tl.uint32) ^ (key0 ^ (high * 0x9E3779B9))
    x = (x ^ (x >> 16)) ^ lane.to(tl.uint32)  # index is a multiple of 32
    x *= 0x7FEB352D
    x ^= x >> 15
    return x * 0x846CA68B + (key1 + high * 0x85EBCA6B)


@triton.jit
def high_field(bits):
    """A 32-bit field for one use of ``bits``; its upper 16 bits are those of ``bits``."""
    return bits


@triton.jit
def low_field(bits):
    """A 32-bit field whose upper 16 bits are independent of those of ``high_field``.

    Its upper half is the xor of both halves of ``bits``, its lower half the lower one.  Bit 9 is
    set: the half unit that centres 22-bit numbers.
    """
    return ((bits << 16) ^ bits) | 0x200


@triton.jit
def sign_noise(field, CODEC: tl.constexpr):
    """Midpoints (2u + 1 - N) / N with N = 2^22: symmetric in (-1, 1), never 0, exact in fp32.

    ``field`` is a ``low_field``, whose bit 9 is the half unit already.
    """
    if CODEC == ARITHMETIC:
        two_to_four = ((field >> 9) | 0x40000001).to(tl.float32, bitcast=True)
    else:
        two_to_four = ptx.two_to_four(field)
    return two_to_four - 3.0


@triton.jit
def store_keys(keys, seed, t, active, WORDS: tl.constexpr):
    """One row of keys: whether the step is taken, then two 32-bit keys per word of random bits."""
    tl.store(keys, active.to(tl.int32))
    for word in tl.static_range(WORDS):
        first, second = draw_keys(seed, t, word)
        tl.store(keys + 1 + 2 * word, first.to(tl.int32, bitcast=True))
        tl.store(keys + 2 + 2 * word, second.to(tl.int32, bitcast=True))
