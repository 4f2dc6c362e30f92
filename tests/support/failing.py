"""A backward that fails on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FailsInBackward(torch.autograd.Function):
    """The identity, whose backward raises RuntimeError."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise RuntimeError("failed on the way")
