"""lookahead: every k steps slow weights follow the fast ones, which go on from there
(docs/passes/lookahead.md)."""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError
from signconv.ir.nodes import (
    PARAM,
    STEP,
    STEPPED,
    Hyper,
    Moment,
    Program,
    Ref,
    Temp,
    add,
    mul,
    op,
    sub,
)
from signconv.passes.base import Options, Pass, before_decay, free_name, number, refuse_second_point


def _apply(p: Program, options: Options) -> Program:
    refuse_second_point(p, "lookahead")
    k = options.get("k", "5")
    if not k.isdecimal() or int(k) < 1:
        raise PassError("SC218", f"lookahead:k={k} is not a whole number from 1")
    slow, alpha = free_name(p, "slow", "slow_param"), free_name(p, "alpha", "slow_rate")
    default = number("lookahead", "alpha", options.get("alpha", "0.5"), most=1)
    synced = free_name(p, "synced", "slow_synced")
    prev = Ref("prev", slow)
    moved = add(prev, mul(Ref("hyper", alpha), sub(STEPPED, prev)))
    due = op("eq", op("mod", STEP, int(k)), 0)
    kept = op("where", due, Ref("temp", synced), prev)
    return replace(
        p,
        hypers=before_decay(p, Hyper(alpha, default, gt=0, le=1)),
        moments=(*p.moments, Moment(slow, "state", init=PARAM.kind, next=kept)),
        temps=(*p.temps, Temp(synced, moved)),
        new_param=op("where", due, Ref("temp", synced), STEPPED),
    )


PASS = Pass(
    name="lookahead",
    title="Lookahead",
    order=60,
    group="point",
    summary="every k steps slow weights go a share of the way to the parameters, which go on there",
    source="Zhang, Lucas, Hinton & Ba 2019, Alg. 1 (arXiv 1907.08610)",
    requires="an optimizer whose parameter becomes what the update makes it",
    provides="k fast steps, one slow one",
    apply=_apply,
    options={"alpha": "0 < x <= 1", "k": "n >= 1, 5 unless given"},
)
