"""nesterov: the update reads every EMA one step ahead, beta*m + (1-beta)*u
(docs/passes/nesterov.md).

The state is unchanged, only the reads in numerator and denominator change; the weights of such a
read sum to 1 - beta*beta**t, which is what its bias correction divides by.
"""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError
from signconv.ir.analysis import inlined
from signconv.ir.nodes import (
    GRAD,
    STEP,
    Expr,
    Moment,
    Program,
    Ref,
    add,
    div,
    mul,
    op,
    references,
    sub,
    walk,
)
from signconv.ir.show import text
from signconv.passes.base import Options, Pass, looks_ahead, prune, reread


def _apply(p: Program, options: Options) -> Program:
    numerator = inlined(p, p.numerator)
    ahead = looks_ahead(p, numerator)
    if ahead is not None:
        raise PassError(
            "SC208",
            f"{p.name}'s numerator looks ahead already: it adds {text(ahead.input)}, the newest "  # type: ignore[arg-type]
            f"input of {ahead.name}, to {ahead.name}; nesterov would look ahead twice",
        )
    for name in sorted(references(numerator, "value")):
        if _averages_changes(p, p.moment(name)):
            raise PassError(
                "SC208",
                f"{p.name}'s numerator looks ahead already: {name} averages the change of the "
                "gradient, which is Nesterov's momentum in another form; nesterov would look "
                "ahead twice",
            )
    denominator = None if p.denominator is None else inlined(p, p.denominator)
    made = replace(
        p,
        numerator=_ahead(p, numerator),
        denominator=None if denominator is None else _ahead(p, denominator),
    )
    if made.numerator == numerator:
        raise PassError(
            "SC209", f"nesterov needs a numerator that reads an EMA; {p.name}'s reads none"
        )
    return prune(made, "nothing reads it any more after nesterov")


def _averages_changes(p: Program, m: Moment) -> bool:
    """Whether ``m`` averages differences to the last step's gradient, as Adan does."""
    if m.kind != "ema" or m.input is None:
        return False
    read = inlined(p, m.input)
    kept = (p.moment(n).next for n in references(read, "prev"))
    return any(e is not None and of_gradient(e) and e in walk(read) for e in kept)


def of_gradient(e: Expr) -> bool:
    """Whether ``e`` is the gradient or, after presign, a function of it alone."""
    return GRAD in walk(e) and all(n == GRAD for n in walk(e) if isinstance(n, Ref))


def _ahead(p: Program, e: Expr) -> Expr:
    """Every read of an EMA in ``e``, plain or bias-corrected, one step ahead."""

    def look(name: str) -> Expr | None:
        m = p.moment(name)
        if m.kind != "ema":
            return None
        assert m.beta is not None and m.input is not None
        return add(mul(m.beta, Ref("value", name)), mul(sub(1, m.beta), m.input))

    def corrected(name: str) -> Expr | None:
        beta, ahead = p.moment(name).beta, look(name)
        assert beta is not None and ahead is not None
        return div(ahead, sub(1, mul(beta, op("pow", beta, STEP))))

    return reread(e, look, corrected)


PASS = Pass(
    name="nesterov",
    title="Nesterov",
    order=30,
    group="nesterov",
    summary="the update reads every EMA one step ahead: beta*m + (1 - beta)*u",
    source="Nesterov 1983, as a read of the EMA (arXiv 2507.06464, Alg. 1)",
    requires="a numerator that reads an EMA and does not look ahead already",
    provides="Nesterov's look-ahead in numerator and denominator alike",
    apply=_apply,
    options={},
)
