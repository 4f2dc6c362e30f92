"""init: averages start from zero, or from their first input (m1 = g1: arXiv 2604.15416, Alg. 3)."""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError, nearest
from signconv.ir.nodes import Op, Program, Ref, all_expressions, walk
from signconv.passes.base import Options, Pass

STARTS = ("zero", "first")


def _apply(p: Program, options: Options) -> Program:
    to = options.get("to")
    if to is None:
        raise PassError("SC215", "init needs where averages start: init:to=zero or init:to=first")
    if to not in STARTS:
        raise PassError("SC215", f"init:to={to}: averages start otherwise; {nearest(to, STARTS)}")
    other = STARTS[to == "zero"]
    changed = {m.name for m in p.moments if m.kind == "ema" and m.init == other}
    if not changed:
        raise PassError(
            "SC216", f"no average of {p.name} starts from {other}: init would do nothing"
        )
    corrected = {
        n.args[0].name
        for e in all_expressions(p)
        for n in walk(e)
        if isinstance(n, Op) and n.fn == "corrected" and isinstance(n.args[0], Ref)
    }
    if to == "first" and changed & corrected:
        raise PassError(
            "SC216",
            f"{p.name} corrects {', '.join(sorted(changed & corrected))} for a start from zero: "
            "from the first input there is nothing to correct",
        )
    moments = tuple(replace(m, init=to) if m.name in changed else m for m in p.moments)
    return replace(p, moments=moments)


PASS = Pass(
    name="init",
    title="Init",
    order=8,
    group="init",
    summary="averages start from zero, or from their first input",
    source="arXiv 2604.15416, Alg. 3 (m1 = g1); Kingma & Ba 2015, Alg. 1 (m0 = 0)",
    requires="an average that starts otherwise, without bias correction for to=first",
    provides="m1 = (1 - beta)*u1 (to=zero) or m1 = u1 (to=first)",
    apply=_apply,
    options={"to": "|".join(STARTS)},
)
