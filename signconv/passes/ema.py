"""ema: a running average of the parameters, with which the model is evaluated
(docs/passes/ema.md)."""

from __future__ import annotations

from dataclasses import replace

from signconv.ir.nodes import PARAM, STEPPED, Hyper, Moment, Program, Ref, add, mul, sub
from signconv.passes.base import Options, Pass, before_decay, free_name, number, refuse_second_point


def _apply(p: Program, options: Options) -> Program:
    refuse_second_point(p, "ema")
    name, beta = free_name(p, "average", "average2"), free_name(p, "average_beta", "average_beta2")
    default = number("ema", "beta", options.get("beta", "0.999"), below=1)
    weight = Ref("hyper", beta)
    moved = add(mul(weight, Ref("prev", name)), mul(sub(1, weight), STEPPED))
    return replace(
        p,
        hypers=before_decay(p, Hyper(beta, default, ge=0, lt=1)),
        moments=(*p.moments, Moment(name, "state", init=PARAM.kind, next=moved)),
        eval_param=Ref("value", name),
    )


PASS = Pass(
    name="ema",
    title="EMA",
    order=60,
    group="point",
    summary="a running average of the parameters is kept, with which the model is evaluated",
    source="Polyak & Juditsky 1992, as an EMA (Morales-Brotons et al. 2024, arXiv 2411.18704)",
    requires="an optimizer that is evaluated at its parameters",
    provides="optimizer.eval(): the average in place of the parameters; training is as it was",
    apply=_apply,
    options={"beta": "0 < x < 1"},
)
