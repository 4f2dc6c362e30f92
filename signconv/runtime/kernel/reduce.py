"""Sums in Triton, and what is made of a tensor's sum."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton


@triton.jit
def tree_sum(x, N: tl.constexpr, LEVELS: tl.constexpr):
    """Sum of N = 2**LEVELS numbers, neighbours first: the tree does not depend on the launch."""
    for level in tl.static_range(LEVELS):
        left, right = tl.split(tl.reshape(x, [N >> (level + 1), 2]))
        x = left + right
    return x


@triton.jit
def store_partial(ptr, x, mask, ROWS: tl.constexpr, LEVELS: tl.constexpr):
    """Store the sum of a tile [ROWS, 32] of 2**LEVELS elements, without those outside the mask."""
    flat = tl.reshape(tl.where(mask, x, 0.0), [ROWS * 32])
    tl.store(ptr + tl.arange(0, 1), tree_sum(flat, ROWS * 32, LEVELS))


@triton.jit
def norm_of_sum(total, numel):
    """The Euclidean norm from the sum of squares."""
    return tl.sqrt_rn(total)


@triton.jit
def mean_of_sum(total, numel):
    """The mean from the sum."""
    return tl.div_rn(total, numel.to(tl.float32))
