"""How far a matrix sign made of bf16 products is from its iteration in exact arithmetic.

Roundings to bf16 are taken as independent errors of relative root mean square ROUNDED, equal in all
directions.  In the basis of the singular vectors a step of the iteration multiplies an error, to
first order, by divided differences of its polynomial, entry by entry, so that variances go from
step to step (docs/design.md#matrix-signs).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor

from signconv.runtime import msign, polar
from signconv.runtime.reference import stages

#: 2**-7 / sqrt(12) times the root mean square of 1/m, m in [1, 2) with density 1 / (m log 2).
ROUNDED = 2.0**-7 * (1 / 12 * 3 / 8 / np.log(2)) ** 0.5
#: By how much a bound is above the root mean square: few directions may carry most of an error.
MARGIN = 4.0


def sign_error(x: Any, radius: float, how: str) -> float:
    """A bound, in the Frobenius norm, of what bf16 products make of a matrix beside ``polar``'s
    iteration of ``x`` [rows, columns], float64.

    radius: how far what they start from may be from ``x``, in that norm.
    """
    norm = float(np.linalg.norm(x))
    if norm == 0:
        return 0.0 if radius == 0 else float(np.sqrt(min(x.shape))) * polar.largest(how)
    s = np.linalg.svd(x / norm, compute_uv=False)
    apart = max(x.shape) - len(s)  # columns beyond a square
    errors = _Errors(len(s), apart)
    errors.add(ROUNDED**2)
    worst = 2 * radius / norm
    for triple in polar.triples(how):
        worst *= errors.propagate(triple, s)
        errors.add(_added(triple, s))
        s = np.abs(polar.value(triple, s))
    return MARGIN * errors.size + worst


class _Errors:
    """Variances of an error's entries in the singular basis: of (E + E^T)/2 and (E - E^T)/2 of its
    square part, and of the columns beyond that."""

    def __init__(self, rank: int, apart: int) -> None:
        self.rank, self.apart = rank, apart
        self.even, self.odd = np.zeros((rank, rank)), np.zeros((rank, rank))
        self.beyond = np.zeros(rank)

    @property
    def size(self) -> float:
        """Root mean square of its Frobenius norm."""
        return float(np.sqrt(self.even.sum() + self.odd.sum() + self.apart * self.beyond.sum()))

    def add(self, squared: float) -> None:
        """An error of this mean square of its Frobenius norm, equal in all directions."""
        each = squared / (self.rank * (self.rank + self.apart))
        self.even += each / 2
        self.odd += each / 2
        self.beyond += each

    def propagate(self, triple: polar.Triple, s: Any) -> float:
        """One step of the iteration; returns the largest factor."""
        a, b, c = triple
        x, y = s[:, None], s[None, :]
        # (p(x) - p(y)) / (x - y), (p(x) + p(y)) / (x + y), p(x) / x: exact, without a quotient
        even = a + b * (x * x + x * y + y * y) + c * (
            x**4 + x**3 * y + x * x * y * y + x * y**3 + y**4
        )  # fmt: skip
        odd = a + b * (x * x - x * y + y * y) + c * (
            x**4 - x**3 * y + x * x * y * y - x * y**3 + y**4
        )  # fmt: skip
        beyond = a + b * s**2 + c * s**4
        self.even, self.odd = self.even * even**2, self.odd * odd**2
        self.beyond = self.beyond * beyond**2
        largest = max(np.abs(even).max(), np.abs(odd).max())
        return float(max(largest, np.abs(beyond).max()) if self.apart else largest)


def _added(triple: polar.Triple, s: Any) -> float:
    """Mean square of what the roundings of one step add to its result."""
    _, b, c = triple
    gram = s * s
    inner = (b + c * (gram[:, None] + gram[None, :])) ** 2
    of_gram = ROUNDED**2 * np.sum(gram**2) * inner.mean()
    of_middle = ROUNDED**2 * np.sum((b * gram + c * gram**2) ** 2) + of_gram
    result = polar.value(triple, s)
    return float(ROUNDED**2 * np.sum(result**2) + of_middle * np.sum(gram) / len(s))


class Replay:
    """The reference's matrix signs in place of a kernel's, on whatever device each is.

    Products of two devices, or of other batches, agree within their bounds alone: ``worst`` is the
    largest distance of a kernel's own sign from the reference's of the same operand, in units of
    both their bounds; ``unknown`` counts operands that differ from all of the reference's.
    """

    def __init__(self) -> None:
        self.worst, self.taken, self.unknown = 0.0, 0, 0
        self._known: dict[tuple[str, bytes], Tensor] = {}

    def record(self, x: Tensor, how: str, out: Tensor) -> None:
        """The reference's ``matrix_sign``, remembered."""
        operands = x.cpu().clone()
        msign.matrix_sign(x, how, out)
        for one, sign in zip(operands, out, strict=True):
            self._known[how, one.numpy().tobytes()] = sign.detach().cpu().clone()

    def take(self, x: Tensor, how: str, out: Tensor) -> None:
        """The kernel's, of which each sign is held against what is remembered, and replaced."""
        operands = x.cpu().clone()
        msign.matrix_sign(x, how, out)
        for i, one in enumerate(operands):
            known = self._known.get((how, one.numpy().tobytes()))
            if known is None:
                self.unknown += 1
                continue
            self.taken += 1
            bound = 2 * sign_error(one.double().numpy(), 0.0, how)
            gap = out[i].cpu().double() - known.double()
            gap[out[i].cpu().isnan() & known.isnan()] = 0
            apart = float(gap.norm()) if gap.isfinite().all() else np.inf
            self.worst = max(self.worst, apart / bound if apart else 0.0)
            out[i] = known.to(out.device, out.dtype)


@contextmanager
def replayed() -> Iterator[Replay]:
    """Inside the context kernels take the signs that the reference took of the same matrices."""
    from signconv.runtime.kernel import stages as of_kernels

    replay = Replay()
    with (
        patch.object(stages, "matrix_sign", replay.record),
        patch.object(of_kernels, "matrix_sign", replay.take),
    ):
        yield replay


@contextmanager
def watched() -> Iterator[list[tuple[Any, Any]]]:
    """What the reference backend takes matrix signs of inside the context, and what it makes of
    that, float64 [matrices, rows, columns] each."""
    found: list[tuple[Any, Any]] = []

    def watching(x: Tensor, how: str, out: Tensor) -> None:
        before = x.double().numpy().copy()
        msign.matrix_sign(x, how, out)
        found.append((before, out.double().numpy().copy()))

    with patch.object(stages, "matrix_sign", watching):
        yield found
