"""Suprema of ratios of series in closed form, where the weights are geometric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy as sp

from signconv.prove.ratios import Hypers, Ratio
from signconv.prove.signals import Unproved, Z

Terms = list[tuple[Any, Any]]


def partial_fractions(e: Any) -> tuple[list[Any], Terms]:
    """The series of ``e`` as (first weights, [(A, r)]): the k-th is first[k] + sum A * r**k."""
    top, bottom = (sp.Poly(x, Z) for x in sp.fraction(sp.cancel(sp.together(e))))
    quotient, rest = sp.div(top, bottom, Z)
    poles = []
    for f, power in sp.factor_list(bottom.as_expr(), Z)[1]:
        f = sp.Poly(f, Z)
        if f.degree() == 0:
            continue
        if f.degree() > 1 or power > 1 or f.eval(0) == 0:
            raise Unproved("its weights are no finite sum of geometric terms")
        poles.append(sp.cancel(-f.coeff_monomial(Z) / f.eval(0)))
    terms = []
    for r in poles:
        others = sp.prod([1 - s / r for s in poles if s != r])
        terms.append((sp.factor(rest.eval(1 / r) / (bottom.eval(0) * others)), r))
    head = [] if quotient.is_zero else quotient.all_coeffs()[::-1]
    return [sp.factor(x) for x in head], terms


def supremum(r: Ratio, hypers: Hypers) -> Any:
    """The supremum as a formula of the hyperparameters, None where there is no closed one.

    Factors are written so that they are positive at ``hypers``.
    """
    at = r.values(hypers)
    try:
        first, terms = partial_fractions(r.a)
        first_c, terms_c = ([], [(sp.Integer(1), r.rate)]) if r.rate else partial_fractions(r.c)
    except Unproved:
        return None
    p = r.order
    kappa = sp.cancel(r.a / r.c)
    if r.rate is None and not kappa.has(Z):
        total = sp.simplify(r.c.subs(Z, 1))
        return _power(kappa, 1, at) * (_power(total, 1 - 1 / p, at) if p > 1 else 1)
    if len(terms_c) > 1 or (terms and not terms_c):
        return None
    n = max(len(first), len(first_c))
    head = [(_at(first, terms, k), _at(first_c, terms_c, k)) for k in range(n)]
    if any(sp.simplify(a) != 0 and c == 0 for a, c in head):
        return None
    head = [(a, c) for a, c in head if c != 0]
    if len(terms) > 2:
        return None  # no formula that anybody reads
    C, s = terms_c[0] if terms_c else (1, 1)
    if p == 2:
        x = [(A * B / C, u * v / s) for A, u in terms for B, v in terms]
        total = sum(a**2 / c for a, c in head) + sum(y * z**n / (1 - z) for y, z in x)
        return _power(total, sp.Rational(1, 2), at)
    if len(terms) > 1:
        return None
    tail = [(_power(A, 1, at), u) for A, u in terms]
    if r.rate is not None:
        values = [_power(a, 1, at) * s**-k for k, (a, _) in enumerate(head)]
        values += [A * (u / s) ** n / (1 - u / s) for A, u in tail]
        return _power(sum(values), 1, at) / _power(r.c, 1, at)
    if p == 1:
        values = [_power(a / c, 1, at) for a, c in head]
        return sp.Max(*values, *(_power(A / C * (u / s) ** n, 1, at) for A, u in tail))
    q = p / (p - 1)
    values = [_power(a, q, at) * _power(c, 1 - q, at) for a, c in head]
    for A, u in tail:
        rho = u**q * s ** (1 - q)
        values.append(_power(A, q, at) * _power(C, 1 - q, at) * rho**n / (1 - rho))
    total = sum(values)
    return sp.powdenest(total, force=False) ** (1 / q)


def condition(r: Ratio) -> tuple[str, ...]:
    """What makes the supremum finite, beyond the legal ranges, one inequality per term."""
    try:
        _, terms = partial_fractions(r.a)
        s = r.rate if r.rate is not None else [x for _, x in partial_fractions(r.c)[1]]
    except Unproved:
        return ()
    limits = [s] if r.rate is not None else s
    if len(limits) != 1:
        return ()
    p, relation = (1, "<") if r.rate is not None else (r.order, "<=" if r.order == 1 else "<")
    found = [f"{u**p} {relation} {limits[0]}" for _, u in terms if u != limits[0] or r.rate]
    return tuple(found)


def series_text(e: Any, at: dict[Any, float], text: Callable[[Any], str] = str) -> str:
    """The k-th weight in words, first weights apart; ``text`` prints a formula."""
    try:
        first, terms = partial_fractions(e)
    except Unproved:
        return f"the series of {e} in z"
    parts = [f"{_product(A, at, text)}{_geometric(r)}" for A, r in terms]
    tail = " + ".join(parts).replace("+ -", "- ")
    ahead = [f"{_product(x, at, text)}" for x in first]
    if not terms:
        return f"{', '.join(ahead)}, then 0"
    if not any(first):
        return tail
    added = [f"{'and ' if k else ''}{x} more at k = {k}" for k, x in enumerate(ahead)]
    return f"{tail}, {', '.join(added)}"


def _geometric(r: Any) -> str:
    """``*r**k``, nothing for r = 1."""
    if r == 1:
        return ""
    return f"*{r}**k" if r.is_Symbol or r.is_number else f"*({r})**k"


def _product(e: Any, at: dict[Any, float], text: Callable[[Any], str]) -> str:
    """``e`` in factors that are positive at ``at``, with its sign in front."""
    if e == 0:
        return "0"
    made = _power(e, 1, at)
    shown = f"({text(made)})" if made.is_Add else text(made)
    return f"-{shown}" if float(e.subs(at)) < 0 else shown


def _at(first: list[Any], terms: Terms, k: int) -> Any:
    return sp.factor((first[k] if k < len(first) else 0) + sum(A * r**k for A, r in terms))


def _power(e: Any, exponent: Any, at: dict[Any, float]) -> Any:
    """abs(e)**exponent as a product of powers of factors that are positive at ``at``."""
    constant, parts = sp.factor_list(sp.numer(sp.together(e)))
    below, parts_below = sp.factor_list(sp.denom(sp.together(e)))
    made = sp.Abs(constant / below) ** exponent
    pairs = [(f, n) for f, n in parts] + [(f, -n) for f, n in parts_below]
    for f, n in pairs:
        f = -f if float(f.subs(at)) < 0 else f
        made = made * f ** (n * exponent)
    return made
