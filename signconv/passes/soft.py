"""soft:p=…: the denominator becomes the p-th root of a p-order moment, both with one beta.

SoftSignSGD (S3, arXiv 2507.06464, Alg. 1): no bias correction, no eps, zero start, which is what
makes abs(update) <= 1 (docs/design.md#the-soft-ratio).
"""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError
from signconv.ir.analysis import inlined
from signconv.ir.nodes import (
    Const,
    Expr,
    Hyper,
    Moment,
    Op,
    Program,
    Ref,
    map_expressions,
    references,
    rewrite,
)
from signconv.ir.show import text
from signconv.passes.base import (
    Options,
    Pass,
    decay_names,
    free_name,
    looks_ahead,
    prune,
)

BETA = 0.95
LARGEST = 8


def _apply(p: Program, options: Options) -> Program:
    order = _order(options)
    if p.link != "ratio":
        raise PassError("SC207", f"soft needs a ratio m/sigma; {p.name} has the link {p.link}")
    numerator = inlined(p, p.numerator)
    read = sorted(references(numerator, "value"))
    emas = [p.moment(n) for n in read if p.moment(n).kind == "ema"]
    if len(emas) != 1 or len(read) != 1:
        raise PassError(
            "SC211",
            f"soft needs a numerator that reads one EMA; {p.name}'s reads "
            f"{', '.join(read) or 'no moment'}",
        )
    (m,) = emas
    assert m.input is not None
    numerator = rewrite(numerator, lambda e: _uncorrected(e, m.name))
    if numerator != Ref("value", m.name):
        ahead = (
            ", which looks ahead already: soft comes first, as in adamw --convert "
            f"soft:p={order:g},nesterov"
        )
        raise PassError(
            "SC211",
            "soft needs a numerator that is an EMA and nothing else, or abs(update) could exceed "
            f"1; {p.name}'s is {text(numerator)}{ahead if looks_ahead(p, numerator) else ''}",
        )
    beta = free_name(p, "beta", "soft_beta")
    size: Expr = Op("abs", (m.input,))
    if order > 1:
        size = Op("pow", (m.input if order % 2 == 0 else size, Const(order)))
    s = Moment(free_name(p, "s", "s2"), "ema", input=size, beta=Ref("hyper", beta))
    tied = replace(m, beta=Ref("hyper", beta), init="zero")
    root: Expr = Ref("value", s.name)
    if order > 1:
        root = Op("sqrt", (root,)) if order == 2 else Op("root", (root, Const(order)))
    hypers = list(p.hypers)
    place = [i for i, h in enumerate(hypers) if h.name in decay_names(p)]
    hypers.insert(min(place, default=len(hypers)), Hyper(beta, BETA, ge=0, lt=1))
    made = replace(
        p,
        hypers=tuple(hypers),
        moments=(*(tied if x is m else x for x in p.moments), s),
        numerator=numerator,
        denominator=root,
        notes=(
            *p.notes,
            f"soft: one beta for {m.name} and {s.name}, no bias correction, no eps, zero start "
            "(a built-in warm-up), as S3 does",
        ),
    )
    made = map_expressions(made, lambda e: _uncorrected(e, m.name))
    return prune(made, "soft has one beta for both moments and needs no eps")


def _uncorrected(e: Expr, name: str) -> Expr | None:
    if isinstance(e, Op) and e.fn == "corrected" and e.args[0] == Ref("value", name):
        return e.args[0]
    return None


def _order(options: Options) -> float:
    given = options.get("p")
    if given is None:
        raise PassError("SC212", "soft needs its order: soft:p=3")
    try:
        value = float(given)
    except ValueError:
        raise PassError("SC212", f"soft:p={given} is not a number >= 1") from None
    if not 1 <= value <= LARGEST:
        raise PassError("SC212", f"soft:p={given}: the order is a number 1 <= p <= {LARGEST}")
    return value


PASS = Pass(
    name="soft",
    title="Soft",
    order=20,
    group="soft",
    summary="the denominator becomes the p-th root of a p-order moment that shares the EMA's beta",
    source="arXiv 2507.06464, Alg. 1",
    requires="a numerator that is one EMA",
    provides="abs(update) <= 1, with or without nesterov",
    apply=_apply,
    options={"p": f"1…{LARGEST}"},
)
