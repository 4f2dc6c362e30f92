"""How each moment is stored: by its homogeneous degree in the gradient (docs/design.md#storage)."""

from __future__ import annotations

from signconv.errors import LoweringError, nearest
from signconv.ir.analysis import Degrees, Ranges, scalar_moments
from signconv.ir.bounds import unkept
from signconv.ir.nodes import Const, Program, references
from signconv.lower.kernel_program import MomentPlan

#: Orders whose roots the runtime stores (runtime/formats.py; a test compares the two).
ROOT_ORDERS = range(3, 9)

STATES = ("fp8", "fp8-raw", "bf16", "fp32")


def plan(p: Program, state: str) -> tuple[MomentPlan, ...]:
    """Formats and random bits of all moments for ``--state state``.

    Rounding bits (docs/design.md#random-numbers): what the denominator reads shares the low
    field with the sign noise, the first other moment shares the high field with the parameter;
    any further moment gets bits of its own, since moments must not share with each other.
    """
    if state not in STATES:
        raise LoweringError("SC301", f"unknown state format {state!r}; {nearest(state, STATES)}")
    degrees, ranges, loose = Degrees(p), Ranges(p), unkept(p)
    below = references(p.denominator, "value") if p.denominator is not None else set()
    free = [(0, "low"), (0, "high")]
    plans: list[MomentPlan] = []
    for m in p.moments:
        if m.name in scalar_moments(p):
            continue
        wanted = (0, "low") if m.name in below else (0, "high")
        if wanted not in free:
            if not any(word > 0 for word, _ in free):
                last = max(x.word for x in plans)
                free += [(last + 1, "low"), (last + 1, "high")]
            wanted = next(x for x in free if x[0] > 0)
        free.remove(wanted)
        fmt = state
        if state == "fp8":
            degree = None if m.name in loose else degrees.moments[m.name]
            fmt = _fp8(degree, m.name in ranges.nonneg_moments)
        elif state == "fp8-raw":
            fmt = "e4m3-raw"
            if degrees.moments[m.name] != 0:
                raise LoweringError(
                    "SC302",
                    f"--state fp8-raw has no scales and is for moments of signs: {p.name}'s "
                    f"{m.name} grows with the gradient; use --state fp8, or --convert presign",
                )
        init = m.init.value if isinstance(m.init, Const) else m.init if m.init == "param" else 0.0
        plans.append(MomentPlan(m.name, fmt, "bf16" if state == "fp8" else fmt, *wanted, init=init))
    return tuple(plans)


def _fp8(degree: int | float | str | None, nonneg: bool) -> str:
    if degree in (0, 1, Degrees.ANY):
        return "e4m3"
    if nonneg and degree in ROOT_ORDERS:
        return f"e4m3-root{degree:g}"
    return "e5m2" if degree == 2 and nonneg else "bf16"
