"""cautious: elements whose update opposes the gradient stay, the others make up for them
(docs/passes/cautious.md)."""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError
from signconv.ir.nodes import GRAD, Program, Ref, Temp, div, mul, op
from signconv.passes.base import Options, Pass, free_name

#: The least share by which the others are scaled up.
LEAST = 1e-3


def _apply(p: Program, options: Options) -> Program:
    if p.link != "ratio":
        raise PassError(
            "SC220", f"{p.name}'s update is a sign: cautious applies before it, to a numerator"
        )
    if p.numerator == GRAD:
        raise PassError("SC220", f"{p.name}'s update is the gradient, which nothing opposes")
    agrees, kept = free_name(p, "agrees", "agrees2"), free_name(p, "uncautious", "uncautious2")
    named = [] if isinstance(p.numerator, Ref) else [Temp(kept, p.numerator)]
    numerator = Ref("temp", kept) if named else p.numerator
    mask = Ref("temp", agrees)
    agreed = op("where", op("gt", mul(numerator, GRAD), 0), 1, 0)
    return replace(
        p,
        temps=(*p.temps, *named, Temp(agrees, agreed)),
        numerator=div(mul(numerator, mask), op("max", op("mean", mask), LEAST)),
    )


PASS = Pass(
    name="cautious",
    title="Cautious",
    order=35,
    group="cautious",
    summary="elements whose update opposes the gradient stay; the others make up for their share",
    source="Liang et al. 2024, Alg. 1 (arXiv 2411.16085)",
    requires="an update that is not the gradient itself; before a link",
    provides="no element moves against its gradient",
    apply=_apply,
    options={},
)
