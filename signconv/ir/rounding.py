"""What stochastic rounding of a stored moment does to the mean of an update (algorithms.md C8).

Rounding is unbiased in the moment itself, so linear uses keep their mean.  In a denominator
x**-e the mean rises by about e*(e + 1)/2 times the relative variance of x (second order, Jensen).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from signconv.ir.analysis import Degrees, scalar_moments
from signconv.ir.nodes import Moment, Program, Ref, references
from signconv.ir.ratios import factors, inlined

#: Stored mantissa bits of each format; others are not estimated.
MANTISSA = {"fp32": 23, "bf16": 7, "e4m3": 3, "e5m2": 2}


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


def relative_variance(mantissa: int) -> float:
    """Of one stochastic rounding, x log-uniform over a binade.

    With spacing d the variance is f*(1 - f)*d**2, f the place between two codes: d**2/6 on
    average; E[x**-2] over log-uniform x in [1, 2) is 3/(8 ln 2).
    """
    return 4.0**-mantissa / 6 * 3 / (8 * math.log(2))


def stationary_variance(mantissa: int, beta: float, order: float) -> float:
    """Relative variance of a stored EMA of abs(g)**order, g Gaussian, that every step rounds.

    Each step adds the variance of one rounding of beta*c + (1 - beta)*u at the code c, and
    the next steps keep beta**2 of it.
    """
    d = 2.0**-mantissa
    codes = np.arange(1.0, 2.0, d)
    g = np.linspace(-8, 8, 2001)
    density = np.exp(-g * g / 2) / np.sum(np.exp(-g * g / 2))
    u = np.abs(g) ** order / np.sum(density * np.abs(g) ** order)
    x = codes[:, None] * (beta + (1 - beta) * u)
    spacing = d * 2.0 ** np.floor(np.log2(x))
    place = x / spacing % 1
    added = np.sum(density * place * (1 - place) * spacing**2, axis=1) / codes**2
    weights = 1 / codes
    return float(np.sum(added * weights) / np.sum(weights) / (1 - beta**2))


def shifts(p: Program, formats: dict[str, str]) -> list[Shift]:
    """One entry per stored moment; ``formats`` maps moments to their storage."""
    top, bottom = _reads(p, "numerator"), _reads(p, "denominator")
    made = []
    for m in p.moments:
        if m.name not in scalar_moments(p):
            made.append(_shift(p, m, formats[m.name], m.name in top, m.name in bottom))
    return made


def _shift(p: Program, m: Moment, form: str, above: bool, below: bool) -> Shift:
    known = form in MANTISSA
    if above and not below and p.link != "sign" and known:
        return Shift(m.name, form, "linear")
    degree = Degrees(p).moments[m.name]
    if not below or above or not known or not isinstance(degree, int | float) or degree <= 0:
        return Shift(m.name, form, "other")
    e = 1 / degree
    factor = e * (e + 1) / 2
    gaussian = None
    if m.kind == "ema" and isinstance(m.beta, Ref) and m.beta.kind == "hyper":
        h = p.hyper(m.beta.name)
        assert h is not None
        gaussian = factor * stationary_variance(MANTISSA[form], h.default, degree)
    return Shift(
        m.name, form, "denominator", e, factor * relative_variance(MANTISSA[form]), gaussian
    )


def _reads(p: Program, role: str) -> set[str]:
    """Moments that numerator or denominator reads, through temporaries and quotients."""
    over, under = factors(p, inlined(p, p.numerator))
    if p.denominator is not None:
        below, above = factors(p, inlined(p, p.denominator))
        over, under = over + above, under + below
    found = set()
    for e in over if role == "numerator" else under:
        found |= references(e, "value") | references(e, "prev")
    return found
