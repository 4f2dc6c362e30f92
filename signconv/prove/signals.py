"""What a quantity is to the gradient's history: a weighted sum, or a sum or maximum of powers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from signconv.ir.nodes import Expr

#: One step earlier: the weights of a signal are the coefficients of a series in z.
Z = sp.Symbol("z")
ONE = sp.Integer(1)


class Unproved(Exception):
    """A proof does not go through; the message is the reason, in words for the user."""


@dataclass(frozen=True)
class Linear:
    """sum over k of a_k * u_{t-k}: ``weights`` is the series of a in z.

    ``atom`` is u: the gradient or a function of it alone; None where a recurrence has no input
    yet.  ``nonneg``: every weight is provably >= 0.
    """

    atom: Expr | None
    weights: Any
    nonneg: bool


@dataclass(frozen=True)
class Power:
    """(sum over k of c_k * abs(h_{t-k})**order)**(1/root) for the linear h = ``base``; c_k >= 0.

    With a ``rate`` the largest of rate**k * abs(h_{t-k})**order takes the place of the sum, and
    ``weights`` is a plain factor.  Not ``exact``: the quantity is only known to be at least this.
    """

    order: Any
    base: Linear
    weights: Any
    root: Any = ONE
    rate: Any = None
    exact: bool = True

    @property
    def plain(self) -> bool:
        """Whether it is abs(h)**order times a factor, without memory."""
        return self.rate is None and self.root == 1 and not self.weights.has(Z)


Signal = Linear | Power


def sum_of(a: Signal, b: Signal) -> Signal:
    """a + b; Unproved where that is no signal."""
    if isinstance(a, Linear) and a.atom is None:
        a, b = b, a
    weights = a.weights + b.weights
    if isinstance(b, Linear) and b.atom is None:
        if isinstance(a, Linear):
            return replace(a, weights=weights, nonneg=a.nonneg and b.nonneg)
        if b.nonneg and a.root == 1 and a.rate is None:
            return replace(a, weights=weights)
    if isinstance(a, Linear) and isinstance(b, Linear) and a.atom == b.atom:
        return replace(a, weights=weights, nonneg=a.nonneg and b.nonneg)
    if isinstance(a, Power) and isinstance(b, Power) and (a.order, a.root) == (b.order, b.root):
        if a.root == 1 and a.rate is None and b.rate is None and same_base(a.base, b.base):
            return replace(a, weights=weights, exact=a.exact and b.exact)
    raise Unproved("it adds quantities of different kinds")


def product_of(a: Signal, b: Signal, equal: bool) -> Signal:
    """a * b; ``equal``: they are the same expression."""
    if isinstance(a, Linear) and isinstance(b, Linear) and equal:
        return Power(sp.Integer(2), a, sp.Integer(1))
    if isinstance(a, Power) and isinstance(b, Power) and a.plain and b.plain:
        if same_base(a.base, b.base):
            return replace(a, order=a.order + b.order, weights=a.weights * b.weights)
    raise Unproved("it multiplies two quantities that depend on the gradient")


def same_base(a: Linear, b: Linear) -> bool:
    """Whether two linear signals are the same."""
    return a.atom == b.atom and sp.cancel(a.weights - b.weights) == 0
