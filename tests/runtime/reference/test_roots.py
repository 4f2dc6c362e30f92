"""Roots and powers of any order, and moments stored as E4M3 codes of their roots.

Expected values come from float64, exact fractions, or sums over all 65,536 random halves.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from signconv.lower import storage
from signconv.lower.powers import NEWTON, split
from signconv.runtime.formats import FORMATS, ROOT, ROOT_ORDERS
from signconv.runtime.kernel import constants
from signconv.runtime.reference import ops as ref
from signconv.runtime.reference import roots as root_codec
from signconv.verification.bits import different
from tests.decomposed import printed

Rows = Callable[[int], int]
#: Every upper half of a field, in the middle of what may follow
FIELDS = (torch.arange(1 << 16, dtype=torch.int32) << 16) | 0x8000
UNIT = torch.tensor(127)  # the byte of scale 1
EXPONENTS = (1.5, 1 / 1.5, 2.5, 1 / 2.5, 1.1, 1.37, 1 / 7.3, 3.3, 7.7, 16.0)
roots = pytest.mark.parametrize("n", NEWTON)
orders = pytest.mark.parametrize("n", ROOT_ORDERS)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def floats(n: int, seed: int) -> Tensor:
    """Positive floats of all exponents, the smallest subnormals, the largest, and around 1."""
    bits = torch.randint(1, 0x7F800000, (n,), generator=rng(seed), dtype=torch.int32)
    ends = torch.cat([torch.arange(1, 300), torch.arange(0x7F7FFF00, 0x7F800000)]).int()
    near = 0x3F800000 + torch.arange(-300, 300, dtype=torch.int32)
    return torch.cat([bits, ends, near]).view(torch.float32)


def ulps(got: Tensor, wanted: np.ndarray) -> float:
    """The largest distance in units in the last place of fp32, results in its normal range."""
    kept = (wanted > 1.2e-38) & (wanted < 3.4e38)
    spacing = np.spacing(wanted[kept].astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(got.double().numpy()[kept] - wanted[kept]) / spacing))


# ---------------------------------------------------------------- functions of a kernel's math


def root(x: Tensor, n: int) -> Tensor:
    return printed("newton_root", n).reference(x)


def real_power(x: Tensor, e: float) -> Tensor:
    return printed("real_power", *split(e)).reference(x)


@roots
def test_root_is_within_one_ulp(n: int) -> None:
    x = floats(200_000, n)
    assert ulps(root(x, n), x.double().numpy() ** (1 / n)) <= 1
    whole = torch.arange(1.0, 5.0)
    assert torch.equal(root(root_codec.power(whole, n), n), whole)


@pytest.mark.parametrize("e", EXPONENTS)
def test_real_power_is_as_close_as_it_claims(e: float) -> None:
    x = floats(200_000, 3)
    with np.errstate(over="ignore"):
        wanted = x.double().numpy() ** e
    got = real_power(x, e)
    assert ulps(got, wanted) <= (4 if e <= 2 else 20)
    assert bool(got[torch.tensor(wanted > 3.5e38)].isinf().all())
    assert float(got[torch.tensor(wanted < 1e-46)].sum()) == 0


def test_special_values() -> None:
    x = torch.tensor([0.0, torch.inf, torch.nan, -1.0, 1.0])
    wanted = torch.tensor([0.0, torch.inf, torch.nan, torch.nan, 1.0])
    for got in (root(x, 5), root(x, 16), real_power(x, 1.5)):
        assert different(got, wanted) == 0


@pytest.mark.parametrize("e", EXPONENTS)
def test_split_is_exact_where_it_must_be(e: float) -> None:
    high, low = split(e)
    assert abs(high + low - e) <= e * 2**-34
    for k in (-149, -127, 1, 127):  # times any exponent of a float: still 24 bits
        assert np.float64(np.float32(high) * np.float32(k)) == high * k


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, on Inf and NaN
@pytest.mark.parametrize("which", [*NEWTON, *EXPONENTS])
def test_every_backend_agrees(which: float, device: str, tile_rows: Rows) -> None:
    x = torch.cat([floats(30_000, 4), torch.tensor([0.0, torch.inf, torch.nan, -2.0])])
    if which in NEWTON and isinstance(which, int):
        function = printed("newton_root", which)
    else:
        function = printed("real_power", *split(which))
    expected = function.reference(x)
    got = function.in_kernel(x, device, 32 * tile_rows(len(x)))
    assert different(got, expected) == 0
    pytest.importorskip("llvmlite")
    assert different(function.on_cpu(x), expected) == 0


# ---------------------------------------------------------------- codes of roots


def stored(v: Tensor, field: Tensor, n: int) -> tuple[Tensor, Tensor]:
    code = torch.empty(v.shape, dtype=torch.uint8)
    scale = torch.empty(len(v) // 32, dtype=torch.uint8)
    ref.store_moment(code, scale, v, field, FORMATS[f"e4m3-root{n}"])
    return code, scale


def loaded(code: Tensor, scale: Tensor, n: int) -> Tensor:
    return ref.load_moment(code, scale, FORMATS[f"e4m3-root{n}"])


def spread(count: int, n: int, seed: int) -> Tensor:
    """Moments of order n whose roots span four decades in every block."""
    r = 10.0 ** (-4 * torch.rand(count, generator=rng(seed), dtype=torch.float64))
    return (r**n).float()


def test_orders_are_the_same_in_compiler_and_runtime() -> None:
    assert storage.ROOT_ORDERS == ROOT_ORDERS
    assert {f.code for f in FORMATS.values() if f.order > 1} == {ROOT + n for n in ROOT_ORDERS}
    assert constants.ROOT.value == ROOT


@orders
def test_guess_is_below_the_root_and_near(n: int) -> None:
    """What the choice between two codes rests on: codes are 1/16 apart at least."""
    low = 2.0 ** (-9 * n - 1)
    x = torch.cat([floats(300_000, 5), torch.linspace(1, 2.0**n, 300_000)])
    x = x[(x >= low) & (x < 2.0 ** (8 * n))]
    ratio = root_codec._root_below(x, n).double() / x.double() ** (1 / n)
    assert float(ratio.min()) > 0.95 and float(ratio.max()) < 1
    assert float(root_codec._root_below(torch.zeros(1), n)) == 0


@orders
def test_mean_over_all_halves_is_the_moment(n: int) -> None:
    """E r**n = v within 2^-17 of the gap between the two codes' powers, and a few ULP of v."""
    v = spread(32, n, seed=6)
    many = v.repeat(1 << 16)
    code, scale = stored(many, FIELDS.repeat_interleave(32), n)
    back = loaded(code, scale, n).double().view(-1, 32).T
    low, high = back.amin(dim=1), back.amax(dim=1)
    bound = (high - low) * 2.0**-17 + v.double() * 2.0**-21
    error = (back.mean(dim=1) - v.double()).abs()
    assert bool((error <= bound).all()), (error / bound).max()
    assert float((error / bound).max()) > 0.3
    two = (back == low[:, None]) | (back == high[:, None])
    assert bool(two.all())
    unit = 2.0 ** (float(scale[0]) - 127)
    table = ref.decode_fp8(torch.arange(0x7F, dtype=torch.uint8), "e4m3").double()
    at = [torch.searchsorted(table, (x ** (1 / n) / unit) * (1 + 1e-6)) for x in (low, high)]
    assert int((at[1] - at[0]).max()) == 1 and bool((low <= v).all() and (v <= high).all())


@orders
def test_linear_probability_would_be_biased(n: int) -> None:
    """docs/design.md#roots: rounding the root without bias shifts the moment, visibly."""
    v = torch.full((1 << 16,), (1.0625**n))
    plain = root_codec.power(
        ref.decode_fp8(ref.encode_fp8(real_power(v, 1 / n), UNIT, FIELDS, "e4m3"), "e4m3"),
        n,
    )
    code, scale = stored(v, FIELDS, n)
    ours = loaded(code, scale, n)
    assert abs(float(plain.double().mean() / v[0]) - 1) > 1e-3
    assert abs(float(ours.double().mean() / v[0]) - 1) < 1e-5


@orders
def test_codes_never_move(n: int) -> None:
    """Exact: a load and a store with any rounding change neither codes nor scales."""
    code = torch.arange(0x78, dtype=torch.int32).repeat(32)
    code[::32] = 0x70 + torch.arange(120) % 8
    code = code.to(torch.uint8)
    for byte in (118, 121, 124):
        scale = torch.full((120,), byte, dtype=torch.uint8)
        v = loaded(code, scale, n)
        for field in (0, 0x7FFFFFFF, -1):
            again, again_scale = stored(v, torch.full(v.shape, field, dtype=torch.int32), n)
            assert torch.equal(again, code) and torch.equal(again_scale, scale)


@orders
def test_scale_is_that_of_the_largest_root(n: int) -> None:
    """Every exponent of the block's maximum: its code lies in the binade below the last one, and
    what is largest never decodes to Inf."""
    exponent = torch.arange(0, 255, dtype=torch.int32).repeat(2)
    mantissa = torch.tensor([0, 0x7FFFFF], dtype=torch.int32).repeat_interleave(255)
    v = torch.zeros(510 * 32)
    v[::32] = ((exponent << 23) | mantissa).view(torch.float32)
    for field in (0, -1):
        code, scale = stored(v, torch.full(v.shape, field, dtype=torch.int32), n)
        top = code[::32].int()
        clear = exponent - 127 >= -(126 // n) * n  # below, the scale stays
        assert int(top[clear].min()) >= 0x70 and int(top.max()) <= 0x78
        back = loaded(code, scale, n)[::32]
        assert bool(back.isfinite().all())
        inside = clear & (exponent < 251)
        ratio = (back / v[::32])[inside]
        assert float(ratio.min()) > 0.3 and float(ratio.max()) < 2.7


@orders
def test_special_values_harm_themselves_alone(n: int) -> None:
    v = spread(32, n, seed=7)
    v[0] = 2.0
    rows = v.repeat(5, 1)
    rows[1, 5], rows[2, 5], rows[3], rows[4] = torch.nan, torch.inf, torch.nan, 0.0
    field = torch.randint(0, 1 << 16, (32,), generator=rng(8), dtype=torch.int32) << 16
    code, scale = stored(rows.view(-1), field.repeat(5), n)
    back, others = loaded(code, scale, n).view(5, 32), torch.arange(32) != 5
    assert torch.equal(back.isnan(), ~rows.isfinite())
    for damaged in (1, 2):
        assert torch.equal(code.view(5, 32)[damaged][others], code.view(5, 32)[0][others])
    assert bool((back[4] == 0).all())


@orders
def test_scale_equivariance(n: int) -> None:
    """Gradients times 2^k, so moments times 2^(k*n): codes stay and scale bytes shift by k."""
    v = spread(256, n, seed=9)
    field = torch.randint(0, 1 << 16, (256,), generator=rng(10), dtype=torch.int32) << 16
    code, scale = stored(v, field, n)
    assert len(code.unique()) > 60
    # as far as even the smallest of the 256 is a normal number
    lowest = int(np.ceil((-126 - np.log2(float(v.min()))) / n))
    assert lowest < -1
    for k in range(lowest, 124 // n):
        other, other_scale = stored(v * 2.0 ** (k * n), field, n)
        assert torch.equal(other, code), k
        assert torch.equal(other_scale.int(), scale.int() + k), k


@pytest.mark.parametrize(("n", "beta", "steps"), [(5, 0.999, 3000), (8, 0.9, 60)])
def test_a_long_average_is_unbiased(n: int, beta: float, steps: int) -> None:
    """An EMA from 0 towards 1, stored at every step: mean within four standard errors of the exact
    one; 2048 lanes in blocks of 32.  Nearest rounding stalls."""
    gen = rng(11)
    v = torch.zeros(2048)
    for _ in range(steps):
        v = torch.tensor(beta) * v + torch.tensor(1 - beta)
        field = torch.randint(0, 1 << 16, v.shape, generator=gen, dtype=torch.int32) << 16
        v = loaded(*stored(v, field, n), n)
    exact = 1 - beta**steps
    x = v.double()
    assert abs(float(x.mean()) - exact) < 4 * float(x.std()) / len(x) ** 0.5
    assert float(x.std()) > 0.01


def test_probability_in_exact_fractions() -> None:
    """Where a code and its neighbour lie at lo and hi, the number of halves that round up is
    that of (h + 1/2)/2^16 < (v - lo^n)/(hi^n - lo^n)."""
    n, lo, hi = 5, 9, 10
    for v in (Fraction(59_050), Fraction(70_000), Fraction(99_999), Fraction(160_001, 2)):
        x = torch.full((1 << 16,), float(v))
        code, scale = stored(x, FIELDS, n)
        back = loaded(code, scale, n)
        up = int((back == hi**n).sum())
        assert up + int((back == lo**n).sum()) == 1 << 16
        wanted = (v - lo**n) / (hi**n - lo**n) * 2**16
        assert abs(up - wanted) <= 1
