"""The matrix sign in PyTorch: ``polar``'s iterations by matrix products in bf16.

On a GPU matrices of one shape go through cuBLAS together, which may sum in another order than for
one matrix alone: results there are the same from run to run, and within a bound of each other
whatever the batch (docs/design.md#matrix-signs).  On a CPU the same roundings are made of products
in fp32, matrix by matrix, so that they do not depend on what else is stepped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from signconv.runtime import polar

#: Elements that go through the products together, at most, where one matrix has fewer.
TOGETHER = 1 << 26
#: Largest numbers within which a sum of squares is neither too large for fp32 nor too small.
SAFE = (2.0**-40, 2.0**40)
_LARGEST_FACTOR = 2.0**126


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
    """1 / Frobenius norm, fp32 [matrices, 1, 1]; of numbers whose squares leave fp32's range, 1 /
    an upper bound of it; finite where the matrix is."""
    top = torch.linalg.vector_norm(x, math.inf, dim=(1, 2), keepdim=True)
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    low, high = SAFE
    bound = 1.0 / top * (1.0 / math.sqrt(x.shape[1] * x.shape[2]))
    made = torch.where((top > low) & (top < high), 1.0 / norm, bound)
    return made.clamp(max=_LARGEST_FACTOR)
