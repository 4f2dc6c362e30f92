"""sign: the update becomes the sign of its numerator (SignSGD, Signum, Lion are of this form)."""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError
from signconv.ir.nodes import Program
from signconv.passes.base import Options, Pass, prune, refuse_unknown_sign, sign_defaults


def _apply(p: Program, options: Options) -> Program:
    if p.link != "ratio":
        raise PassError("SC207", f"{p.name}'s update has the link {p.link} already")
    refuse_unknown_sign(p, "sign")
    made = replace(sign_defaults(p), link="sign", denominator=None)
    return prune(made, "a sign update has no denominator")


PASS = Pass(
    name="sign",
    title="Sign",
    order=40,
    group="link",
    summary="the update becomes the sign of its numerator",
    source="Bernstein et al. 2018, arXiv 1802.04434",
    requires="a ratio or a numerator",
    provides="an update of -1, 0 or 1; the denominator and its moments go",
    apply=_apply,
    options={},
)
