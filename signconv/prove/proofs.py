"""How large numerator/denominator can get, derived from the recurrences
(docs/design.md#the-largest-ratio).

The numerator is sum a_k h_{t-k}, the denominator (sum c_k abs(h_{t-k})**p)**(1/p) or a decayed
maximum of abs(h), both read off the program.  Hölder's inequality then gives the supremum,

    p > 1: (sum abs(a_k)**q c_k**(1-q))**(1/q), q = p/(p-1);   p = 1: max abs(a_k)/c_k;
    maximum: sum abs(a_k) rate**-k,

attained where abs(h_{t-k})**(p-1) is proportional to abs(a_k)/c_k.  No table of names is involved.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from signconv.ir.analysis import Degrees, inlined
from signconv.ir.nodes import Expr, Op, Program, Ref, map_expressions
from signconv.prove import closed_forms, extremal, refute
from signconv.prove.closed_forms import partial_fractions
from signconv.prove.formulas import formula_text
from signconv.prove.ratios import Free, Hypers, Ratio, derive, stripped
from signconv.prove.signals import Unproved, Z
from signconv.prove.symbolic import FIRST, T, View, symbol

#: Steps over which the bound is also taken one t at a time.
EARLY = 3000
JENSEN = "the weights of numerator and denominator agree and sum to at most 1 (Jensen)"


@dataclass(frozen=True)
class Bound:
    """What is known of abs(numerator/denominator), eps left out (it only lowers the ratio).

    status: "proved" (``value`` is an upper bound), "infinite" (there is none), "unproved"
    (``reason`` says why; ``search`` is a lower bound), "linear" (no denominator: it grows with the
    gradient).  ``value`` holds as t -> infinity, ``early`` is the (t, bound) largest among the
    first steps.  ``always``: at most 1 at every t, for every legal hyperparameter and gradient;
    ``tied``: the same under these equations.  ``attained``: by running the extremal sequence.
    """

    status: str
    method: str
    value: float = math.nan
    closed: Any = None
    series: tuple[str, str] | None = None
    condition: tuple[str, ...] = ()
    always: bool = False
    always_reason: str = ""
    by_construction: bool = False
    tied: tuple[str, ...] = ()
    attained: float | None = None
    early: tuple[int, float] | None = None
    search: float | None = None
    reason: str = ""
    assumptions: tuple[str, ...] = ()

    @property
    def at_most_one(self) -> bool:
        """Whether the ratio is provably at most 1 at every t, for every legal hyperparameter."""
        return self.status == "proved" and self.always


def prove(p: Program, hypers: Hypers | None = None, steps: int = EARLY) -> Bound:
    """The bound of ``p``'s ratio, at the defaults or at ``hypers``.

    ``steps`` of the first steps are looked at one by one.
    """
    hypers = {h.name: h.default for h in p.hypers} | dict(hypers or {})
    return _tested(p, _derived(p, hypers, steps), hypers)


def _tested(p: Program, b: Bound, hypers: Hypers) -> Bound:
    """``b``, or where a run exceeds what it claims, that nothing is proved."""
    if b.status != "proved":
        return b
    plain = bare(p)
    found = refute.counterexample(plain, b.value, hypers, late=True)
    if found is None and b.early is not None:
        found = refute.counterexample(plain, max(b.value, b.early[1]), hypers, late=False)
    if b.always:
        for late in (False, True):
            found = found or refute.counterexample(plain, 1.0, late=late)
    if found is None:
        return b
    why = f"{b.value:.6g} was derived and a run exceeds it, so the derivation is wrong here"
    return Bound("unproved", "search", reason=why, search=max(found, b.attained or 0.0))


def _derived(p: Program, hypers: Hypers, steps: int) -> Bound:
    """The bound that follows from the recurrences."""
    if by_construction(p):
        why = "the denominator is a maximum that contains abs(numerator) of the same step"
        return Bound(
            "proved",
            why,
            1.0,
            sp.Integer(1),
            always=True,
            always_reason=why,
            by_construction=True,
            attained=extremal.attained(bare(p), np.ones(9), hypers, late=False),
        )
    try:
        forms = derive(p)
    except Unproved as reason:
        found = extremal.search(bare(p), hypers)
        return Bound("unproved", "search", reason=str(reason), search=found)
    free = [f for f in forms if isinstance(f, Free)]
    if free:
        return _free_bound(p, free, hypers)
    best = [min(f, key=lambda r: r.supremum(hypers)) for f in forms if isinstance(f, list)]
    return _bound(p, max(best, key=lambda r: r.supremum(hypers)), hypers, steps)


def _bound(p: Program, r: Ratio, hypers: Hypers, steps: int) -> Bound:
    w = r.weights(hypers)
    value = r.gain * w.supremum()
    finite = math.isfinite(value)
    closed = closed_forms.supremum(r, hypers) if finite else None
    if closed is not None:
        closed = sp.nsimplify(r.gain, rational=True) * closed
        value = float(closed.subs(r.values(hypers)))
    reached = None  # by no sequence in particular, where one gradient can be as large as it likes
    if not w.newest_is_free:
        reached = extremal.attained(bare(p), w.sequence(), hypers)
    found = None
    if finite and reached is not None and reached < value * (1 - 1e-3):
        found = max(reached, extremal.search(bare(p), hypers))
    always = value <= 1 + 1e-9 and at_most_one(p)
    early = None
    if r.exact and finite and not always and steps:
        early = extremal.early(r.program, w, hypers, steps)
    return Bound(
        status="proved" if finite else "infinite" if r.exact else "unproved",
        method=_method(r),
        value=value,
        closed=closed,
        series=None if w.newest_is_free else _series(r, hypers),
        condition=closed_forms.condition(r),
        always=always,
        always_reason=JENSEN if always else "",
        tied=() if always else tied(p, r, hypers),
        attained=reached,
        early=early,
        search=found,
        reason=""
        if finite or r.exact
        else "its simplest lower bound of the denominator is too low",
        assumptions=r.assumptions,
    )


def _series(r: Ratio, hypers: Hypers) -> tuple[str, str]:
    at = r.values(hypers)
    top = closed_forms.series_text(r.a, at, formula_text)
    if r.rate is None:
        return top, closed_forms.series_text(r.c, at, formula_text)
    rate = f"({formula_text(r.rate)})" if r.rate.args else formula_text(r.rate)
    factor = "" if r.c == 1 else f"{formula_text(r.c)}*"
    return top, f"{factor}{rate}**k, the largest of them instead of their sum"


def _method(r: Ratio) -> str:
    if r.rate is not None:
        return "sum of abs(a_k) * rate**-k over the weights, beside a decayed maximum"
    if r.order == 1:
        return "the largest a_k/c_k"
    q = r.order / (r.order - 1)
    return f"Hölder's inequality, p = {r.order}, q = {q}: (sum abs(a_k)**q * c_k**(1 - q))**(1/q)"


def _free_bound(p: Program, forms: list[Free], hypers: Hypers) -> Bound:
    """The bound of an update without denominator."""
    if any(f.size is None for f in forms):
        degree = Degrees(p).of(p.numerator)
        if isinstance(degree, int | float) and degree > 0:
            return Bound("linear", "", reason="it has no denominator and grows with the gradient")
        return Bound(
            "unproved", "search", search=extremal.search(bare(p), hypers),
            reason="it has no denominator, and it does not simply scale with the gradient",
        )  # fmt: skip
    at = {symbol(p, n): x for n, x in hypers.items()}
    value = max(float(abs(f.total.subs(at))) * f.size for f in forms if f.size is not None)
    always = value <= 1 + 1e-9 and _free_at_most_one(p)
    found = 0.0 if always else extremal.search(bare(p), hypers)
    if found > value * (1 + 1e-9):
        words = "its weights are larger at the first steps than in their limit"
        return Bound("unproved", "search", reason=words, search=found)
    why = "weights >= 0 that sum to at most 1, of a quantity that is at most 1"
    return Bound(
        "proved", "the sum of the weights times the largest input", value,
        sp.nsimplify(forms[0].total) if len(forms) == 1 and forms[0].size == 1 else None,
        always=always, always_reason=why if always else "",
        attained=extremal.attained(bare(p), np.ones(2000), hypers, late=False),
        search=None if found >= value * (1 - 1e-3) or always else found,
    )  # fmt: skip


def _free_at_most_one(p: Program) -> bool:
    """Whether the sums of the weights are in [0, 1] at every t, of inputs in [-1, 1]."""
    try:
        view = View(p, exact=True)
        forms = [f for f in derive(p, view) if isinstance(f, Free)]
        sizes = [1.0 if f.size is None else f.size for f in forms]
        sums = [_sum_to_t(view, f.weights.weights) for f in forms]
        return max(sizes) <= 1 and all(f.size is not None for f in forms) and all(
            _unit(view, s) for s in sums
        )  # fmt: skip
    except Unproved:
        return False


def bare(p: Program) -> Program:
    """The ratio of ``p`` without eps, link and decay."""
    den = None if p.denominator is None else stripped(p, p.denominator)
    return extremal.ratio_program(p, p.numerator, den)


def by_construction(p: Program) -> bool:
    """Whether the denominator is a moment max(beta*s, abs(numerator)), or a max with that."""
    if p.denominator is None:
        return False
    parts, size = [inlined(p, stripped(p, p.denominator))], inlined(p, Op("abs", (p.numerator,)))
    while parts:
        e = parts.pop()
        if isinstance(e, Ref) and e.kind == "value" and p.moment(e.name).kind == "max":
            e = inlined(p, p.moment(e.name).input or e)
        if e == size:
            return True
        if isinstance(e, Op) and e.fn == "max":
            parts += e.args
    return False


# ---------------------------------------------------------------- at most 1, at every t


def at_most_one(p: Program) -> bool:
    """Whether abs(numerator) <= denominator for all gradients, all t and all legal hyperparameters.

    Jensen: if a_k(t) = kappa*c_k(t) and S = sum of a_k(t), the ratio is at most
    (S**(p-1) * kappa)**(1/p).
    """
    if by_construction(p):
        return True
    try:
        view = View(p, exact=True)
        forms = derive(p, view)
        return all(any(_jensen(view, r) for r in f) for f in forms if isinstance(f, list))
    except Unproved:
        return False


def _jensen(view: View, r: Ratio) -> bool:
    kappa = sp.cancel(r.a / r.c)
    try:
        if r.gain > 1:
            return False
        if r.rate is not None:
            num = view.signal(r.program.numerator)
            rising = not r.a.has(Z) or (getattr(num, "nonneg", False) and r.base.weights == 1)
            return bool(rising and r.rate == 1 and _unit(view, _sum_to_t(view, kappa)))
        if kappa.has(Z, FIRST):
            return False
        return _unit(view, _sum_to_t(view, r.a) ** (r.order - 1) * kappa)
    except Unproved:
        return False


def _sum_to_t(view: View, a: Any) -> Any:
    """The sum of a_k over k < t."""
    plain = sp.cancel(a / FIRST) if a.has(FIRST) else a
    first, terms = partial_fractions(plain)
    if a.has(FIRST):
        if first or len(terms) != 1 or sp.cancel(plain.subs(Z, 1)) != 1:
            raise Unproved("an average that starts with its first input, averaged again")
        return sp.Integer(1)
    if len(first) > 1:
        raise Unproved("the first steps differ from the later ones")
    return sp.cancel(sum(first) + sum(A * (1 - view.at_t(r)) / (1 - r) for A, r in terms))


def _unit(view: View, e: Any) -> bool:
    """Whether ``e`` is provably in [0, 1]: a product of such quantities and of 1 - such."""
    return _unit_sign(view, sp.factor(e)) == 1


def _unit_sign(view: View, e: Any) -> int:
    """1 if ``e`` is in [0, 1], -1 if -e is, 0 if neither follows."""
    if e.is_number:
        return int(sp.sign(e)) if 0 < abs(e) <= 1 else int(e == 0)
    if e.is_Symbol:
        base, exponent = view.timed.get(e, (e, sp.Integer(1)))
        if not never_negative(exponent):
            return 0
        if base.is_Symbol and view.p.hyper(base.name) is not None:
            ref = Ref("hyper", base.name)
            return int(view.ranges.nonneg(ref) and view.ranges.at_most_one(ref))
        return int(bool(base.is_number and 0 <= base <= 1))
    if e.is_Pow:
        sign = _unit_sign(view, e.base) if e.exp.is_nonnegative else 0
        return sign**e.exp if e.exp.is_Integer else max(sign, 0)
    if e.is_Mul:
        return math.prod(_unit_sign(view, x) for x in e.args)
    if e.is_Add:
        one, rest = e.as_coeff_Add()
        if abs(one) == 1 and _unit_sign(view, sp.factor(-one * rest)) == 1:
            return int(one)  # 1 - x, or x - 1
    return 0


def never_negative(exponent: Any) -> bool:
    """Whether an exponent is provably >= 0 at every t = 1, 2, …"""
    since = sp.Symbol("since", nonnegative=True, integer=True)
    return bool(sp.expand(sp.sympify(exponent).subs(T, 1 + since)).is_nonnegative)


def tied(p: Program, r: Ratio, hypers: Hypers) -> tuple[str, ...]:
    """Pairs of hyperparameters whose equality makes the ratio at most 1, for every t."""
    used = {s.name for s in (r.a + r.c + (r.rate or 0)).free_symbols}
    names = [h.name for h in p.hypers if h.name in used]
    found = []
    for x, y in itertools.combinations(names, 2):

        def rule(e: Expr, x: str = x, y: str = y) -> Expr | None:
            return Ref("hyper", x) if e == Ref("hyper", y) else None

        if r.supremum({**hypers, y: hypers[x]}) <= 1 + 1e-9:
            same = map_expressions(p, rule)
            exceeded = (refute.counterexample(bare(same), 1.0, late=x) for x in (False, True))
            if at_most_one(same) and not any(exceeded):
                found.append(f"{x} = {y}")
    return tuple(found)
