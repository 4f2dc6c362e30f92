"""stosign: an update m/sigma becomes sign(m + sigma*n), n uniform on (-1, 1).

The mean is exactly clip(m/sigma, -1, 1) (docs/design.md#the-unbiased-sign;
StoSignSGD, arXiv 2604.15416, Alg. 8 and 9).  A program without denominator gets sigma = G, the
running maximum of abs(m).
"""

from __future__ import annotations

from dataclasses import replace

from signconv.errors import PassError, nearest
from signconv.ir.nodes import DEFAULT_NOISE, NOISES, Program
from signconv.passes.base import (
    Options,
    Pass,
    install_running_max,
    prune,
    refuse_unknown_sign,
    sign_defaults,
    without_offset,
)


def apply_link(p: Program, link: str, options: Options) -> Program:
    """Install a denominator where there is none, drop eps unless kept, set the link."""
    keep = options.get("eps", "drop")
    if keep not in ("keep", "drop"):
        raise PassError("SC213", f"{link}:eps={keep} is neither eps=drop (default) nor eps=keep")
    if p.link in ("stosign", "expected"):
        raise PassError("SC207", f"{p.name} already has the link {p.link}")
    refuse_unknown_sign(p, link)
    if p.denominator is not None:
        # Not scaled: AdamW + stosign trains best at AdamW's lr, at full length too (docs/advice.md)
        same = "the update is" if link == "expected" else "the mean update is"
        note = f"defaults: as they were, since {same} the same one, clipped at 1"
        made = replace(p, notes=(*p.notes, note))
    else:
        made = sign_defaults(p)
    if made.denominator is None:
        made = install_running_max(made)
    elif keep == "drop":
        assert made.denominator is not None
        made = replace(made, denominator=without_offset(made.denominator, made))
    made = replace(made, link=link)
    why = {
        "stosign": "since it makes a parameter that never saw a gradient walk by lr at random",
        "expected": "as stosign does, whose mean it is",
    }
    return prune(
        made, f"{link} removes it, {why[link]}; build with --convert {link}:eps=keep to have it"
    )


def _apply(p: Program, options: Options) -> Program:
    kind = options.get("noise", DEFAULT_NOISE)
    if kind not in NOISES:
        raise PassError(
            "SC214", f"stosign:noise={kind}: there is no such noise; {nearest(kind, NOISES)}"
        )
    if p.link == "stosign" and set(options) == {"noise"}:
        return replace(p, noise=kind)  # a sign already, of another noise
    return replace(apply_link(p, "stosign", options), noise=kind)


PASS = Pass(
    name="stosign",
    title="StoSign",
    order=40,
    group="link",
    summary="the update becomes an unbiased stochastic sign of itself",
    source="arXiv 2604.15416, Alg. 8 and 9",
    requires="a ratio m/sigma, or a numerator alone (then sigma = the running max of |m|)",
    provides="an update of -1, 0 or 1 with mean clip(m/sigma, -1, 1)",
    apply=_apply,
    options={"eps": "keep|drop", "noise": "|".join(NOISES)},
)
