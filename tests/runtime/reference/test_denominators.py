"""Roots in denominators, their reciprocals and inverse roots: rounding, ends, special values, and
every backend alike (docs/design.md#ratios)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import launch
from signconv.runtime.kernel import ops as dev
from signconv.runtime.reference import ops as ref
from signconv.verification.bits import different
from tests.decomposed import printed
from tests.runtime.reference.test_arithmetic import LARGEST, positive, ulps

CODEC: tl.constexpr = tl.constexpr(
    launch.device_codec(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
)
SMALLEST = 2.0**-100
#: Orders that have an inverse root.
ORDERS = [3, 4, 5, 7, 8, 9, 16]
SPECIAL = torch.tensor([0.0, 2.0**-149, 2.0**-126, 1.0, LARGEST, math.inf, math.nan])

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def mantissas(count: int, *exponents: int) -> Tensor:
    """``count`` mantissas, evenly, all of them if that is 2^23, at each power of two."""
    every = torch.arange(0x3F800000, 0x40000000, 2**23 // count).to(torch.int32)
    return torch.cat([every.view(torch.float32) * 2.0**e for e in exponents])


def denominators(count: int) -> Tensor:
    """Numbers a reciprocal is asked of: up to its ends, past the upper one, and no numbers."""
    ends = torch.tensor([2.0**126, 2.0**127, LARGEST, math.inf, math.nan, 2.0**-126])
    ends = torch.cat([ends, torch.nextafter(ends[:1], ends[1:2])])
    return torch.cat([mantissas(count, -126, -75, -50, 0, 1, 63, 125, 126), ends])


def squares(count: int) -> Tensor:
    """Of a root: both residues of the exponent, both ends, below the floor, random bits."""
    every = mantissas(count, -101, -100, -99, -1, 0, 1, 2, 126, 127)
    return torch.cat([every, SPECIAL, positive(count, seed=3)])


def test_reciprocals_are_correctly_rounded() -> None:
    """In float64 first: its 53 bits are more than 2*24 + 2.  Past 2^126 it is 0, as on a GPU, which
    has no subnormal results there; Inf is an overflow, and shows."""
    b = denominators(2**18)
    true = (1 / b.double()).float()
    assert different(ref.reciprocal(b), torch.where(b <= 2.0**126, true, b * 0)) == 0
    ends = ref.reciprocal(torch.tensor([2.0**126, 2.0**127, math.inf, math.nan]))
    assert ends[:2].tolist() == [2.0**-126, 0.0] and bool(ends[2:].isnan().all())


def test_roots_stay_away_from_zero() -> None:
    x = squares(2**18)
    true = torch.where(x < SMALLEST, 2.0**100, x.double().sqrt().float())
    assert different(ref.divisor_sqrt(x), torch.where(x < math.inf, true, math.nan)) == 0
    assert ref.divisor_sqrt(torch.zeros(1)).item() == 2.0**100
    assert bool(ref.divisor_sqrt(torch.tensor([math.inf, math.nan])).isnan().all())


@triton.jit
def _kernel(x_ptr, out_ptr, OP: tl.constexpr):
    i = tl.program_id(0) * 256 + tl.arange(0, 8)[:, None] * 32 + tl.arange(0, 32)[None, :]
    x = tl.load(x_ptr + i)
    y = dev.reciprocal(x, CODEC) if OP == "reciprocal" else dev.divisor_sqrt(x, CODEC)
    tl.store(out_ptr + i, y)


@quiet
@pytest.mark.parametrize("op", ["reciprocal", "divisor_sqrt"])
def test_a_kernel_agrees(op: str, device: str) -> None:
    """On a GPU every mantissa at every exponent above; interpreted, a few of them."""
    made = (denominators if op == "reciprocal" else squares)(2**23 if device == "cuda" else 2**9)
    x = torch.cat([made, torch.ones(-len(made) % 256)])
    out = torch.empty(len(x), device=device)
    _kernel[(len(x) // 256,)](x.to(device), out, op, num_warps=1, enable_fp_fusion=False)
    assert different(out.cpu(), getattr(ref, op)(x)) == 0


def powers(order: int, count: int) -> Tensor:
    """All residues of the exponent, both ends, below the floor, random bits."""
    every = mantissas(count, -140, -127, -126, *range(order), 127)
    return torch.cat([every, SPECIAL, positive(count, seed=order)])


@pytest.mark.parametrize("order", ORDERS)
def test_inverse_roots_are_as_close_as_they_claim(order: int) -> None:
    x = powers(order, 2**16)
    y = printed("inverse_root", order).reference(x)
    assert bool(y[~x.isfinite()].isnan().all())
    y, x = y[x.isfinite()], x[x.isfinite()]
    kept = x >= 2.0**-126 if order < 5 else x > 0
    assert bool((y[~kept] == 0).all())
    assert float(ulps(y[kept], x[kept].double().numpy() ** (-1 / order)).max()) <= 1.5


@quiet
@pytest.mark.parametrize("order", ORDERS)
def test_every_backend_agrees_on_inverse_roots(order: int, device: str) -> None:
    """On a GPU every mantissa of order 3."""
    count = 2**9 if device == "cpu" else 2**23 if order == 3 else 2**18
    x = powers(order, count)
    function = printed("inverse_root", order)
    expected = function.reference(x)
    assert different(function.in_kernel(x, device, 2**10), expected) == 0
    pytest.importorskip("llvmlite")
    assert different(function.on_cpu(x), expected) == 0
