"""A program after all passes, in words: the algorithm, its hyperparameters, storage, history."""

from __future__ import annotations

from signconv.ir.nodes import Extra, Moment, Program, norm_scope
from signconv.ir.show import link_text, step_text, text


def algorithm(p: Program) -> list[str]:
    """The algorithm as the paper would print it, one line per statement."""
    from signconv.ir.analysis import around_step

    lines = [] if p.grad is None else [f"g = {text(p.grad)}"]
    if p.decay is not None and p.decay.kind == "l2":
        lines.append(f"g = g + {text(p.decay.weight)} * p")
    first, last = (
        [_moment(x) if isinstance(x, Moment) else f"{x.name} = {text(x.expr)}" for x in items]
        for items in around_step(p)
    )
    lines += first
    lines.append(f"update = {link_text(p)}")
    if last or p.new_param is not None:
        becomes = "stepped" if p.new_param is None else text(p.new_param)
        lines += [f"stepped = {step_text(p)}", *last, f"p = {becomes}"]
    else:
        lines.append(f"p = {step_text(p)}")
    if p.eval_param is not None:
        lines.append(f"evaluated with: {text(p.eval_param)}")
    return lines


def _moment(m: Moment) -> str:
    if m.next is not None:
        return f"{m.name} = {text(m.next)}"
    assert m.input is not None and m.beta is not None
    beta, u = text(m.beta), text(m.input)
    if m.kind == "max":
        return f"{m.name} = max({beta} * {m.name}.prev, {u})"
    u = u if len(u) < 8 else f"({u})"
    first = "   (t = 1: the first input itself)" if m.init == "first" else ""
    return f"{m.name} = {beta} * {m.name}.prev + (1 - {beta}) * {u}{first}"


def _extra(p: Program, x: Extra) -> str:
    """What an extra input is, and when it has to be passed."""
    from signconv.ir.extras import needed

    what = "one number per element" if x.per == "element" else "one number for all parameters"
    words = f"{x.name} is an extra input, {what}: step({x.name}=...)"
    words += ", at every step" if x.name in needed(p) else ", at any step or none"
    return words + ("; it is taken to be >= 0." if x.nonneg else ".")


_NOISE = {
    "fresh": "fresh for every element and step",
    "antithetic": "fresh for every element, at odd t the complement of the step before",
    "golden": "fresh for every element, turned by the golden ratio at each step",
}


def remarks(p: Program) -> list[str]:
    """What a reader has to know beside the formulas."""
    notes = []
    if any(".corrected" in x for x in algorithm(p)):
        notes.append("x.corrected is x / (1 - beta**t), beta that of x.")
    scope = norm_scope(p)
    if scope:
        whose = "the optimizer" if scope == "all" else "the param group"
        notes.append(f'norm(g, over="{scope}") is that of all gradients of {whose} together.')
    notes += [_extra(p, x) for x in p.extras]
    if p.link == "stosign":
        notes.append(
            f"noise is uniform on (-1, 1), {_NOISE[p.noise]}, so the update's mean "
            "is the ratio of its two terms, clipped to [-1, 1]: unbiased where the first is not "
            "larger than the second. sign(0) = 0: an element that never saw a gradient stays."
        )
    return notes + [f"{x[0].upper()}{x[1:]}." for x in p.notes]
