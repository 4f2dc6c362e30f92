"""How far a matrix sign in bf16 products may be from its iteration in exact arithmetic.

First order: what a step's roundings add, times the largest slope of the steps that are left on the
singular values that can be there (for odd functions of singular values that is the Lipschitz
constant in the Frobenius norm; docs/design.md#matrix-signs).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from signconv.runtime import polar

#: Unit roundoff of bf16, and what one addition of a product's fp32 sums may be off, in whatever
#: order and with the truncation of tensor cores.
BF16, ADDED = 2.0**-8, 2.0**-22
_POINTS = 2048


def sign_error(x: Any, radius: float, how: str) -> float:
    """A bound, in the Frobenius norm, of what bf16 products make of a matrix beside ``polar``'s
    iteration of ``x`` [rows, columns], float64.

    radius: how far what they start from may be from ``x``, in that norm.
    """
    norm = float(np.linalg.norm(x))
    if norm == 0:
        return 0.0 if radius == 0 else float(np.sqrt(min(x.shape))) * polar.largest(how)
    s = np.linalg.svd(x / norm, compute_uv=False)
    inner = max(x.shape)
    # Of the start: the box, the factor 1/norm in fp32, and the rounding of all elements to bf16
    error = 2 * radius / norm + BF16 + inner * ADDED
    for triple in polar.triples(how):
        error *= _slope(triple, s, error)
        error += _added(triple, s, inner)
        s = np.abs(_at(triple, s))
    return error


def _added(triple: polar.Triple, s: Any, inner: int) -> float:
    """What the roundings of one step add to its result."""
    a, b, c = map(abs, triple)
    gram, top = s * s, float(s.max())
    fro, fro_gram = float(np.linalg.norm(s)), float(np.linalg.norm(gram))
    summed = inner * ADDED
    of_gram = BF16 * fro_gram + summed * fro**2
    middle = triple[1] * gram + triple[2] * gram * gram
    fro_middle = float(np.linalg.norm(middle))
    of_middle = BF16 * fro_middle + (b + 2 * c * top**2) * of_gram + c * summed * fro_gram**2
    out = float(np.linalg.norm(_at(triple, s)))
    return BF16 * out + of_middle * top + summed * (fro_middle * fro + a * fro)


def _slope(triple: polar.Triple, s: Any, error: float) -> float:
    """The Lipschitz constant of one step for matrices whose singular values are near ``s``."""
    low, high = max(0.0, float(s.min()) - error), float(s.max()) + error
    x = np.linspace(low, high, _POINTS)
    a, b, c = triple
    slopes = np.abs(a + 3 * b * x**2 + 5 * c * x**4)
    ratios = np.abs(a + b * x**2 + c * x**4)  # of (p(s) + p(t)) / (s + t), and of p(s) / s
    return 1.01 * float(max(slopes.max(), ratios.max()))


def _at(triple: polar.Triple, s: Any) -> Any:
    a, b, c = triple
    return s * (a + s * s * (b + s * s * c))
