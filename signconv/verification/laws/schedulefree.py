"""schedulefree: three points, of which the gradient is taken at the one between the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from signconv.ir.bounds import reached
from signconv.ir.nodes import Const, Program
from signconv.verification.laws.base import Array, Law, differ, gradients, path


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """Defazio et al. 2024, Eqs. 2 to 4: z is stepped from y by the program before without its
    momentum, x is the average of the z, and y lies between them."""
    inner = _without_momentum(before)
    if inner is None:
        return None
    beta = float(options.get("beta", "0.9"))
    grads = gradients()
    start = path(inner, [])[0][0]
    z = x = start
    seen: list[tuple[Array, Array, Array]] = []

    def back(t: int, stepped: Array) -> Array:
        nonlocal z, x
        y = start if not seen else seen[-1][0]
        z = z + (stepped - y)
        x = (1 - 1 / t) * x + z / t  # of one lr all weights are the same
        seen.append(((1 - beta) * z + beta * x, z, x))
        return seen[-1][0]

    path(inner, grads, back)
    made = path(after, grads)[1:]
    (name,) = {m.name for m in after.moments if m.init == "param"} - {
        m.name for m in before.moments
    }
    for (y, z_, x_), (q, state, evaluated) in zip(seen, made, strict=True):
        if differ(y, q, 1e-7) or differ(z_, state[name], 1e-7) or differ(x_, evaluated, 1e-7):
            return "not the average of iterates of the program before"
    return ""


def _without_momentum(p: Program) -> Program | None:
    """With averages that forget everything at once; None where the denominator reads them too.

    Momentum is what was negative somewhere.
    """
    seen = [state for _, state, _ in path(p, gradients())]
    signed = {
        m.name
        for m in p.moments
        if m.kind == "ema" and any((state[m.name] < 0).any() for state in seen)
    }
    others = [e for m in p.moments for e in m.reads]
    others += [] if p.denominator is None else [p.denominator]
    if any(reached(p, e) & signed for e in others):
        return None
    moments = tuple(replace(m, beta=Const(0.0)) if m.name in signed else m for m in p.moments)
    return replace(p, moments=moments)


LAW = Law("iterates of the program before without momentum, evaluated at their average", check)
