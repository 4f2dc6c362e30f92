"""Kinds of the sign's noise: what each promises over steps, and that rounding has bits of its own.

Statistical tests use fixed seeds and say how often a perfect generator would fail them.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from signconv.ir import nodes
from signconv.runtime import program
from signconv.runtime.reference import ops as ref
from signconv.runtime.reference import random_bits

CPU = torch.device("cpu")
SIGMAS = 5.0
KINDS = ("antithetic", "golden")
every = pytest.mark.parametrize("kind", program.NOISES)
kinds = pytest.mark.parametrize("kind", KINDS)


def word(kind: str, t: int, numel: int = 1 << 12, base: int = 0, seed: int = 3) -> ref.Word:
    return ref.draw_words(seed, t, 1, kind, ref.element_numbers(base, numel, CPU))[0]


def uniform(kind: str, t: int, numel: int = 1 << 12, **how: int) -> Tensor:
    """float64 in (0, 1): the sign's noise is 2u - 1."""
    return (ref.sign_noise(word(kind, t, numel, **how).field(0)).double() + 1) / 2


def signs(kind: str, ratios: list[float], numel: int = 1 << 12, first: int = 1) -> Tensor:
    """[steps, numel] of sign(r + n), +1 with probability (1 + r)/2."""
    made = [
        torch.where(r + 2 * uniform(kind, t, numel) - 1 > 0, 1.0, -1.0)
        for t, r in enumerate(ratios, first)
    ]
    return torch.stack(made)


def error(kind: str, ratios: list[float], numel: int = 1 << 10) -> float:
    """RMS over elements of the accumulated update less the sum of ratios, in steps."""
    off = signs(kind, ratios, numel).sum(dim=0).double() - sum(ratios)
    return float(off.square().mean().sqrt())


def test_kinds_have_the_same_names_in_compiler_and_runtime() -> None:
    assert nodes.NOISES == program.NOISES


# ---------------------------------------------------------------- one step


@every
@pytest.mark.parametrize("t", [1, 2, 3, 1000, 2**31, 2**32 + 5])
def test_noise_is_uniform_at_every_step(kind: str, t: int) -> None:
    """256 cells of 2^18 draws: chi-square |z| < 5."""
    cells = (uniform(kind, t, 1 << 18) * 256).long()
    count = torch.bincount(cells, minlength=256).double()
    chi2 = float(((count - 1024) ** 2 / 1024).sum())
    assert abs(chi2 - 255) < SIGMAS * (2 * 255) ** 0.5


@every
@pytest.mark.parametrize("base", [0, 96, 2**32 - 64])
def test_bits_belong_to_the_element(kind: str, base: int) -> None:
    """Exact: any cut at a multiple of 32 gives the same bits, of every field."""
    for which in range(3):
        whole = word(kind, 7, 4096, base).field(which)
        parts = [word(kind, 7, 96, base + i).field(which) for i in range(0, 4096 - 96, 96)]
        assert torch.equal(torch.cat(parts), whole[: 96 * len(parts)])


def test_fresh_noise_is_what_it_was() -> None:
    for which in range(3):
        plain = ref.draw(3, 7, 0, 0, 1 << 12, CPU).field(which)
        assert torch.equal(word("fresh", 7).field(which), plain)


@kinds
def test_further_words_are_those_of_fresh_noise(kind: str) -> None:
    _, second, third = ref.draw_words(3, 7, 3, kind, ref.element_numbers(64, 256, CPU))
    for stream, found in ((1, second), (2, third)):
        assert torch.equal(found.hashed, ref.draw(3, 7, stream, 64, 256, CPU).hashed)


# ---------------------------------------------------------------- over steps


def test_antithetic_noise_is_its_neighbours_complement() -> None:
    """Exact: at odd t all 32 bits of t - 1; pairs are as far apart as fresh steps are."""
    for t in (1, 3, 77, 2**32 + 1):
        before, now = word("antithetic", t - 1).field(0), word("antithetic", t).field(0)
        assert torch.equal(now, ~before)
    for t in (1, 3, 77):
        one, other = uniform("antithetic", t), uniform("antithetic", t + 1)
        assert abs(float(((2 * one - 1) * (2 * other - 1)).mean())) < SIGMAS / 3 / 64


def test_golden_noise_turns_by_the_same_amount() -> None:
    """Exact, and over 2^32 steps the turn returns."""
    for t in (1, 2, 1000):
        turned = word("golden", t + 1).field(0) - word("golden", t).field(0)
        assert turned.unique().tolist() == [random_bits.signed32(random_bits.TURN)]
    assert torch.equal(word("golden", 5).field(0), word("golden", 5 + 2**32).field(0))


def quotients(a: int, b: int) -> list[int]:
    """Partial quotients of a/b."""
    made = []
    while b:
        made.append(a // b)
        a, b = b, a % b
    return made


def test_the_turn_is_as_far_from_fractions_as_can_be() -> None:
    """What the bound rests on: no partial quotient above 3, the first sixteen 1."""
    found = quotients(random_bits.TURN, 1 << 32)
    assert random_bits.TURN % 2 == 1 and max(found) == 3 and found[:17] == [0] + [1] * 16
    assert abs(random_bits.TURN / 2**32 - (5**0.5 - 1) / 2) < 1e-7


def bound(steps: int) -> float:
    """Steps that the accumulated update may be off (Kuipers and Niederreiter, ch. 2, th. 3.4)."""
    golden = (1 + 5**0.5) / 2
    return 2 * (3 + (1 / math.log(golden) + 3 / math.log(4)) * math.log(steps))


@pytest.mark.parametrize("steps", [1, 10, 100, 1000, 46_368, 200_000])
def test_golden_error_is_bounded(steps: int) -> None:
    """Every arc of the circle among 4,096, and every start that an element may have: the largest
    error over all ratios is that of the sorted sequence (exact)."""
    turns = torch.arange(1, steps + 1, dtype=torch.int64) * random_bits.TURN % (1 << 32)
    x = turns.double().sort().values / 2**32
    i = torch.arange(1, steps + 1, dtype=torch.float64)
    discrepancy = float((i - steps * x).max() - (i - 1 - steps * x).min())
    assert 2 * discrepancy <= bound(steps)
    assert 2 * discrepancy > bound(steps) / 20 or steps == 1


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, -0.9])
def test_accumulated_error_of_a_constant_ratio(ratio: float) -> None:
    """After 3,000 steps the RMS is, fresh, sqrt(T(1 - r^2)), antithetic sqrt(2T|r|(1 - |r|)) (and
    what a pair that is cut leaves), golden a step or two."""
    steps = 3000
    fresh, pairs, golden = (error(kind, [ratio] * steps) for kind in program.NOISES)
    assert fresh == pytest.approx((steps * (1 - ratio**2)) ** 0.5, rel=0.06)
    size = abs(ratio)
    assert pairs == pytest.approx((2 * steps * size * (1 - size)) ** 0.5, rel=0.06, abs=1.5)
    assert golden < 3


@pytest.mark.parametrize("period", [2, 3, 8, 16, 21, 34, 64, 256])
def test_periodic_ratios(period: int) -> None:
    """A ratio of 0.8 for half of the period and -0.2 for the rest: periods of Fibonacci numbers
    stay with golden noise for a while; none is worse than fresh."""
    one = [0.8] * (period // 2) + [-0.2] * (period - period // 2)
    ratios = (one * 3000)[:3000]
    fresh, golden = error("fresh", ratios), error("golden", ratios)
    assert golden < 0.5 * fresh, (fresh, golden)


def test_a_slow_and_a_noisy_ratio() -> None:
    """A drift and white ratios of deviation 0.2: golden is ahead of fresh in both."""
    steps = 3000
    drift = [math.sin(2 * math.pi * t / steps) * 0.7 for t in range(steps)]
    gen = torch.Generator().manual_seed(1)
    white = (0.2 * torch.randn(steps, generator=gen)).clamp(-1, 1).tolist()
    assert error("golden", drift) < error("fresh", drift) / 3
    assert error("golden", white) < error("fresh", white) / 1.5


def test_antithetic_variance_is_never_above_fresh() -> None:
    """Exact, by counting all midpoints: covariance -(1 - r1)(1 - r2) where r1 + r2 >= 0, and
    -(1 + r1)(1 + r2) elsewhere."""
    n = 2 * (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096 - 1
    for a in torch.linspace(-1, 1, 17).tolist():
        for b in torch.linspace(-1, 1, 17).tolist():
            one, two = torch.sign(a + n), torch.sign(b - n)
            covariance = float((one * two).mean() - one.mean() * two.mean())
            exact = -(1 - a) * (1 - b) if a + b >= 0 else -(1 + a) * (1 + b)
            assert covariance == pytest.approx(exact, abs=1e-3) and covariance <= 1e-12


# ---------------------------------------------------------------- sign and rounding


@kinds
@pytest.mark.parametrize(("a", "b"), [(0, 1), (0, 2), (1, 2)])
def test_fields_of_one_step_are_independent(kind: str, a: int, b: int) -> None:
    """Top 4 bits of both, 2^20 draws, four keys: chi-square |z| < 5 (false alarms 2e-6)."""
    for seed, t in ((8, 3), (1, 1), (2**40, 100), (3, 2)):
        found = word(kind, t, 1 << 20, seed=seed)
        x, y = ((found.field(i) >> 28) & 15 for i in (a, b))
        count = torch.bincount((x.long() << 4) + y.long(), minlength=256).double()
        mean = (1 << 20) / 256
        chi2 = float(((count - mean) ** 2 / mean).sum())
        assert abs(chi2 - 255) < SIGMAS * (2 * 255) ** 0.5


@kinds
def test_fields_of_two_steps_are_independent(kind: str) -> None:
    """The sign's noise with what rounds m, parameters and v up to 8 steps later or earlier, and
    those with each other; 4 million products each, false alarms 1e-4 for all."""
    elements, steps, lags = 1 << 13, 512, 8
    every = [word(kind, t, elements) for t in range(1, steps + 1)]
    x = torch.stack([torch.stack([ref.sign_noise(w.field(i)) for w in every]) for i in range(3)])
    for a in range(3):
        for b in range(3):
            if a == b == 0:
                continue  # the sign's own noise is what its kind says
            for lag in range(a == b, lags + 1):
                products = 3 * x[a, : steps - lag] * x[b, lag:]
                assert abs(float(products.mean())) < SIGMAS / products.numel() ** 0.5, (a, b, lag)


def test_the_steps_of_a_pair_are_independent_at_every_distance() -> None:
    """One hash serves both steps of an antithetic pair: each field of the first with those of the
    second that round, 2^14 elements apart at most either way, 32 pairs of 2^15 elements: |z| < 6
    (false alarms 5e-4 for 260,000 products)."""
    n, pairs, most = 1 << 15, 32, 1 << 14
    sums = torch.zeros(3, 2, n + 1, dtype=torch.complex64)
    for t in range(2, 2 * pairs + 2, 2):
        one, two = (word("antithetic", s, n, seed=2) for s in (t, t + 1))
        f = torch.fft.rfft(torch.stack([ref.sign_noise(one.field(i)) for i in range(3)]), 2 * n)
        g = torch.fft.rfft(torch.stack([ref.sign_noise(two.field(i)) for i in (1, 2)]), 2 * n)
        sums += f[:, None].conj() * g[None]
    products = torch.fft.irfft(sums, 2 * n)
    apart = torch.arange(most)
    z = 3 * products[..., :most] / ((n - apart) * pairs) ** 0.5
    assert float(z.abs().max()) < 6
    z = 3 * products[..., -most + 1 :].flip(-1) / ((n - apart[1:]) * pairs) ** 0.5
    assert float(z.abs().max()) < 6


def test_the_steps_of_a_pair_round_by_multipliers_of_their_own() -> None:
    """Power of the tests above: without them the second step rounds as the first did."""
    two, three = word("antithetic", 2), word("antithetic", 3)
    for which in (1, 2):
        assert not torch.equal(two.field(which), three.field(which))
        assert torch.equal(two.field(which), ref.draw(3, 2, 0, 0, 1 << 12, CPU).field(which))
    assert len({*random_bits.MULTIPLIERS, *random_bits.ODD}) == 5
    assert all(m % 2 for m in (*random_bits.MULTIPLIERS, *random_bits.ODD))


@kinds
def test_what_is_rounded_is_fresh(kind: str) -> None:
    """Means over time of the rounding fields of 1,024 elements vary like independent draws."""
    steps, elements = 2048, 1024
    for which in (1, 2):
        found = [ref.sign_noise(word(kind, t, elements).field(which)) for t in range(1, steps + 1)]
        spread = 3 * steps * float(torch.stack(found).mean(dim=0).square().mean())
        assert abs(spread - 1) < SIGMAS * (2 / elements) ** 0.5


@kinds
def test_neighbours_are_independent(kind: str) -> None:
    """Every lag up to 2^14 within and between fields, over 32 steps of 2^15 elements: the sign's
    noise stays over steps where it is golden, so its products are those of one."""
    n, steps, most = 1 << 15, 32, 1 << 14
    sums = torch.zeros(3, 3, n + 1, dtype=torch.complex64)
    for t in range(1, steps + 1):
        found = word(kind, t, n, seed=2)
        f = torch.fft.rfft(torch.stack([ref.sign_noise(found.field(i)) for i in range(3)]), 2 * n)
        sums += f[:, None].conj() * f[None]
    pairs = (n - torch.arange(most)) * steps
    r = 3 * torch.fft.irfft(sums, 2 * n)[..., :most] / pairs
    for which in range(3):
        r[which, which, 0] = 0
    z = r * pairs**0.5
    z[0, 0] /= {"golden": steps, "antithetic": 2}[kind] ** 0.5
    assert float(z.abs().max()) < 6, [
        float(z[a, b].abs().max()) for a in range(3) for b in range(3)
    ]
