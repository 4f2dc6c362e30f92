"""The matrix sign in PyTorch: ``polar``'s iterations by matrix products in bf16.

On a GPU matrices of one shape go through cuBLAS together, which may sum in another order than for
one matrix alone: results there are the same from run to run, and within a bound of each other
whatever the batch (docs/design.md#matrix-signs).  On a CPU the same roundings are made of products
in float64, matrix by matrix, so that they depend neither on what else is stepped nor on the
precision that torch is told for fp32 products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime import polar

#: Elements that go through the products together, at most, where one matrix has fewer.
TOGETHER = 1 << 26
#: Of a matrix to its start: zeros, whose norm has no inverse, stay zeros.
LARGEST_FACTOR = 2.0**126


def matrix_sign(x: Tensor, how: str, out: Tensor) -> None:
    """Write the signs of matrices, fp32 [matrices, rows, columns], to ``out``, of their shape: bf16
    numbers in bf16 or fp32, which may lie where ``x`` does.

    Zeros stay zeros; a matrix with NaN or Inf becomes NaN.  how: ``polar.named``.
    """
    count, rows, columns = x.shape
    if x.numel() == 0:
        return
    apart = max(1, TOGETHER // (rows * columns)) if x.device.type == "cuda" else 1
    with torch.autocast(x.device.type, enabled=False):  # it casts operands of products
        for first in range(0, count, apart):
            _signs(x[first : first + apart], how, out[first : first + apart])


def _signs(x: Tensor, how: str, out: Tensor) -> None:
    if x.device.type == "cuda":
        from signconv.runtime.kernel.matrices import squares, started

        made = started(x, _factors(squares(x)))
    else:
        factors = _factors(x.double().square().sum(dim=(1, 2)))
        made = (x * factors.view(-1, 1, 1)).bfloat16()
    wide = x.shape[1] <= x.shape[2]
    direct = out.dtype == torch.bfloat16 and out.device.type == "cuda"
    steps = polar.triples(how)
    for i, (a, b, c) in enumerate(steps):
        gram = _product(None, made, made.mT) if wide else _product(None, made.mT, made)
        inner = _product(gram, gram, gram, b, c)
        left, right = (inner, made) if wide else (made, inner)
        if direct and i + 1 == len(steps):
            torch.baddbmm(made, left, right, beta=a, out=out)
            return
        made = _product(made, left, right, a)
    out.copy_(made)


def _factors(squares: Tensor) -> Tensor:
    """1 / Frobenius norms, fp32, of sums of squares in float64; finite where the matrix is."""
    return (1.0 / squares.sqrt()).clamp(max=LARGEST_FACTOR).float()


def _product(
    x: Tensor | None, left: Tensor, right: Tensor, beta: float = 0.0, alpha: float = 1.0
) -> Tensor:
    """beta * x + alpha * left @ right of bf16 matrices, rounded once."""
    if left.device.type == "cuda":
        if x is None:
            return torch.bmm(left, right)
        return torch.baddbmm(x, left, right, beta=beta, alpha=alpha)
    left, right = left.double(), right.double()
    if x is None:
        return (left @ right).bfloat16()
    return torch.baddbmm(x.double(), left, right, beta=beta, alpha=alpha).bfloat16()
