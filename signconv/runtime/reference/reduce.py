"""Sums in PyTorch, and what is made of a tensor's sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from signconv.runtime.reference.arithmetic import sqrt


def tree_sum(x: Tensor) -> Tensor:
    """Sum of a flat tensor, neighbours first, as a tree that depends on nothing but the length."""
    if has_torch_function_unary(x):
        return handle_torch_function(tree_sum, (x,), x)
    while x.numel() > 1:
        if x.numel() % 2:
            x = torch.cat((x, x.new_zeros(1)))
        x = x[0::2] + x[1::2]
    return x.reshape(())


def norm_of_sum(total: Tensor, numel: int) -> Tensor:
    """The Euclidean norm from the sum of squares."""
    if has_torch_function_unary(total):
        return handle_torch_function(norm_of_sum, (total,), total, numel)
    return sqrt(total + 0.0)


def mean_of_sum(total: Tensor, numel: int) -> Tensor:
    """The mean from the sum."""
    if has_torch_function_unary(total):
        return handle_torch_function(mean_of_sum, (total,), total, numel)
    return torch.div(total + 0.0, torch.tensor(numel, dtype=torch.float32, device=total.device))


def sum_of_sum(total: Tensor, numel: int) -> Tensor:
    """The sum, or the extreme, itself: 0 and not -0."""
    if has_torch_function_unary(total):
        return handle_torch_function(sum_of_sum, (total,), total, numel)
    return total + 0.0
