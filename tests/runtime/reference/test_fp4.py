"""4-bit codes: what they hold, unbiased rounding, scales, special values, long averages."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from signconv.runtime.formats import BLOCK, E2M1, E4M0, FORMATS, Float4
from signconv.runtime.reference import ops as ref
from signconv.verification.bits import different

LAYOUTS = {"e2m1": E2M1, "e4m0": E4M0}
each = pytest.mark.parametrize("name", LAYOUTS)
#: Of each format, the numbers its codes stand for, in units of the smallest above 0.
VALUES = {"e2m1": [0, 1, 2, 3, 4, 6, 8, 12], "e4m0": [0, *(1 << k for k in range(14))]}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fields(n: int, seed: int) -> Tensor:
    made = torch.randint(-(1 << 31), 1 << 31, (n,), generator=rng(seed), dtype=torch.int64)
    return made.to(torch.int32)


def stored(name: str, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    code, scale = FORMATS[name].encode(x, fields(len(x), seed))
    assert scale is not None
    return code, scale


def values(name: str, n: int, seed: int) -> Tensor:
    """Eight decades, blocks of different sizes, of both signs where there are two."""
    x = torch.randn(n, generator=rng(seed)) * 10.0 ** (4 * torch.rand(n, generator=rng(seed + 1)))
    x = x * (10.0 ** (8 * torch.rand(n // BLOCK, generator=rng(seed + 2)) - 6)).repeat_interleave(
        BLOCK
    )
    return x if LAYOUTS[name].signed else x.abs()


@each
def test_codes_stand_for_the_numbers_of_the_table(name: str) -> None:
    layout = LAYOUTS[name]
    unit = 2.0 ** (-14 - layout.mantissa)
    got = ref.decode_fp4(torch.arange(16, dtype=torch.int32), layout)
    wanted = [v * unit for v in VALUES[name]]
    if layout.signed:  # what would be -0 is NaN
        wanted += [math.nan, *(-x for x in wanted[1:])]
    else:
        wanted += [math.nan]
    assert different(got, torch.tensor(wanted)) == 0
    assert layout.largest == len(VALUES[name]) - 1


@each
def test_halves_of_a_byte(name: str) -> None:
    codes = torch.randint(0, 16, (256,), generator=rng(3), dtype=torch.int32)
    packed = ref.pack(codes)
    assert packed.dtype == torch.uint8 and torch.equal(ref.unpack(packed), codes)
    assert int(packed[0]) == int(codes[0]) + 16 * int(codes[1])


@each
def test_rounding_is_unbiased_to_the_last_random_bit(name: str) -> None:
    """Over all fields that differ in what is read, each number's mean is the number, exactly."""
    layout = LAYOUTS[name]
    bits = FORMATS[name].random_bits
    draws = torch.arange(1 << bits, dtype=torch.int64) << (32 - bits)
    field = (draws - (1 << 32) * (draws >= 1 << 31)).to(torch.int32)
    byte = torch.tensor(127)
    unit = 2.0 ** (-14 - layout.mantissa)
    for x in (0.25, 0.75, 2.5, 4.75, 7.5):
        code = ref.encode_fp4(torch.tensor(x * unit).expand(len(field)), byte, field, layout)
        found, counts = code.unique(return_counts=True)
        assert len(found) == 2 and int(found[1] - found[0]) == 1
        mean = sum(Fraction(VALUES[name][c]) * n for c, n in zip(found.tolist(), counts.tolist()))
        assert mean / len(field) == Fraction(x)


@each
def test_the_scale_is_the_least_that_holds_the_block(name: str) -> None:
    layout = LAYOUTS[name]
    x = values(name, 1 << 14, 5)
    _, scale = stored(name, x)
    top = VALUES[name][-1] * 2.0 ** (-14 - layout.mantissa)
    unit = 2.0 ** (scale.double() - 127)
    largest = x.abs().view(-1, BLOCK).amax(1).double()
    assert bool((largest <= top * unit).all()) and bool((largest > top * unit / 2).all())
    for size in VALUES[name][2:]:  # a maximum that is a code's number is kept exactly
        block = torch.zeros(BLOCK)
        block[3] = float(size)
        assert FORMATS[name].decode(*stored(name, block))[3] == size


@each
def test_a_number_that_is_not_finite_harms_itself_alone(name: str) -> None:
    x = values(name, 256, 6)
    alone = FORMATS[name].decode(*stored(name, x.clone()))
    bad = torch.tensor([3, 40, 41, 255])
    y = x.clone()
    y[bad] = torch.tensor([math.nan, math.inf, math.inf, math.nan])
    rest = x.clone()
    rest[bad] = 0.0
    got, wanted = (FORMATS[name].decode(*stored(name, z)) for z in (y, rest))
    assert got[bad].isnan().all()
    kept = torch.ones(256, dtype=torch.bool)
    kept[bad] = False
    assert different(got[kept], wanted[kept]) == 0 and alone.isfinite().all()


@each
def test_the_ends_of_the_range(name: str) -> None:
    """Zero stays, the largest numbers saturate, and nothing that is read is subnormal."""
    layout, fmt = LAYOUTS[name], FORMATS[name]
    zero = torch.zeros(64)
    assert different(fmt.decode(*stored(name, zero)), zero) == 0
    for x in (layout.limit, 2 * layout.limit, 3.4e38):
        block = torch.full((BLOCK,), x)
        for field in (0, -1):
            code, scale = fmt.encode(block, torch.full((BLOCK,), field, dtype=torch.int32))
            assert (fmt.decode(code, scale) == layout.limit).all()
    tiny = torch.full((BLOCK,), 2.0**-140)
    back = fmt.decode(*stored(name, tiny))
    assert set(back.tolist()) <= {0.0, 2.0**-126}


@each
def test_powers_of_two_change_the_scale_alone(name: str) -> None:
    """So a gradient times 2^k gives the same step: from 2^-90 of the values here to 2^60."""
    x = values(name, 1 << 12, 7)
    code, scale = stored(name, x, 8)
    for k in (-90, -31, -1, 1, 30, 60):
        other, bytes_ = stored(name, x * 2.0**k, 8)
        assert torch.equal(other, code) and torch.equal(bytes_.int(), scale.int() + k), k


def test_a_negative_number_never_rounds_to_nan() -> None:
    x = -torch.rand(1 << 14, generator=rng(9)) * 1e-3
    x[::BLOCK] = 1.0
    for seed in range(4):
        assert FORMATS["e2m1"].decode(*stored("e2m1", x, seed)).isfinite().all()


@pytest.mark.parametrize(("beta", "steps"), [(0.9, 300), (0.999, 3000)])
@each
def test_long_averages_keep_their_mean(name: str, beta: float, steps: int) -> None:
    """An EMA of positive numbers, stored at every step: its mean over elements within 5 sigmas."""
    n = 1 << 12
    x, exact = torch.zeros(n), torch.zeros(n, dtype=torch.float64)
    g = rng(10)
    code, scale = stored(name, x)
    for t in range(steps):
        u = torch.rand(n, generator=g) + 0.5
        x = beta * FORMATS[name].decode(code, scale) + (1 - beta) * u
        exact = beta * exact + (1 - beta) * u.double()
        code, scale = stored(name, x, 1000 + t)
    ratio = FORMATS[name].decode(code, scale).double() / exact
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(n)
    assert float(ratio.std()) > 0.05  # it is rounded coarsely


def test_layouts_say_what_they_do() -> None:
    for name, layout in LAYOUTS.items():
        assert isinstance(layout, Float4) and FORMATS[name].float4 is layout
        assert FORMATS[name].packed and FORMATS[name].signed == layout.signed
        assert FORMATS[name].bytes_per_element == 0.5 + 1 / BLOCK
