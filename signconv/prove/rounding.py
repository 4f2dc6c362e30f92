"""What stochastic rounding of a stored moment does to the mean of an update
(docs/design.md#nearest-rounding-stalls).

Rounding is unbiased in the moment itself, so linear uses keep their mean.  In a denominator
x**-e the mean rises by about e*(e + 1)/2 times the relative variance of x (second order, Jensen).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from signconv.ir.analysis import Degrees
from signconv.ir.nodes import Expr, Moment, Op, Program, Ref, references, walk
from signconv.prove.ratios import fraction, product
from signconv.prove.signals import Linear, Unproved
from signconv.prove.symbolic import View
from signconv.runtime.formats import FORMATS

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """Relative change of the update's mean through one moment.

    use: "linear", "denominator", "other" (no estimate); ``single``: from one rounding, which is
    all that constant gradients cause; ``gaussian``: stationary, for Gaussian gradients.
    """

    moment: str
    format: str
    use: str
    exponent: float = 0.0
    single: float = 0.0
    gaussian: float | None = None


def _added(x: Array, mantissa: int, root: int) -> Array:
    """Variance of rounding x > 0 to a code below or above: (x - low)*(high - x), unbiased in x."""
    r = x ** (1 / root)
    spacing = 2.0 ** (np.floor(np.log2(r)) - mantissa)
    low = np.floor(r / spacing) * spacing
    return np.maximum((x - low**root) * ((low + spacing) ** root - x), 0.0)


def relative_variance(mantissa: int, root: int = 1) -> float:
    """Of one stochastic rounding, x log-uniform over a binade of its root.

    For root 1 the variance with spacing d is f*(1 - f)*d**2, f the place between two codes:
    d**2/6 on average; E[x**-2] over log-uniform x in [1, 2) is 3/(8 ln 2).
    """
    if root == 1:
        return 4.0**-mantissa / 6 * 3 / (8 * math.log(2))
    x = 2.0 ** (root * (np.arange(4096) + 0.5) / 4096)
    return float(np.mean(_added(x, mantissa, root) / x**2))


def stationary_variance(mantissa: int, beta: float, order: float, root: int = 1) -> float:
    """Relative variance of a stored EMA of abs(g)**order, g Gaussian, that every step rounds.

    Each step adds the variance of one rounding of beta*c + (1 - beta)*u at the code c, and
    the next steps keep beta**2 of it.
    """
    d = 2.0**-mantissa
    codes = np.arange(1.0, 2.0, d) ** root
    g = np.linspace(-8, 8, 2001)
    density = np.exp(-g * g / 2) / np.sum(np.exp(-g * g / 2))
    u = np.abs(g) ** order / np.sum(density * np.abs(g) ** order)
    x = codes[:, None] * (beta + (1 - beta) * u)
    added = np.sum(density * _added(x, mantissa, root), axis=1) / codes**2
    weights = codes ** (-1 / root)
    return float(np.sum(added * weights) / np.sum(weights) / (1 - beta**2))


def shifts(p: Program, formats: dict[str, str]) -> list[Shift]:
    """One entry per stored moment; ``formats`` maps moments to their storage."""
    over, under = fraction(p)
    above, below = _reads(over), _reads(under)
    # A matrix sign divides by nothing that it is found of
    signed = _reads([n for e in under for n in walk(e) if isinstance(n, Op) and n.fn == "msign"])
    try:
        linear = p.link != "sign" and isinstance(View(p).signal(product(over)), Linear)
    except Unproved:
        linear = False
    made = []
    for m in p.moments:
        if m.name in formats:  # others are one number for many elements, which nothing rounds
            form = formats[m.name]
            if linear and m.name in above and m.name not in below and _estimated(form):
                made.append(Shift(m.name, form, "linear"))
            else:
                made.append(_shift(p, m, form, m.name in below - above - signed))
    return made


def _estimated(form: str) -> bool:
    """Whether rounding in this format has an error model here: unbiased, or none."""
    return FORMATS[form].rounding != "nearest"


def _shift(p: Program, m: Moment, form: str, below: bool) -> Shift:
    degree = Degrees(p).moments[m.name]
    scales = isinstance(degree, int | float) and degree > 0
    if not below or not scales or not _estimated(form):
        return Shift(m.name, form, "other")
    assert isinstance(degree, int | float)
    bits, root = FORMATS[form].mantissa, FORMATS[form].order
    e = 1 / degree
    factor = e * (e + 1) / 2
    gaussian = None
    if m.kind == "ema" and isinstance(m.beta, Ref) and m.beta.kind == "hyper":
        h = p.hyper(m.beta.name)
        assert h is not None
        gaussian = factor * stationary_variance(bits, h.default, degree, root)
    return Shift(m.name, form, "denominator", e, factor * relative_variance(bits, root), gaussian)


def _reads(parts: list[Expr]) -> set[str]:
    return {n for e in parts for kind in ("value", "prev") for n in references(e, kind)}
