"""presign: every moment sees sign(g) instead of g (Smoothed SignSGD, the S3GD post)."""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError
from signconv.ir.nodes import (
    GRAD,
    Expr,
    Moment,
    Op,
    Program,
    Ref,
    all_expressions,
    map_expressions,
    walk,
)
from signconv.passes.base import Options, Pass

SIGNED = Op("sign", (GRAD,))


def _apply(p: Program, options: Options) -> Program:
    if any(n == SIGNED for e in all_expressions(p) for n in walk(e)):
        raise PassError("SC210", f"{p.name} reads sign(grad) already: presign would change nothing")

    def rule(e: Expr) -> Expr | None:
        return SIGNED if e == GRAD else None

    made = map_expressions(p, rule)
    moments = tuple(
        replace(m, init="zero") if m.init == "first" and not _of_extras(m) else m
        for m in made.moments
    )
    return replace(made, moments=moments)


def _of_extras(m: Moment) -> bool:
    """Whether it averages an extra input that goes with no gradient, whose start stays its own."""
    read = [n for e in m.reads for n in walk(e)]
    mine = any(isinstance(n, Ref) and n.kind in ("extra", "number") for n in read)
    return mine and SIGNED not in read


PASS = Pass(
    name="presign",
    title="PreSign",
    order=10,
    group="presign",
    summary="the gradient is replaced by its sign before anything reads it",
    source="the S3GD post, WhyPhy Labs 2025",
    requires="an optimizer that does not take sign(grad) already",
    provides="moments of signs, of degree 0 in the gradient; EMAs start from zero",
    apply=_apply,
    options={},
)
