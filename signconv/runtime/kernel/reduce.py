"""Reductions in Triton, and what is made of a sum."""

from __future__ import annotations

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel.arithmetic import maximum, minimum
from signconv.runtime.kernel.constants import AMAX, AMIN, INTERPRETED


@triton.jit
def tree_sum(x, N: tl.constexpr, LEVELS: tl.constexpr):
    """Sum of N = 2**LEVELS numbers, neighbours first: the tree does not depend on the launch."""
    for level in tl.static_range(LEVELS):
        left, right = tl.split(tl.reshape(x, [N >> (level + 1), 2]))
        x = left + right
    return x


@triton.jit
def combined(a, b, KIND: tl.constexpr):
    """Of two partial results."""
    if KIND == AMAX:
        return maximum(a, b)
    if KIND == AMIN:
        return minimum(a, b)
    return a + b


@triton.jit
def identity(KIND: tl.constexpr):
    """What changes no result."""
    if KIND == AMAX:
        return float("-inf")
    if KIND == AMIN:
        return float("inf")
    return 0.0


@triton.jit
def tree_rows(x, WIDTH: tl.constexpr, N: tl.constexpr, KIND: tl.constexpr):
    """[WIDTH, N] -> [WIDTH], N a power of two up to 4,096, neighbours first."""
    for level in tl.static_range(12):
        if N >> (level + 1) > 0:
            pairs = tl.reshape(x, [WIDTH, N >> (level + 1), 2])
            # Between threads by shuffles, where ``split`` goes by shared memory
            if KIND == AMAX and not INTERPRETED:
                x = tl.reduce(pairs, 2, maximum)
            elif KIND == AMIN and not INTERPRETED:
                x = tl.reduce(pairs, 2, minimum)
            elif KIND >= AMAX:  # the interpreter reduces by functions one number at a time
                left, right = tl.split(pairs)
                x = combined(left, right, KIND)
            else:
                x = tl.sum(pairs, axis=2)
    return tl.reshape(x, [WIDTH])


@triton.jit
def norm_of_sum(total, numel):
    """The Euclidean norm from the sum of squares."""
    return tl.sqrt_rn(total + 0.0)


@triton.jit
def mean_of_sum(total, numel):
    """The mean from the sum."""
    return tl.div_rn(total + 0.0, numel.to(tl.float32))


@triton.jit
def sum_of_sum(total, numel):
    """The sum, or the extreme, itself: 0 and not -0."""
    return total + 0.0
