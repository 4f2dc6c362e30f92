"""clip: gradients are clipped inside the step, by their norm or by value (docs/passes/clip.md).

What stands for the gradient is rewritten and nothing else: the norm of all gradients is a scalar of
the step, so the factor costs one multiplication per element and no further pass over memory.
"""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError, nearest
from signconv.ir.nodes import GRAD, SCOPES, Expr, Hyper, Program, Ref, add, div, mul, norm_scope, op
from signconv.passes.base import Options, Pass, before_decay, free_name, number

#: What is added to a norm before it divides: torch.nn.utils.clip_grad_norm_'s.
SMALL = 1e-6
#: The least value that gradients are clipped to: no 0 in fp32, beside which a kernel would have to
#: order zeros.
LEAST = 1e-30


def _apply(p: Program, options: Options) -> Program:
    if "value" in options and ("norm" in options or "over" in options):
        raise PassError(
            "SC217",
            "clip takes a norm (over all, group or tensor) or a value, and not both",
        )
    over = options.get("over", "all")
    if over not in (*SCOPES, "tensor"):
        raise PassError("SC217", f"clip:over={over}: {nearest(over, (*SCOPES, 'tensor'))}")
    other = norm_scope(p)
    if "value" not in options and over in SCOPES and other not in ("", over):
        raise PassError(
            "SC217",
            f"{p.name} reads the norm of all gradients over={other!r}, and a step has one of them: "
            f"clip:over={other}, or clip:over=tensor",
        )
    kind = "value" if "value" in options else "norm"
    wanted = {"value": ("clip_value", "clip_limit"), "norm": ("max_norm", "clip_norm")}
    name = free_name(p, *wanted[kind])
    limit = Ref("hyper", name)
    made: Expr
    if kind == "value":
        made = op("min", op("max", GRAD, op("neg", limit)), limit)
    else:
        size: Expr = op("norm", GRAD) if over == "tensor" else Ref("norm", over)
        made = mul(GRAD, op("min", 1, div(limit, add(size, SMALL))))
    default = number("clip", kind, options.get(kind, "1"))
    new = Hyper(name, default, ge=LEAST) if kind == "value" else Hyper(name, default, gt=0)
    return replace(p, hypers=before_decay(p, new), grad=made)


PASS = Pass(
    name="clip",
    title="Clip",
    order=5,
    group="clip",
    summary="gradients are clipped inside the step: by the norm of all, or by value",
    source="Pascanu, Mikolov & Bengio 2013, Alg. 1 (arXiv 1211.5063)",
    requires="anything; once",
    provides="what torch.nn.utils.clip_grad_norm_ or clip_grad_value_ before the step does",
    apply=_apply,
    options={"norm": "x > 0, 1 unless given", "over": "all|group|tensor", "value": "x > 0"},
)
