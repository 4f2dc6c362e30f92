"""a*b + c rounded once: against exact fractions, in the kernel, and on the CPU backend."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import arithmetic, launch
from signconv.runtime.kernel import ops as dev
from signconv.runtime.reference import ops as ref
from signconv.verification.bits import different

LARGEST = float(np.finfo(np.float32).max)
TINY = 2.0**-149
SPECIAL = [
    s * x
    for x in (0.0, math.inf, math.nan, TINY, 2.0**-126, 1 - 2.0**-24, 1.0, 1 + 2.0**-23, LARGEST)
    for s in (1, -1)
]
CODEC: tl.constexpr = tl.constexpr(
    launch.device_codec(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
)

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def triples(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Special values; random bits; sums where one rounding and two differ: near ties of fp32, of
    float64, cancelling, and among subnormal numbers."""
    rng = torch.Generator().manual_seed(5)
    special = torch.tensor([*itertools.product(SPECIAL, repeat=3)])
    wild = torch.randint(-(2**31), 2**31, (count, 3), generator=rng).to(torch.int32)
    wild = wild.view(torch.float32)
    a, b = 1 + torch.rand(2, count, generator=rng)
    product = a.double() * b.double()
    cancel = torch.stack([a, b, -product.float()], dim=1)
    power = torch.randint(-60, 30, (count,), generator=rng).double()
    apart = torch.stack([a, b, (2**power).float() * torch.sign(a - 1.5)], dim=1)
    # a*b is half a unit of c's last place or next to it: what is lost in float64 decides
    half = torch.stack([a, torch.full_like(a, 2.0**-24), 1 + (a * 2**22).round() * 2.0**-23], dim=1)
    odd = 1 + (2 * torch.randint(0, 2**10, (count,), generator=rng) + 1) * 2.0**-12
    tie = torch.stack([odd, odd * 2.0**-13, torch.full_like(odd, 2.0**-90)], dim=1)
    tie[::2, 2] *= -1
    small = torch.stack([a * 2.0**-70, b * 2.0**-70, wild[:, 0].abs() * 0 + TINY * 3], dim=1)
    small[::2, 2] = 0
    edge = torch.stack([a * 2.0**-63, b * 2.0**-64, a * 2.0**-126], dim=1)
    every = torch.cat([special, wild, cancel, apart, half, tie, small, edge])
    x, y, z = every[: len(every) // 32 * 32].T.contiguous()
    return x, y, z


def nearest(x: Fraction) -> float:
    """The fp32 number nearest to x != 0, ties to even."""
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    made = float(round(size / unit) * unit)  # ties to even, as the mantissa is the multiple
    made = math.inf if made > LARGEST else made
    return math.copysign(made, x)


def exact(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    with np.errstate(all="ignore"):
        wide = a.double().numpy() * b.double().numpy() + c.double().numpy()
    out = []
    for x, y, z, w in zip(a.tolist(), b.tolist(), c.tolist(), wide.tolist(), strict=True):
        value = w
        if math.isfinite(x) and math.isfinite(y) and math.isfinite(z):
            whole = Fraction(x) * Fraction(y) + Fraction(z)
            value = nearest(whole) if whole else w  # of zeros float64 has the sign
        out.append(value)
    return torch.tensor(out, dtype=torch.float64).float()


def test_the_reference_rounds_once() -> None:
    a, b, c = triples(4000)
    expected = exact(a, b, c)
    assert different(ref.fma(a, b, c), expected) == 0
    assert different(a * b + c, expected) > 1000, "these would not tell one rounding from two"
    twice = (a.double() * b.double() + c.double()).float()
    assert different(twice, expected) > 1000, "these would not tell float64 from one rounding"


def test_numbers_are_operands() -> None:
    a, b, c = triples(200)
    two, half = torch.full_like(a, 2.0), torch.full_like(a, -0.5)
    assert different(ref.fma(2.0, b, c), exact(two, b, c)) == 0
    assert different(ref.fma(a, -0.5, c), exact(a, half, c)) == 0
    assert different(ref.fma(a, b, 2.0), exact(a, b, two)) == 0


@triton.jit
def _kernel(a_ptr, b_ptr, c_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + i, mask=i < n, other=1.0)
    b = tl.load(b_ptr + i, mask=i < n, other=1.0)
    c = tl.load(c_ptr + i, mask=i < n, other=1.0)
    if OP == "fma":
        y = dev.fma(a, b, c, CODEC)
    elif OP == "numbers":
        y = dev.fma(2.0, b, c, CODEC)
    else:
        y = arithmetic._emulated_fma(a, b, c)
    tl.store(out_ptr + i, y, mask=i < n)


@quiet
@pytest.mark.parametrize("op", ["fma", "numbers", "emulated"])
def test_the_kernel_rounds_once(op: str, device: str) -> None:
    a, b, c = triples(4000)
    out = torch.empty(len(a), device=device)
    block = 1024
    _kernel[(-(-len(a) // block),)](
        *(x.to(device) for x in (a, b, c)), out, len(a), op, block, enable_fp_fusion=False
    )
    first = torch.full_like(a, 2.0) if op == "numbers" else a
    assert different(out.cpu(), ref.fma(first, b, c)) == 0
