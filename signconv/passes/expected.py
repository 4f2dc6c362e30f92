"""expected: the mean of stosign, clip(m/sigma, -1, 1).

IE-StoSignSGD (arXiv 2604.15416, Alg. 10) is expected on momentum SGD.
"""

from __future__ import annotations

from signconv.ir.nodes import Program
from signconv.passes.base import Options, Pass
from signconv.passes.stosign import apply_link


def _apply(p: Program, options: Options) -> Program:
    return apply_link(p, "expected", options)


PASS = Pass(
    name="expected",
    title="Expected",
    order=40,
    group="link",
    summary="the update becomes the mean of its stochastic sign: the clipped ratio",
    source="arXiv 2604.15416, Alg. 10",
    requires="a ratio m/sigma, or a numerator alone (then sigma = the running max of |m|)",
    provides="abs(update) <= 1, no random numbers",
    apply=_apply,
    options={"eps": "keep|drop"},
)
