"""Random numbers in Triton (docs/design.md#random-numbers)."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ptx
from signconv.runtime.kernel.constants import ANTITHETIC, ARITHMETIC, FRESH, GOLDEN

#: Multipliers of a word's fields, as in the reference.
FIRST = tl.constexpr(0x6C9B576F)
SECOND = tl.constexpr(0x64AC5DB9)
THIRD = tl.constexpr(0xCA2E3611)
#: Of fields 1 and 2 at the odd step of an antithetic pair.
ODD_SECOND = tl.constexpr(0xD3891F61)
ODD_THIRD = tl.constexpr(0x62B1A43D)
#: A turn of golden noise, and the stream of the keys that make word 0 anew, as there.
TURN = tl.constexpr(0x9E3778C1)
ROUNDING = tl.constexpr(0xFFFF)


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
    """Two 32-bit keys (uint32) from (seed, t, stream); seed and t are int64, not literals."""
    word = tl.full((), stream, tl.uint32) * 0x9E3779B9
    return _key(seed, t, word, 0x243F6A88), _key(seed, t, word, 0x85A308D3)


@triton.jit
def hash_elements(index, lane, key0, key1):
    """uint32 [ROWS, 32] that the fields of a word are made of: index is int64 [ROWS, 1] (first of
    the row, a multiple of 32), lane int32 [1, 32]; or both are [ROWS, 32], an element's own.

    The keys come before and after a multiplication: by the first alone every step would permute
    the same draws.  A lane changes only the low five bits, so the first xor-shift is done once per
    row.
    """
    key0 = key0.to(tl.uint32, bitcast=True)
    key1 = key1.to(tl.uint32, bitcast=True)
    x = (index.to(tl.uint32) ^ key0) + (index >> 32).to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) ^ lane.to(tl.uint32)
    x *= 0x7FEB352D
    return x ^ (x >> 15) ^ key1


@triton.jit
def field(hashed, WHICH: tl.constexpr):
    """One of the three fields of a word: uint32 whose upper bits count most."""
    if WHICH == 0:
        x = hashed * FIRST
    elif WHICH == 1:
        x = hashed * SECOND
    else:
        x = hashed * THIRD
    return x


@triton.jit
def multiplied(hashed, multiplier):
    """A field of word 0 of antithetic noise, whose multiplier is the step's."""
    return hashed * multiplier.to(tl.uint32, bitcast=True)


@triton.jit
def turned(field, turn, NOISE: tl.constexpr):
    """The sign's field of word 0, brought to this step."""
    turn = turn.to(tl.uint32, bitcast=True)
    return field + turn if NOISE == GOLDEN else field ^ turn


@triton.jit
def rehash(hashed, key0, key1):
    """Word 0 of golden noise made anew for what is rounded, for its hash stays over steps."""
    x = (hashed ^ key0.to(tl.uint32, bitcast=True)) * 0x846CA68B
    return x ^ (x >> 15) ^ key1.to(tl.uint32, bitcast=True)


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
def _store_pair(keys, seed, t, stream):
    first, second = draw_keys(seed, t, stream)
    tl.store(keys, first.to(tl.int32, bitcast=True))
    tl.store(keys + 1, second.to(tl.int32, bitcast=True))


@triton.jit
def store_keys(keys, seed, t, active, WORDS: tl.constexpr, NOISE: tl.constexpr):
    """One row of keys: whether the step is taken, then those of ``reference`` ``step_keys``."""
    tl.store(keys, active.to(tl.int32))
    for word in tl.static_range(1, WORDS):
        _store_pair(keys + 1 + 2 * word, seed, t, word)
    if NOISE == FRESH:
        _store_pair(keys + 1, seed, t, 0)
    else:
        if NOISE == ANTITHETIC:
            _store_pair(keys + 1, seed, t & -2, 0)
            turn = -(t & 1)
            odd = turn != 0
            second = tl.where(odd, tl.full((), ODD_SECOND, tl.uint32), SECOND)
            third = tl.where(odd, tl.full((), ODD_THIRD, tl.uint32), THIRD)
            tl.store(keys + 2 + 2 * WORDS, second.to(tl.int32, bitcast=True))
            tl.store(keys + 3 + 2 * WORDS, third.to(tl.int32, bitcast=True))
        else:
            _store_pair(keys + 1, seed, t * 0, 0)
            turn = t.to(tl.uint32) * TURN
            _store_pair(keys + 2 + 2 * WORDS, seed, t, ROUNDING)
        tl.store(keys + 1 + 2 * WORDS, turn.to(tl.int32))
