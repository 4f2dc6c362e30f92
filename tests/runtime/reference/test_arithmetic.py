"""Elementwise fp32 and scalar float64 functions: special values, rounding, the two halves alike.

Expected values come from NumPy, from exact fractions or from decimal arithmetic.  Nothing here is
statistical: a limit on an error is a bound that is derived or claimed where the function stands.
"""

import ast
import importlib
import inspect
import itertools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from signconv.render import printers
from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import launch
from signconv.runtime.kernel import ops as dev
from signconv.runtime.program import REDUCTION_KINDS
from signconv.runtime.reference import ops as ref
from signconv.runtime.reference.stages import reduce
from signconv.verification.bits import different
from tests.decomposed import printed

Rows = Callable[[int], int]
Array = npt.NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[3]
LARGEST = float(np.finfo(np.float32).max)
NORMAL = float(np.finfo(np.float32).tiny)
#: Zeros, infinities, NaN, subnormals, the ends of the normal range, neighbours of 1; both signs.
SPECIAL = [
    sign * x
    for x in (
        0.0, math.inf, math.nan, 2.0**-149, 2.0**-130, NORMAL - 2.0**-149, NORMAL, 1e-20,
        1 - 2.0**-24, 1.0, 1 + 2.0**-23, 3.0, 1e20, LARGEST / 2, LARGEST,
    )
    for sign in (1, -1)
]  # fmt: skip


def pairs() -> tuple[Tensor, Tensor]:
    """Every pair of special values, then random bits."""
    special = torch.tensor(SPECIAL)
    bits = torch.randint(
        -(1 << 31), 1 << 31, (2, 20_000), generator=torch.Generator().manual_seed(1)
    )
    random = bits.to(torch.int32).view(torch.float32)
    n = len(special)
    a = torch.cat([special.repeat_interleave(n), random[0]])
    b = torch.cat([special.repeat(n), random[1]])
    return a, b


def positive(n: int, seed: int) -> Tensor:
    """Random bits of positive floats, subnormals included, and every special value >= 0."""
    rng = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 0x7F800000, (n,), generator=rng, dtype=torch.int32)
    special = torch.tensor([x for x in SPECIAL if not math.copysign(1, x) < 0])
    return torch.cat([special, bits.view(torch.float32)])


def same(got: Tensor, expected: Array) -> bool:
    return different(got, torch.from_numpy(np.ascontiguousarray(expected, np.float32))) == 0


# ---------------------------------------------------------------- against NumPy


def extremum(a: Array, b: Array, largest: bool) -> Array:
    """np.maximum or np.minimum, which propagate NaN, with -0 < +0 on top."""
    result = (np.maximum if largest else np.minimum)(a, b)
    zeros = (a == 0) & (b == 0)
    negative = (np.signbit(a) & np.signbit(b)) if largest else (np.signbit(a) | np.signbit(b))
    return np.where(zeros, np.where(negative, -0.0, 0.0), result).astype(np.float32)


def test_maximum_and_minimum() -> None:
    a, b = pairs()
    assert same(ref.maximum(a, b), extremum(a.numpy(), b.numpy(), True))
    assert same(ref.minimum(a, b), extremum(a.numpy(), b.numpy(), False))
    for number in (0.0, -1.5, math.inf):  # clip has numbers for bounds
        many = np.full(len(a), number, np.float32)
        assert same(ref.maximum(a, number), extremum(a.numpy(), many, True))
        assert same(ref.minimum(a, number), extremum(a.numpy(), many, False))


def test_nonneg_maximum_on_its_domain() -> None:
    """Values that are never negative nor -0; NaN of either sign propagates."""
    x = positive(2000, seed=2)
    a, b = x.repeat(40), x.repeat_interleave(40)
    b = torch.cat([b, torch.tensor(math.nan).expand(len(a))])[: len(a)]
    assert same(ref.nonneg_maximum(a, b), extremum(a.numpy(), b.numpy(), True))
    special = torch.tensor([x for x in SPECIAL if x != x or math.copysign(1, x) > 0])
    a, b = special.repeat(len(special)), special.repeat_interleave(len(special))
    assert same(ref.nonneg_maximum(a, b), extremum(a.numpy(), b.numpy(), True))


@pytest.mark.parametrize("number", [1e-30, -1e-30, 2.5, math.inf])
def test_short_forms_beside_a_number_that_is_not_0(number: float) -> None:
    a, _ = pairs()
    many = np.full(len(a), number, np.float32)
    assert same(ref.nonneg_maximum(a, number), extremum(a.numpy(), many, True))
    assert same(ref.nonzero_minimum(a, number), extremum(a.numpy(), many, False))


def test_sign_keeps_zeros_and_nan() -> None:
    x, _ = pairs()
    a = x.numpy()
    one = np.where(np.signbit(a), -1.0, 1.0)
    expected = np.where(np.isnan(a), np.nan, np.where(a == 0, a, one))
    assert same(ref.sign(x), expected.astype(np.float32))


def test_mean_ratio_is_the_quotient_except_at_zero_by_zero() -> None:
    a, b = pairs()
    with np.errstate(all="ignore"):
        expected = np.where((a.numpy() == 0) & (b.numpy() == 0), 0, a.numpy() / b.numpy())
    assert same(ref.mean_ratio(a, b), expected.astype(np.float32))
    assert int(ref.mean_ratio(a, b).isnan().sum()) < int((a / b).isnan().sum())


def test_ratio_is_the_quotient_except_over_zero() -> None:
    """What underflowed in a denominator moves nothing; Inf and NaN above it still show."""
    a, b = pairs()
    with np.errstate(all="ignore"):
        expected = a.numpy() / b.numpy()
    expected[(b == 0).numpy() & a.isfinite().numpy()] = 0.0
    assert same(ref.ratio(a, b), expected)
    over = (b == 0) & (a != 0) & a.isfinite()
    assert bool(over.any()) and bool((ref.ratio(a, b)[over] == 0).all())
    assert bool(ref.ratio(torch.tensor([torch.inf]), torch.zeros(1)).isinf())


# ---------------------------------------------------------------- roots


def test_sqrt_is_correctly_rounded() -> None:
    """10^6 random floats, exactly: with y the result, x lies between the squares of the midpoints
    beside y.  A midpoint has 25 bits and its square 50, exact in float64.

    (Observed: torch.sqrt is not correctly rounded on an AMD EPYC, torch 2.13; see ref.sqrt.)
    """
    x = positive(10**6, seed=3)
    x = x[x.isfinite() & (x > 0)]
    y = ref.sqrt(x)
    below = (torch.nextafter(y, torch.tensor(0.0)).double() + y.double()) / 2
    above = (torch.nextafter(y, torch.tensor(math.inf)).double() + y.double()) / 2
    inside = (below * below <= x.double()) & (x.double() <= above * above)
    assert bool(inside.all())


def test_sqrt_of_special_values() -> None:
    x = torch.tensor([0.0, -0.0, math.inf, math.nan, -1.0, -math.inf, -(2.0**-149)])
    nan = math.nan
    expected = np.array([0.0, -0.0, math.inf, nan, nan, nan, nan], np.float32)
    assert same(ref.sqrt(x), expected)


def ulps(y: Tensor, exact: npt.NDArray[np.float64]) -> Tensor:
    """Distance in units of the floats' spacing at the exact value; Inf or NaN where y is not finite
    though the value is."""
    true = torch.from_numpy(exact)
    size = true.abs().clamp(max=LARGEST).to(torch.float32)
    below = torch.nextafter(size, torch.tensor(0.0))
    return (y.double() - true).abs() / (size - below).clamp(min=2.0**-149).double()


@pytest.mark.parametrize(
    ("name", "limit"), [("cbrt", 1), ("exp", 2), ("log", 2), ("tanh", 4)], ids=lambda x: str(x)
)
def test_other_functions_are_as_close_as_they_claim(name: str, limit: int) -> None:
    """The bound of each docstring, on 10^6 floats all over the domain, against float64."""
    x = torch.cat([positive(10**6, seed=4), torch.linspace(1e38, LARGEST, 1000)])
    if name == "exp":  # results from subnormal to the largest float
        x = torch.cat([torch.linspace(-103.9, 88.72, 10**6), x[x < 1], -x[x < 1]])
    if name == "tanh":
        x = torch.cat([torch.linspace(-9.5, 9.5, 10**6), x, -x])
    x = x[x.isfinite() & ((x > 0) | (name in ("exp", "tanh")))]
    y = printed(name).reference(x)
    distance = ulps(y, getattr(np, name)(x.double().numpy()))
    wrong = ~(distance <= limit)
    worst = torch.nan_to_num(distance, nan=torch.inf).argmax()
    assert not bool(wrong.any()), (int(wrong.sum()), x[worst], y[worst], distance[worst])


def test_other_functions_of_special_values() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, -1.0])
    with np.errstate(all="ignore"):
        assert same(printed("log").reference(x), np.log(x.numpy()))
        ends = x[[0, 1, 3, 4, 5]]
        assert same(printed("exp").reference(ends), np.exp(ends.numpy()))
    y = printed("tanh").reference(ends)
    assert y[:4].tolist() == [0, 0, 1, -1] and bool(y[4].isnan())
    roots = x[[0, 2, 3, 5]]
    assert same(printed("cbrt").reference(roots), roots.numpy())


# ---------------------------------------------------------------- float64 scalars


@pytest.mark.parametrize("base", [0.9, 0.95, 0.999, 0.99995, 1 - 2.0**-53, 0.5, 1.0, 0.0])
def test_power64_against_exact_fractions(base: float) -> None:
    """Binary powering is a product of t factors, so of t - 1 roundings: within (t - 1)/2^53.

    t = 2 is one product, hence correctly rounded.  Results below the normal range are left out.
    """
    exact = Fraction(base)
    assert ref.power64(base, 0) == 1.0
    assert ref.power64(base, 1) == base
    assert ref.power64(base, 2) == float(exact**2)
    for t in (3, 4, 7, 100, 1023, 4096, 10_000):
        true = exact**t
        if true and true < Fraction(2) ** -1000:
            assert ref.power64(base, t) < 2.0**-999
            continue
        assert abs(Fraction(ref.power64(base, t)) - true) <= true * (t - 1) / 2**53


def test_divide64_is_ieee_division() -> None:
    values = [*SPECIAL, 5e-324, -5e-324, 1e308, -1e308]
    for a, b in itertools.product(values, values):
        with np.errstate(all="ignore"):
            expected = float(np.float64(a) / np.float64(b))
        got = ref.divide64(a, b)
        if math.isnan(expected):
            assert math.isnan(got), (a, b)
        else:
            assert (got, math.copysign(1, got)) == (expected, math.copysign(1, expected)), (a, b)


def errors(
    function: Callable[..., float], cases: list[tuple[float, ...]], name: str
) -> list[float]:
    """Relative errors in units of 2^-52, against 60 decimal digits."""
    found = []
    with localcontext() as context:
        context.prec = 60
        for case in cases:
            given = [Decimal(x) for x in case]
            if name == "exp":
                true = given[0].exp()
            elif name == "log":
                true = given[0].ln()
            else:
                true = (given[1] * given[0].ln()).exp()
            found.append(float(abs(Decimal(function(*case)) / true - 1)) * 2**52)
    return found


def exponents() -> list[float]:
    rng = np.random.default_rng(5)
    return [*rng.uniform(-700, 700, 300), *rng.uniform(-1, 1, 300), 1e-300, -1e-9, 0.0, 1.0, 700.0]


def logarithms() -> list[float]:
    rng = np.random.default_rng(6)
    wide = np.exp(rng.uniform(-700, 700, 300))
    near = np.concatenate([rng.uniform(0.5, 2, 300), 1 + rng.uniform(-1e-6, 1e-6, 50)])
    return [*wide.tolist(), *near.tolist(), 0.96, 0.9, 2.0**0.5, 5e-300]


def test_exp64_and_log64_are_within_two_ulp() -> None:
    """The bound their docstrings claim; an ULP is at least 2^-53 of the value."""
    assert max(errors(ref.exp64, [(float(x),) for x in exponents()], "exp")) <= 2
    assert max(errors(ref.log64, [(float(x),) for x in logarithms()], "log")) <= 2
    assert ref.log64(1.0) == 0.0 and ref.exp64(0.0) == 1.0


def test_real_power64_is_as_good_as_its_exponent() -> None:
    """exp(y) of y = exponent*log(base), whose three roundings or so weigh |y|: 2 + 3|y| ULP."""
    rng = np.random.default_rng(7)
    bases = rng.uniform(0.5, 1.5, 300).tolist()
    powers = (10 ** rng.uniform(-3, 2, 300)).tolist()
    cases = list(zip(bases, powers))
    limits = [2 + 3 * abs(e * math.log(b)) for b, e in cases]
    found = errors(ref.real_power64, cases, "power")
    assert all(f <= limit for f, limit in zip(found, limits))


# ---------------------------------------------------------------- the kernel twins


#: As the kernels have it on the device of the tests.
CODEC = tl.constexpr(
    launch.device_codec(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
)


@triton.jit
def _tile_kernel(a_ptr, b_ptr, out_ptr, OP: tl.constexpr):
    """Tiles of [8, 32]: where PTX is used, each takes one branch as a whole."""
    i = tl.program_id(0) * 256 + tl.arange(0, 8)[:, None] * 32 + tl.arange(0, 32)[None, :]
    a = tl.load(a_ptr + i)
    b = tl.load(b_ptr + i)
    if OP == "sqrt":
        y = dev.sqrt(a, CODEC)
    elif OP == "divide":
        y = dev.divide(a, b, CODEC)
    elif OP == "ratio":
        y = dev.ratio(a, b, CODEC)
    else:
        y = dev.mean_ratio(a, b, CODEC)
    tl.store(out_ptr + i, y)


@triton.jit
def _unary_kernel(x_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=1.0)
    if OP == "sign":
        y = dev.sign(x)
    elif OP == "sqrt":
        y = dev.sqrt(x, CODEC)
    else:
        y = dev.bf16_nearest(x)
    tl.store(out_ptr + i, y, mask=i < n)


@triton.jit
def _binary_kernel(a_ptr, b_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + i, mask=i < n, other=1.0)
    b = tl.load(b_ptr + i, mask=i < n, other=1.0)
    if OP == "maximum":
        y = dev.maximum(a, b)
    elif OP == "minimum":
        y = dev.minimum(a, b)
    elif OP == "nonneg_maximum":
        y = dev.nonneg_maximum(a, b)
    elif OP == "short":
        y = dev.nonzero_minimum(dev.nonneg_maximum(a, -0.5), 1.5)
    elif OP == "clip":
        y = dev.minimum(dev.maximum(a, -0.5), 1.5)
    elif OP == "quotient":
        y = dev.quotient(a, b)
    elif OP == "sixth":
        y = dev.quotient(a, 6.0)
    else:
        y = dev.ratio(a, b, CODEC) if OP == "ratio" else dev.mean_ratio(a, b, CODEC)
    tl.store(out_ptr + i, y, mask=i < n)


@triton.jit
def _scalar_kernel(a_ptr, b_ptr, t_ptr, out_ptr, n, OP: tl.constexpr):
    for i in range(n):
        a = tl.load(a_ptr + i)
        if OP == "power64":
            y = dev.power64(a, tl.load(t_ptr + i))
        elif OP == "exp64":
            y = dev.exp64(a)
        elif OP == "log64":
            y = dev.log64(a)
        else:
            y = dev.real_power64(a, tl.load(b_ptr + i))
        tl.store(out_ptr + i, y)


@triton.jit
def _sum_kernel(x_ptr, numel_ptr, out_ptr, ROWS: tl.constexpr, KIND: tl.constexpr):
    n = tl.load(numel_ptr)
    i = tl.arange(0, ROWS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    x = tl.load(x_ptr + i, mask=i < n, other=dev.identity(KIND))
    rows = dev.tree_rows(x, ROWS, 32, KIND)
    tl.store(out_ptr + tl.arange(0, 1), dev.tree_rows(tl.reshape(rows, [1, ROWS]), 1, ROWS, KIND))


@triton.jit
def _of_sum_kernel(total_ptr, numel_ptr, out_ptr):
    total, n = tl.load(total_ptr), tl.load(numel_ptr)
    tl.store(out_ptr, dev.norm_of_sum(total, n))
    tl.store(out_ptr + 1, dev.mean_of_sum(total, n))


def elementwise(kernel, op: str, args: tuple[Tensor, ...], device: str, rows: Rows) -> Tensor:
    n = args[0].numel()
    block = 32 * rows(n)
    out = torch.empty(n, device=device)
    kernel[(-(-n // block),)](
        *(a.to(device) for a in args), out, n, op, block, enable_fp_fusion=False
    )
    return out.cpu()


# Infinities and NaN are among the inputs; NumPy, under the interpreter, remarks on them.
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def tiles(op: str, a: Tensor, b: Tensor, device: str) -> Tensor:
    out = torch.empty(len(a), device=device)
    _tile_kernel[(len(a) // 256,)](
        a.to(device), b.to(device), out, op, num_warps=1, enable_fp_fusion=False
    )
    return out.cpu()


QUOTIENTS = {"divide": torch.div, "ratio": ref.ratio, "mean_ratio": ref.mean_ratio}


@quiet
@pytest.mark.parametrize("op", ["sqrt", *QUOTIENTS])
def test_roots_and_quotients_of_tiles_are_correctly_rounded(op: str, device: str) -> None:
    """Every mantissa and a walk through all floats under the root; quotients of random bits, of
    numbers near 2^-60 and 2^60, where the branches meet, and of ordinary ones: tiles of one kind
    take the quick branch, mixed ones the other.  On a GPU millions, interpreted a few tiles."""
    count = 2**24 if device == "cuda" else 2**11
    rng = torch.Generator().manual_seed(7)
    wild = torch.randint(-(2**31), 2**31, (2, count), generator=rng).to(torch.int32)
    wild = wild.view(torch.float32)
    signs = torch.randint(0, 2, (2, count), generator=rng) * 2.0 - 1
    plain = (torch.rand(2, count, generator=rng) + 0.5) * signs
    edge = plain * torch.where(torch.rand(2, count, generator=rng) < 0.5, 2.0**-60, 2.0**60)
    a, b = torch.cat((wild, plain, edge, plain * 2.0**-30), dim=1)
    if op == "sqrt":
        every = torch.arange(0x3F800000, 0x40800000, 2**24 // count).to(torch.int32)
        walk = torch.arange(0, 0x7F800001, 0x7F800001 // count).to(torch.int32)
        a = torch.cat((every, walk)).view(torch.float32)
        a = torch.cat((a, *(every.view(torch.float32) * s for s in (2.0**-100, 2.0**98)), wild[0]))
        a = a[: len(a) // 256 * 256]
        b, expected = a, ref.sqrt(a)
    else:
        expected = QUOTIENTS[op](a, b)
    assert same(tiles(op, a, b, device), expected.numpy())


@quiet
@pytest.mark.parametrize(
    "op", ["maximum", "minimum", "ratio", "mean_ratio", "clip", "quotient", "sixth"]
)
def test_kernel_agrees_on_two_values(op: str, device: str, tile_rows: Rows) -> None:
    a, b = pairs()
    got = elementwise(_binary_kernel, op, (a, b), device, tile_rows)
    if op == "clip":
        expected = ref.minimum(ref.maximum(a, -0.5), 1.5)
    elif op == "sixth":
        expected = ref.quotient(a, 6.0)
        assert different(expected, a / torch.tensor([6.0])) == 0
    else:
        expected = getattr(ref, op)(a, b)
    assert different(got, expected) == 0


@quiet
def test_kernel_agrees_on_nonneg_maximum(device: str, tile_rows: Rows) -> None:
    x = positive(20_000, seed=8)
    special = x[: len(SPECIAL) // 2]
    a = torch.cat([special.repeat(len(special)), x])
    b = torch.cat([special.repeat_interleave(len(special)), x.flip(0)])
    got = elementwise(_binary_kernel, "nonneg_maximum", (a, b), device, tile_rows)
    assert different(got, ref.nonneg_maximum(a, b)) == 0


@quiet
def test_kernel_agrees_on_what_is_clipped(device: str, tile_rows: Rows) -> None:
    a, b = pairs()
    got = elementwise(_binary_kernel, "short", (a, b), device, tile_rows)
    assert different(got, ref.nonzero_minimum(ref.nonneg_maximum(a, -0.5), 1.5)) == 0
    assert different(got, ref.minimum(ref.maximum(a, -0.5), 1.5)) == 0


@quiet
@pytest.mark.parametrize("op", ["sign", "sqrt", "bf16_nearest"])
def test_kernel_agrees_on_one_value(op: str, device: str, tile_rows: Rows) -> None:
    x = positive(200_000, seed=9)
    if op != "sqrt":
        x = torch.cat([pairs()[0], torch.linspace(-110, 100, 100_000), x, -x])
    got = elementwise(_unary_kernel, op, (x,), device, tile_rows)
    assert different(got, getattr(ref, op)(x)) == 0


@quiet
@pytest.mark.parametrize("name", ["cbrt", "exp", "log", "tanh"])
def test_every_backend_agrees_on_functions(name: str, device: str, tile_rows: Rows) -> None:
    x = positive(200_000, seed=9)
    if name not in ("cbrt", "log"):
        x = torch.cat([pairs()[0], torch.linspace(-110, 100, 100_000), x, -x])
    function = printed(name)
    expected = function.reference(x)
    got = function.in_kernel(x, device, 32 * tile_rows(x.numel()))
    assert different(got, expected) == 0
    pytest.importorskip("llvmlite")
    assert different(function.on_cpu(x), expected) == 0


@triton.jit
def _divided_kernel(x_ptr, out_ptr, N: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, dev.divided(tl.load(x_ptr + i), N))


@pytest.mark.parametrize("n", [3, 5, 7, 11, 16])
def test_whole_numbers_divide_alike(n: int, device: str) -> None:
    """What is at least 0, as the bits of positive floats are: both ends, a walk between them."""
    walk = torch.arange(0, 2**31, 2**31 // 3000)[:3000]
    x = torch.cat([torch.arange(512), walk, 2**31 - 1 - torch.arange(584)]).to(torch.int32)
    out = torch.empty_like(x, device=device)
    _divided_kernel[(1,)](x.to(device), out, n, len(x))
    expected = [value // n for value in x.tolist()]
    assert ref.divided(x, n).tolist() == expected
    assert out.tolist() == expected


@quiet
@pytest.mark.parametrize("op", ["power64", "exp64", "log64", "real_power64"])
def test_kernel_agrees_on_float64_scalars(op: str, device: str) -> None:
    """One program, a loop over the cases; bit for bit in float64."""
    cases: list[tuple[float, ...]]
    if op == "power64":
        bases = (0.9, 0.999, 0.99995, 0.5, 1.0, 0.0)
        cases = list(itertools.product(bases, (0, 1, 2, 3, 100, 12_345, 2**31 + 1)))
        expected = [ref.power64(base, int(t)) for base, t in cases]
    elif op == "real_power64":
        cases = list(itertools.product((0.96, 0.5, 1.0, 1.5), (0.004, 1.0, 40.5, -3.0)))
        expected = [ref.real_power64(*case) for case in cases]
    else:
        inputs = exponents()[::5] if op == "exp64" else [*logarithms()[::5], 0.0, -1.0]
        cases = [(float(x), 0.0) for x in inputs]
        expected = [getattr(ref, op)(x) for x, _ in cases]
    given = torch.tensor(cases, dtype=torch.float64, device=device).T.contiguous()
    out = torch.empty(len(cases), dtype=torch.float64, device=device)
    steps = given[1].to(torch.int64)
    _scalar_kernel[(1,)](given[0], given[1], steps, out, len(cases), op, enable_fp_fusion=False)
    expected_bits = torch.tensor(expected, dtype=torch.float64)
    nan = out.cpu().isnan() & expected_bits.isnan()
    wrong = (out.cpu().view(torch.int64) != expected_bits.view(torch.int64)) & ~nan
    assert not bool(wrong.any()), [c for c, w in zip(cases, wrong.tolist()) if w]


@pytest.mark.parametrize("n", [1, 5, 32, 33, 500, 511, 512])
def test_kernel_sums_by_the_same_tree(n: int, device: str) -> None:
    """Six decades of both signs, so that another order of the additions gives other bits."""
    rng = torch.Generator().manual_seed(10)
    x = torch.randn(n, generator=rng) * 10.0 ** (6 * torch.rand(n, generator=rng))
    numel = torch.tensor(n, device=device)
    total = torch.zeros(1, device=device)
    _sum_kernel[(1,)](x.to(device), numel, total, 16, REDUCTION_KINDS.index("sum"))
    expected = ref.tree_sum(x)
    assert different(total[0], expected) == 0
    if n == 512:
        assert different(x.flip(0).cumsum(0)[-1], expected) == 1  # the order shows
    of_sum = torch.zeros(2, device=device)
    _of_sum_kernel[(1,)](total.abs(), numel, of_sum)
    assert different(of_sum[0], ref.norm_of_sum(expected.abs(), n)) == 0
    assert different(of_sum[1], ref.mean_of_sum(expected.abs(), n)) == 0


@pytest.mark.parametrize("kind", ["amax", "amin"])
@pytest.mark.parametrize("special", [0.0, -0.0, torch.nan, torch.inf, -torch.inf])
def test_kernel_takes_extremes_as_the_reference_does(
    kind: str, special: float, device: str
) -> None:
    x = torch.full((70,), -0.0)
    x[41] = special
    best = torch.zeros(1, device=device)
    which = REDUCTION_KINDS.index(kind)
    numel = torch.tensor(70, device=device)
    _sum_kernel[(1,)](x.to(device), numel, best, 16, which)
    expected = reduce(kind, x, (1, 70, 1), False)
    assert different(best[0] + 0.0, expected[0]) == 0


# ---------------------------------------------------------------- the two modules


#: Public in one module alone, each for a reason.
ONLY_DEVICE = {
    "divide",  # the reference has torch.div
    *("scalar_kernel", "store_keys"),  # the reference does what they do in Python
    *("hash_elements", "field"),  # the reference has ``draw`` and Word.field
    *("multiplied", "rehash", "turned"),  # the reference has GoldenWord and AntitheticWord
    *("double64", "where64"),  # what Python has: numbers of one kind, a conditional expression
    *(
        "encode_blocks",
        "encode_root_blocks",
        "encode_halves",
        "encode_int8_blocks",
        "decode_halves",
    ),  # the reference does it inside store_moment
    # The reference's load_float, load_param and load_moment in two: a kernel fetches early
    *("load", "widen", "fetch_moment", "decode_param"),
    *("decode", "encode"),  # by format; the reference's are methods of Format
    *("extent", "places", "block_elements"),  # of a kernel's loop, and of its tiles
    "tile_maximum",  # for branches, which the reference has none of
    *("combined", "identity", "tree_rows"),  # of tiles; the reference reduces whole tensors
}
ONLY_TORCH = {
    "lasting_word",  # the kernel picks by a constant
    "divide64",  # Python raises at zero, a kernel divides
    *(
        "draw",
        "draw_words",
        "element_numbers",
        "step_keys",
        "signed32",
    ),  # a kernel is given its keys
    *(
        "load_float",
        "load_param",
        "load_moment",
        "load_apart",
    ),  # a kernel fetches first and decodes later
    "decode_bf16",  # tests and reference; kernels do it inside widen
    *("block_scale", "least_scale"),  # kernels: inside encode, where it is one of two results
    "scales_of",  # kernels: inside decode
    *("padded", "trimmed"),  # a kernel does not store what is no element
    "either",  # torch.where of two numbers has the default dtype, a kernel's has fp32
}


#: Functions of a room for another room, which nothing else calls.
INNER = {
    "roots": {"encode_roots", "root_scale"},
    "arithmetic": {"tile_maximum"},
    "codecs": {"codec_of"},
    "scalars": {"scalar_kernel"},
    "random_bits": {"signed32"},
}
#: What a half gathers beside functions.
CLASSES = {"kernel": set(), "reference": {"Word"}}
ROOMS = ("codecs", "arithmetic", "memory", "random_bits", "reduce", "roots", "scalars")
#: What a half has beside the rooms: how it is run.
BESIDE = {
    "kernel": {
        *(
            "backend",
            "bucket",
            "constants",
            "engine",
            "folds",
            "gradients",
            "interpreter",
            "launch",
            "matrices",
            "ops",
            "passes",
            "ptx",
            "ptx4",
            "reading",
            "stages",
            "step",
            "sums",
            "values",
            "walk",
        ),
        "__init__",
    },
    "reference": {"backend", "bits", "ops", "squares", "stages", "step", "__init__"},
}


def room(half: str, name: str) -> ModuleType:
    return importlib.import_module(f"signconv.runtime.{half}.{name}")


def public(module: ModuleType) -> set[str]:
    """Public functions a module defines itself; of kernel functions none but these count."""
    names = set()
    for name, value in vars(module).items():
        kernel = type(value).__name__ in ("JITFunction", "InterpretedFunction")
        function = value.fn if kernel else value
        own = inspect.isfunction(function) and function.__module__ == module.__name__
        if own and kernel == (".kernel." in module.__name__) and not name.startswith("_"):
            names.add(name)
    return names


def test_both_halves_have_the_same_functions_in_the_same_rooms(device: str) -> None:
    runtime = ROOT / "signconv" / "runtime"
    for half, beside in BESIDE.items():
        assert {p.stem for p in (runtime / half).glob("*.py")} == {*ROOMS, *beside}
    only_device, only_torch = set(), set()
    for name in ROOMS:
        triton_, torch_ = public(room("kernel", name)), public(room("reference", name))
        assert triton_ & torch_
        only_device |= triton_ - torch_
        only_torch |= torch_ - triton_
    assert only_device == ONLY_DEVICE
    assert only_torch == ONLY_TORCH


@pytest.mark.parametrize("half", [dev, ref], ids=["kernel", "reference"])
def test_the_halves_gather_every_function_of_their_rooms(half: ModuleType) -> None:
    names = {}
    for name in ROOMS:
        module = room(half.__name__.split(".")[2], name)
        found = {n: getattr(module, n) for n in public(module) - INNER.get(name, set())}
        assert not names.keys() & found.keys()
        names |= found
    assert set(half.__all__) == set(names) | CLASSES[half.__name__.split(".")[2]]
    assert all(getattr(half, n) is function for n, function in names.items())


def test_every_name_that_generated_code_may_call_exists() -> None:
    """In printers and generated files: ``dev.name`` and ``ref.name``, ``tl`` aside."""
    text = "".join(path.read_text() for path in ROOT.glob("generated/*.py"))
    calls = [
        name
        for printer in vars(printers).values()
        if isinstance(printer, type)
        for name in getattr(printer, "calls", {}).values()
    ]
    assert {"dev.maximum", "ref.sqrt", "dev.divide"} <= set(calls)
    words = set(text.replace("(", " ").replace("{", " ").split()) | set(calls)
    found = {"dev": set(), "ref": set()}
    for word in words:
        module, _, name = word.lstrip("-").partition(".")
        if module in found and name.isidentifier():
            found[module].add(name)
    assert {"sign", "fma", "ratio", "power64"} <= found["dev"] & found["ref"]
    assert found["dev"] <= set(dev.__all__)
    assert found["ref"] <= set(ref.__all__)


# ---------------------------------------------------------------- forms that round differently

BANNED = ("addcmul", "addcdiv", "lerp", "rsqrt", "fma")


def banned_forms(source: str, allow: tuple[str, ...] = ()) -> list[str]:
    """Calls that round differently from one operation after the other, or not correctly.

    Methods, in-place and foreach forms included; ``allow`` names functions that may take a root
    of a float64 tensor.
    """
    found = []

    def visit(node: ast.AST, inside: str) -> None:
        if isinstance(node, ast.FunctionDef):
            inside = node.name
        if isinstance(node, ast.keyword) and node.arg == "alpha":
            found.append("alpha=")
        if isinstance(node, ast.Attribute):
            name = node.attr.removeprefix("_foreach_").strip("_")
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if name in BANNED and not (name == "fma" and owner in ("ref", "dev")):
                found.append(node.attr)
            if name == "sqrt" and owner not in ("ref", "dev", "math") and inside not in allow:
                found.append(f"{owner}.sqrt")
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), "")
    return found


def test_the_reference_uses_no_form_that_rounds_differently() -> None:
    runtime = ROOT / "signconv" / "runtime"
    for name in ROOMS:
        allow = ("sqrt",) if name == "arithmetic" else ()
        assert banned_forms((runtime / "reference" / f"{name}.py").read_text(), allow) == [], name
    assert banned_forms((runtime / "reference" / "backend.py").read_text()) == []
    generated = sorted(ROOT.glob("generated/*.py"))
    assert generated
    for path in generated:
        assert banned_forms(path.read_text()) == [], path.name


@pytest.mark.parametrize(
    "line",
    [
        "m.add_(g, alpha=0.1)", "torch.sub(p, g, alpha=lr)", "p.addcdiv_(m, v)",
        "torch.addcmul(v, g, g)", "torch.lerp(m, g, w)", "m.lerp_(g, w)", "torch._foreach_lerp_(m)",
        "torch.sqrt(v)", "v.sqrt()", "v.sqrt_()", "torch.rsqrt(v)",
    ],
)  # fmt: skip
def test_the_search_for_such_forms_finds_them(line: str) -> None:
    assert len(banned_forms(line)) == 1
    assert banned_forms("'torch.sqrt'  # alpha=") == []
