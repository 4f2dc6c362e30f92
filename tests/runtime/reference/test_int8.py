"""Whole numbers as codes: what they hold, unbiased rounding, scales, special values, how exact."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from signconv.runtime.formats import BLOCK, FORMATS, INT8
from signconv.runtime.reference import ops as ref
from signconv.verification.bits import different

FORMAT = FORMATS["int8"]
UP = torch.full((BLOCK,), -1, dtype=torch.int32)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fields(n: int, seed: int) -> Tensor:
    made = torch.randint(-(1 << 31), 1 << 31, (n,), generator=rng(seed), dtype=torch.int64)
    return made.to(torch.int32)


def stored(x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    code, scale = FORMAT.encode(x, fields(len(x), seed))
    assert scale is not None
    return code, scale


def values(n: int, seed: int) -> Tensor:
    """Both signs, blocks of eight decades of sizes."""
    sizes = 10.0 ** (8 * torch.rand(n // BLOCK, generator=rng(seed + 1)) - 6)
    return torch.randn(n, generator=rng(seed)) * sizes.repeat_interleave(BLOCK)


def test_codes_are_whole_numbers_in_twos_complement() -> None:
    got = ref.decode_int8(torch.arange(256, dtype=torch.int32).to(torch.uint8), INT8)
    wanted = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.int8).float()
    wanted[INT8.nan] = math.nan
    assert different(got, wanted) == 0 and got[INT8.largest] == 127


def test_rounding_is_unbiased_to_the_last_random_bit() -> None:
    """Over all fields that differ in what is read, each number's mean is the number, exactly."""
    draws = torch.arange(1 << FORMAT.random_bits, dtype=torch.int64) << (32 - FORMAT.random_bits)
    field = (draws - (1 << 32) * (draws >= 1 << 31)).to(torch.int32)
    for x in (0.25, -0.75, 2.0**-15, -126.5, 100 + 2.0**-15):
        code = ref.encode_int8(
            torch.tensor(x).expand(len(field)), torch.tensor(127), field, INT8
        ).view(torch.int8)
        found, counts = code.unique(return_counts=True)
        assert found.tolist() == [math.floor(x), math.floor(x) + 1]
        mean = sum(Fraction(c) * n for c, n in zip(found.tolist(), counts.tolist()))
        assert mean / len(field) == Fraction(x)


def test_the_scale_is_the_least_that_holds_the_block() -> None:
    x = values(1 << 14, 5)
    _, scale = stored(x)
    unit = 2.0 ** (scale.double() - 127)
    largest = x.abs().view(-1, BLOCK).amax(1).double()
    assert bool((largest <= 127 * unit).all()) and bool((largest > 127 * unit / 2).all())
    for size in (1.0, 63.0, 64.0, 126.0, 127.0):  # a maximum that a code stands for is exact
        block = torch.zeros(BLOCK)
        block[3], block[4] = size, -size
        code, scale = stored(block)
        assert FORMAT.decode(code, scale)[3:5].tolist() == [size, -size]
    above = torch.zeros(BLOCK)
    above[3] = 127 * (1 + 2.0**-22)
    assert int(stored(above)[1]) == 128


def test_a_number_that_is_not_finite_harms_itself_alone() -> None:
    x = values(256, 6)
    bad = torch.tensor([3, 40, 41, 255])
    y, rest = x.clone(), x.clone()
    y[bad] = torch.tensor([math.nan, math.inf, -math.inf, math.nan])
    rest[bad] = 0.0
    got, wanted = (FORMAT.decode(*stored(z)) for z in (y, rest))
    assert got[bad].isnan().all()
    kept = torch.ones(256, dtype=torch.bool)
    kept[bad] = False
    assert different(got[kept], wanted[kept]) == 0 and wanted.isfinite().all()


def test_the_ends_of_the_range() -> None:
    """Zero stays, the largest numbers saturate, and a scale's unit is a normal number."""
    zero = torch.zeros(64)
    assert different(FORMAT.decode(*stored(zero)), zero) == 0
    for x in (INT8.limit, 3.4e38, -INT8.limit, -3.4e38):
        for field in (torch.zeros_like(UP), UP):
            code, scale = FORMAT.encode(torch.full((BLOCK,), x), field)
            assert scale is not None and int(scale) == INT8.most
            assert (FORMAT.decode(code, scale) == math.copysign(INT8.limit, x)).all()
    back = FORMAT.decode(*stored(torch.full((BLOCK,), 2.0**-121)))
    assert set(back.tolist()) == {0.0, 2.0**-120}


def test_powers_of_two_change_the_scale_alone() -> None:
    x = values(1 << 12, 7)
    code, scale = stored(x, 8)
    for k in (-80, -31, -1, 1, 30, 60):
        other, bytes_ = stored(x * 2.0**k, 8)
        assert torch.equal(other, code) and torch.equal(bytes_.int(), scale.int() + k), k


def test_a_negative_number_never_rounds_to_nan() -> None:
    x = -torch.rand(1 << 14, generator=rng(9)) * 127
    x[::BLOCK] = -127.0
    for field in (torch.zeros(len(x), dtype=torch.int32), torch.full((len(x),), -1).int()):
        assert FORMAT.decode(*FORMAT.encode(x, field)).isfinite().all()


@pytest.mark.parametrize(("beta", "steps"), [(0.9, 300), (0.999, 3000)])
def test_long_averages_keep_their_mean(beta: float, steps: int) -> None:
    """An EMA, stored at every step: its mean over elements within 5 sigmas."""
    n = 1 << 12
    x, exact = torch.zeros(n), torch.zeros(n, dtype=torch.float64)
    g = rng(10)
    code, scale = stored(x)
    for t in range(steps):
        u = torch.rand(n, generator=g) + 0.5
        x = beta * FORMAT.decode(code, scale) + (1 - beta) * u
        exact = beta * exact + (1 - beta) * u.double()
        code, scale = stored(x, 1000 + t)
    ratio = FORMAT.decode(code, scale).double() / exact
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(n)
    assert float(ratio.std()) > 0.005  # it is rounded


def test_errors_of_a_block_are_a_third_of_e4m3s() -> None:
    """By their Frobenius norm, of normal numbers: why momentum whose matrix is signed has it."""
    x = torch.randn(1 << 16, generator=rng(11))

    def error(name: str) -> float:
        code, scale = FORMATS[name].encode(x, fields(len(x), 12))
        return float((FORMATS[name].decode(code, scale) - x).norm() / x.norm())

    assert error("int8") < error("e4m3") / 3
