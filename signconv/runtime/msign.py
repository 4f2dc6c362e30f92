"""The matrix sign in PyTorch: ``polar``'s iterations by matrix products in bf16.

On a GPU matrices of one shape go through cuBLAS together, which may sum in another order than for
one matrix alone: results there are the same from run to run, and within a bound of each other
whatever the batch (docs/design.md#matrix-signs).  On a CPU the same roundings are made of products
in fp32, matrix by matrix, so that they do not depend on what else is stepped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime import polar

#: Elements that go through the products together, at most, where one matrix has fewer.
TOGETHER = 1 << 26
#: Of a matrix to its start: zeros, whose norm has no inverse, stay zeros.
LARGEST_FACTOR = 2.0**126


def matrix_sign(x: Tensor, how: str) -> None:
    """Replace matrices, fp32 [matrices, rows, columns], by their signs.

    Zeros stay zeros; a matrix with NaN or Inf becomes NaN.  how: ``polar.named``.
    """
    count, rows, columns = x.shape
    if x.numel() == 0:
        return
    apart = max(1, TOGETHER // (rows * columns)) if x.device.type == "cuda" else 1
    for first in range(0, count, apart):
        _signs(x[first : first + apart], how)


def _signs(x: Tensor, how: str) -> None:
    emulated = x.device.type != "cuda"
    rows, columns = x.shape[1:]
    factor = _inverse_norm(x)
    made = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    torch.mul(x, factor, out=made)
    made = made.float() if emulated else made
    for a, b, c in polar.triples(how):
        gram = _rounded(made @ made.mT if rows <= columns else made.mT @ made, emulated)
        inner = _rounded(torch.baddbmm(gram, gram, gram, beta=b, alpha=c), emulated)
        left, right = (inner, made) if rows <= columns else (made, inner)
        made = _rounded(torch.baddbmm(made, left, right, beta=a), emulated)
    x.copy_(made)


def _rounded(x: Tensor, emulated: bool) -> Tensor:
    """Products come out of a GPU in bf16."""
    return x.bfloat16().float() if emulated else x


def _inverse_norm(x: Tensor) -> Tensor:
    """1 / Frobenius norm, fp32 [matrices, 1, 1], from squares in float64; finite where the matrix
    is."""
    if x.device.type == "cuda":
        from signconv.runtime.kernel.sums import matrix_squares

        squares = matrix_squares(x)
    else:
        squares = x.double().square().sum(dim=(1, 2))
    factor = (1.0 / squares.sqrt()).clamp(max=LARGEST_FACTOR)
    return factor.float().view(-1, 1, 1)
