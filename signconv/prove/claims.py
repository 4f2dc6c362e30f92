"""The sentences of ``signconv show``: what is proved, measured or unknown, in words."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from signconv.ir.analysis import Degrees
from signconv.ir.nodes import Op, Program, everything, walk
from signconv.ir.show import text
from signconv.prove.proofs import Bound
from signconv.runtime.polar import largest, smallest_kept

RATIO = "abs(numerator/denominator)"


def bound_claims(b: dict[str, Any]) -> list[str]:
    """How large the ratio gets; ``b`` is the report's bound."""
    if b["status"] == "linear":
        return []
    if b["status"] == "unproved":
        words = f"{RATIO}: no bound could be proved: {b['reason']}."
        if b["search"] is not None:
            words += f" A search found {b['search']:.4g}: a lower bound by search, no more."
        return [words]
    made = _infinite(b) if b["status"] == "infinite" else _finite(b)
    if b["offset"]:
        made.append(f"{', '.join(b['offset'])} >= 0 is left out here: it only lowers the ratio.")
    return made


def _infinite(b: dict[str, Any]) -> list[str]:
    if b["numerator_weights"] is None:
        return [f"{RATIO} has no bound: this step's gradient is in the numerator alone."]
    words = f"{RATIO} has no bound: the series of Hölder's inequality diverges ({_weights(b)})."
    if b["attained"] is not None:
        words += f" A sequence of 400 gradients built from it reaches {b['attained']:.4g}."
    made = [words]
    if b["condition"]:
        made.append(f"A bound would need {', '.join(b['condition'])}.")
    return made


def _finite(b: dict[str, Any]) -> list[str]:
    if b["always"]:
        words = f"{RATIO} <= 1 at every step, for every gradient and every legal hyperparameter"
        if b["numerator_weights"]:
            words += " (the same at every step)"
        made = [f"{words}: {b['reason']}."]
        if b["attained"] is not None:
            made.append(f"Run in float64, the extremal sequence reaches {b['attained']:.6f}.")
        return made
    formula = f"{b['formula']} = " if b["formula"] else ""
    tight = b["search"] is None
    words = f"{'sup ' if tight else ''}{RATIO} {'=' if tight else '<='} {formula}{b['value']:.6g}"
    made = [f"{words} at the defaults as t -> infinity (bias corrections and schedules at their "
            f"limits). {_sentence(b['method'])}"]  # fmt: skip
    if b["numerator_weights"] is not None:
        made[0] += f" Weights: {_weights(b)}."
    needs = [*b["condition"], *b["assumptions"]]
    if needs:
        made.append(f"This needs {', '.join(needs)}, which the defaults meet; otherwise the ratio "
                    "has no such bound.")  # fmt: skip
    if tight:
        made.append(
            "The bound is sharp: run in float64, the extremal sequence reaches "
            f"{b['attained']:.6g}."
        )
    else:
        made.append(
            f"How sharp this is, is not known; the largest ratio found by running sequences is "
            f"{b['search']:.6g}, a lower bound by search."
        )
    if b["early"] is not None and b["early"]["value"] > b["value"] * (1 + 1e-6):
        early = b["early"]
        made.append(
            f"Earlier it is larger: with the bias corrections and schedules of each t, the bound "
            f"at t = {early['t']} is {early['value']:.6g}, the largest of the first "
            f"{early['steps']} steps."
        )
    made += [f"At most 1 at every step where {x}: the weights then agree." for x in b["tied"]]
    if not b["tied"] and b["value"] > 1:
        made.append("denominator >= abs(numerator) does not hold always.")
    return made


def _weights(b: dict[str, Any]) -> str:
    return f"a_k = {b['numerator_weights']}; c_k = {b['denominator_weights']}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def update_claims(p: Program, b: Bound, excess: dict[str, Any] | None) -> list[str]:
    """How large the update itself can be."""
    if p.link == "sign":
        return ["abs(update) <= 1: it is a sign, 0 only where its argument is 0."]
    if p.link in ("stosign", "expected"):
        why = "it is a sign" if p.link == "stosign" else "it is clipped to [-1, 1]"
        return [f"abs(update) <= 1, whatever the storage: {why}."]
    if b.status == "linear":
        return ["abs(update) has no bound: there is no denominator, it grows with the gradient."]
    if not b.at_most_one:
        return []
    if b.by_construction:
        return ["abs(update) <= 1, whatever the storage: the maximum is taken before storing."]
    made = ["abs(update) <= 1 with fp32 state, up to the rounding of fp32 operations and while no "
            f"power of a gradient leaves fp32's range{_range(p)}."]  # fmt: skip
    if excess is not None:
        made.append(f"With FP8 state this is not proved. Measured: {_measured(excess)}")
    return made


def matrix_claims(p: Program) -> list[str]:
    """What matrix signs do to singular values, in exact arithmetic."""
    made = []
    signs = {n: None for e in everything(p) for n in walk(e) if isinstance(n, Op)}
    for n in (n for n in signs if n.fn == "msign"):
        least, start = smallest_kept(n.how)
        made.append(
            f"{text(n)}: no singular value, and so no element, is above {largest(n.how):.4g} in "
            f"exact arithmetic; those of at least {start:.2g} of the Frobenius norm are at least "
            f"{least:.2g}. Products in bf16 add what docs/design.md says of matrix signs."
        )
    return made


def _range(p: Program) -> str:
    """In which range of gradients the powers that moments average are normal fp32 numbers."""
    degrees = [d for d in Degrees(p).moments.values() if isinstance(d, int | float)]
    order = max(degrees, default=1)
    if order <= 1:
        return ""
    low, high = 2.0 ** (-126 / order), 2.0 ** (127 / order)
    return f" (order {order:g}: abs(g) from {low:.2g} to {high:.2g})"


def _measured(x: dict[str, Any]) -> str:
    over = f"{x['steps']} steps of {x['elements']} elements with random and extremal gradients"
    if x["share"] == 0:
        return f"never above 1 in {over}."
    size = (
        "infinite (a denominator rounded to 0)" if x["largest"] is None else f"{x['largest']:.4g}"
    )
    return f"up to {size}, above 1 for {x['share']:.2%} of the elements, in {over}."


def unbiased_claims(p: Program, b: Bound, excess: dict[str, Any] | None) -> list[str]:
    """Where the mean of a stochastic sign is the ratio."""
    if p.link not in ("stosign", "expected"):
        return []
    mean = "The mean of the update over its noise" if p.link == "stosign" else "The update"
    if b.by_construction:
        return [f"{mean} is numerator/denominator everywhere, given the stored state, whatever the "
                "storage: nothing is ever clipped."]  # fmt: skip
    if b.at_most_one:
        made = [f"{mean} is numerator/denominator everywhere, given an fp32 state and while no "
                f"power of a gradient leaves fp32's range{_range(p)}."]  # fmt: skip
        if excess is not None and excess["share"] > 0:
            made.append(
                f"With FP8 state it is clipped where rounding left the ratio above 1. Measured: "
                f"{_measured(excess)}"
            )
        elif excess is not None:
            made.append(f"With FP8 state the ratio was {_measured(excess)}")
        return made
    return [f"{mean} is numerator/denominator where abs(numerator) <= denominator, given the "
            "stored state, and clipped to [-1, 1] beyond."]  # fmt: skip


def noise_claims(p: Program) -> list[str]:
    """How the noise of a stochastic sign at one step goes with that at others
    (docs/design.md#kinds-of-noise)."""
    if p.link != "stosign":
        return []
    return [_NOISE[p.noise]]


_NOISE = {
    "fresh": "Noise fresh: at every step this is the mean given all steps before, so martingale "
    "arguments apply. What accumulates over T steps of ratio r is off by sqrt(T*(1 - r**2)) steps.",
    "antithetic": "Noise antithetic: an odd step has the complement of the even step's before it. "
    "At every step by itself the mean is this; of what two such steps add up to, the variance is "
    "never above that of fresh noise (covariance -(1 - abs(r1))*(1 - abs(r2)) for ratios of one "
    "sign).",
    "golden": "Noise golden: an element's noise turns by the golden ratio at each step. At every "
    "step by itself the mean, over where elements start, is this; given the past a sign is not "
    "random, so martingale arguments do not apply. What accumulates over T steps of a constant "
    "ratio is off by at most 6 + 8.5*log(T) steps, of one that changes k times k + 1 times that; "
    "ratios that return with a period of 21, 34, 55 steps are followed less closely for a while.",
}


def rounding_claims(rounding: list[dict[str, Any]]) -> list[str]:
    """The mean shift that FP8 storage causes, moment by moment."""
    made = []
    for x in rounding:
        name, form = x["moment"], x["format"].upper()
        if x["use"] == "linear":
            made.append(
                f"Rounding {name} to {form} shifts the mean by 0: it is unbiased in {name}, and "
                f"the numerator is linear in {name}."
            )
        elif x["use"] == "denominator":
            made.append(_denominator(x, name, form))
        elif form != "FP32":
            made.append(f"What rounding {name} to {form} does to the mean is not estimated.")
    return made


def _denominator(x: dict[str, Any], name: str, form: str) -> str:
    e = Fraction(x["exponent"]).limit_denominator(64)
    power = {1: f"1/{name}", Fraction(1, 2): f"1/sqrt({name})"}.get(e, f"{name}**(-{e})")
    words = (
        f"Rounding {name} to {form} raises the mean of {power}, to second order (Jensen: "
        f"e*(e + 1)/2 times the relative variance, e = {e}), by {_percent(x['single'])} through "
        "one rounding (variance averaged over a binade)"
    )
    if x["gaussian"] is None:
        return f"{words}; what repeated rounding and the maximum add is not estimated."
    return (
        f"{words}, which is all that constant gradients cause; where roundings add up under "
        f"Gaussian gradients at the default beta, {_percent(x['gaussian'])}. fp32 state: none."
    )


def _percent(x: float) -> str:
    return f"{100 * x:.2g}%"
