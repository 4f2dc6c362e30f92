"""Linear layers whose three matrix products take FP8 inputs (Micikevicius et al. 2022).

Weights and activations are E4M3, gradients E5M2, each with one scale per tensor from its largest
element; sums are fp32, results bf16.  Where ``torch._scaled_mm`` does not run (a CPU) the inputs
are rounded the same and multiplied as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes, and the fp32 number that they are multiplied with to give x."""
    largest = x.abs().amax().float().clamp(min=1e-12)
    scale = torch.finfo(dtype).max / largest
    return (x.float() * scale).to(dtype), scale.reciprocal()


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """a @ b of scaled codes."""
    if a[0].is_cuda:
        # The first row by row, the second column by column, as the tensor cores want them
        right = b[0].t().contiguous().t()
        made: Tensor = torch._scaled_mm(
            a[0].contiguous(), right, scale_a=a[1], scale_b=b[1], out_dtype=dtype
        )
        return made
    return ((a[0].float() @ b[0].float()) * (a[1] * b[1])).to(dtype)


class _Product(torch.autograd.Function):
    """x @ w.t() and both gradients, all from FP8 inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        x8, w8 = scaled(x, E4M3), scaled(w, E4M3)
        ctx.save_for_backward(*x8, *w8)
        return product(x8, (w8[0].t(), w8[1]), x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = gradients
        x, x_scale, w, w_scale = ctx.saved_tensors
        g8 = scaled(g, E5M2)
        along = product(g8, (w, w_scale), g.dtype)
        return along, product((g8[0].t(), g8[1]), (x, x_scale), g.dtype)


class FP8Linear(nn.Linear):
    """nn.Linear without bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        made: Tensor = _Product.apply(x.flatten(0, -2), self.weight)
        return made.unflatten(0, x.shape[:-1])
