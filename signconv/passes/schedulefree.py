"""schedulefree: gradients at a point between the iterate and its average, and no momentum
(docs/passes/schedulefree.md).

The parameter is the point y = (1 - beta)*z + beta*x of the gradients; z is kept, and x, with which
the model is evaluated, follows from both.
"""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError
from signconv.ir.analysis import Degrees, Ranges, inlined
from signconv.ir.nodes import (
    GRAD,
    PARAM,
    STEPPED,
    Hyper,
    Moment,
    Program,
    Ref,
    Temp,
    add,
    div,
    mul,
    op,
    sub,
    walk,
)
from signconv.passes.base import (
    Options,
    Pass,
    before_decay,
    free_name,
    number,
    prune,
    refuse_second_point,
    reread,
)


def _apply(p: Program, options: Options) -> Program:
    refuse_second_point(p, "schedulefree")
    p = _without_momentum(p)
    beta_name = free_name(p, "point", "point_beta")
    default = number("schedulefree", "beta", options.get("beta", "0.9"), most=1)
    z, highest = free_name(p, "z", "z2"), free_name(p, "highest_lr", "highest_lr2")
    total, share = free_name(p, "weights", "weights2"), free_name(p, "share", "share2")
    beta, lr = Ref("hyper", beta_name), Ref("hyper", "lr")
    weight = mul(Ref("value", highest), Ref("value", highest))
    c = Ref("temp", share)
    change = sub(STEPPED, PARAM)
    return replace(
        p,
        hypers=before_decay(p, Hyper(beta_name, default, gt=0, le=1)),
        moments=(
            *p.moments,
            Moment(highest, "state", next=op("max", Ref("prev", highest), lr)),
            Moment(total, "state", next=add(Ref("prev", total), weight)),
            Moment(z, "state", init=PARAM.kind, next=add(Ref("prev", z), change)),
        ),
        temps=(
            *p.temps,
            Temp(
                share,
                op("where", op("gt", Ref("value", total), 0), div(weight, Ref("value", total)), 0),
            ),
        ),
        new_param=add(
            add(PARAM, mul(c, sub(Ref("prev", z), PARAM))),
            mul(sub(1, mul(beta, sub(1, c))), change),
        ),
        eval_param=add(PARAM, mul(sub(1, div(1, beta)), sub(Ref("value", z), PARAM))),
    )


def _without_momentum(p: Program) -> Program:
    """The numerator with the newest input of each of its averages in their place, but for those of
    sizes: of degree 2, or never negative."""
    numerator = inlined(p, p.numerator)
    degrees, ranges = Degrees(p), Ranges(p)
    momentum = {
        m.name: inlined(p, m.input)
        for m in p.moments
        if m.kind == "ema"
        and m.input is not None
        and degrees.moments[m.name] in (0, 1, Degrees.ANY)
        and not ranges.nonneg(m.input)
    }

    made = reread(numerator, momentum.get, momentum.get)
    if GRAD not in walk(made) or any(isinstance(n, Ref) and n.kind == "prev" for n in walk(made)):
        raise PassError(
            "SC219",
            f"{p.name} without its averages is no function of the gradient of one step, which "
            "schedulefree needs",
        )
    if made == numerator:
        return p
    reason = "schedulefree has an average of the parameters for momentum"
    return prune(replace(p, numerator=made), reason)


PASS = Pass(
    name="schedulefree",
    title="ScheduleFree",
    order=60,
    group="point",
    summary="no schedule and no momentum: gradients between the iterate and its running average",
    source="Defazio et al. 2024, Eqs. 2 to 4 (arXiv 2405.15682)",
    requires="a numerator of the gradient and averages of it, which are replaced by their newest",
    provides="optimizer.eval(): the average of all iterates, weighted by lr**2",
    apply=_apply,
    options={"beta": "0 < x <= 1"},
)
