"""The scalars of a step, which no tensor shows well: early, late and hand-set steps.

Python's code against the kernel's, bit for bit, and against the evaluator's functions on the same
statements, to a few units in the last place of what they are made of.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import numpy as np
import torch

from signconv.ir.evaluate import FUNCTIONS_OF_FLOAT64
from signconv.ir.nodes import Const, Expr, Op, Ref
from signconv.lower.kernel_program import GRADIENT_NORM, KernelProgram, local_name
from signconv.runtime.program import OptimizerProgram
from signconv.verification.report import Row

#: Early, past fp32's and int32's whole numbers, and where float64 ends to count.
STEPS = (1, 2, 3, 4, 5, 31, 1000, 10**6, 2**24 + 1, 2**31 + 5, 2**40, 2**53 - 1)
#: The learning rate at construction and now.
RATES = ((1e-2, 1e-2), (1e-2, 5e-3), (0.0, 0.0), (0.0, 1e-2))
Values = tuple[tuple[float, ...], tuple[float, ...]]


def remembered(program: OptimizerProgram) -> list[float]:
    return [start for _, start in program.scalar_states]


#: Of all gradients, where a program reads their norm.
NORM = 3.7
#: Of an extra input per step; all of them are passed.
NUMBER = 0.7
#: Of sums over many tensors, as many as are read.
TOTALS = tuple(1.3 / n for n in range(1, 100))


def hypers(program: OptimizerProgram, lr: float) -> list[float]:
    """What the scalars are made of beside t, the first lr and their own states."""
    made = [lr if h.name == "lr" else h.default for h in program.hypers]
    made += [NORM] if program.norm else []
    made += [*(NUMBER for _ in program.numbers), *(1.0 for _ in program.extras)]
    return [*made, *(() if program.totals is None else TOTALS[: len(program.totals.names)])]


def cases(program: OptimizerProgram) -> list[tuple[int, float, float]]:
    """Steps with the learning rate at construction and now, as far as 0 is legal."""
    (slot,) = (h for h in program.hypers if h.name == "lr")
    rates = [pair for pair in RATES if all(_legal(slot, x) for x in pair)]
    return [(t, *pair) for pair in rates or [(slot.default, slot.default)] for t in STEPS]


def _legal(slot: Any, x: float) -> bool:
    return bool(slot.ge <= x <= slot.le and slot.gt < x < slot.lt)


def kernel_row(program: OptimizerProgram, device: str) -> Row:
    """What the scalar kernel writes against what Python's code gives; states in float64."""
    from signconv.runtime.kernel import launch
    from signconv.runtime.kernel.scalars import scalar_kernel

    constants = launch.scalar_constants(program)
    wrong, first = 0, ""

    def double(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    zero, one = torch.zeros((), device=device), torch.ones((), device=device)
    seed = torch.zeros((), dtype=torch.int64, device=device)
    for (lr0, lr), steps in groupby(cases(program), key=lambda case: case[1:]):
        # One launch for all steps of these rates, as for parameters of different ages
        times = [t for t, *_ in steps]
        values, count = hypers(program, lr), len(program.hypers)
        clock = torch.tensor(times, device=device) - 1
        states = double([remembered(program)] * len(times))
        out = torch.empty((len(times), 1 + len(program.outputs)), device=device)
        keys = torch.empty((len(times), 1 + program.keys), dtype=torch.int32, device=device)
        scalar_kernel[(len(times),)](
            double([lr]), double([*values[:count], lr0, 1.0, *values[count:]]), clock, states, seed,
            zero, one, out, keys, **constants,
        )  # fmt: skip
        for row, t in enumerate(times):
            wanted = program.reference.scalars(t, lr0, hypers(program, lr), remembered(program))
            outputs = torch.tensor(wanted[0], dtype=torch.float64).float()
            pairs = [*zip(program.outputs, out[row, 1:].tolist(), outputs.tolist(), strict=True)]
            names = [name for name, _ in program.scalar_states]
            pairs += [*zip(names, states[row].tolist(), wanted[1], strict=True)]
            pairs.append(("t", float(clock[row]), float(t)))
            for name, got, right in pairs:
                if not _same(got, right):
                    wrong += 1
                    first = first or f"; first {name} at step {t}: {got!r}, not {right!r}"
    words = f"{wrong} of the scalars of {len(cases(program))} steps differ{first}"
    return Row("reference - kernel", "scalars", wrong == 0, words)


def _same(a: float, b: float) -> bool:
    if a != a or b != b:
        return a != a and b != b
    return a == b and math.copysign(1.0, a) == math.copysign(1.0, b)


def reference_row(k: KernelProgram, program: OptimizerProgram) -> Row:
    """What Python's code gives against NumPy's functions on the same statements.

    The bound is relative to the largest number on the way: 1 - beta**t cancels.
    """
    worst, first = 0.0, ""
    for t, lr0, lr in cases(program):
        got = program.reference.scalars(t, lr0, hypers(program, lr), remembered(program))
        names = {"t": float(t), "initial_lr": lr0}
        known = [*(h.name for h in program.hypers), *([GRADIENT_NORM] if program.norm else [])]
        known += k.inputs
        names |= dict(zip(known, hypers(program, lr), strict=True))
        starts = program.scalar_states
        names |= {f"{name}_prev": start for name, start in starts}
        values = {name: (np.float64(x), abs(x)) for name, x in names.items()}
        with np.errstate(all="ignore"):
            for s in k.scalars:
                values[s.target] = _value(s.expr, values)
        wanted = [*program.outputs, *(name for name, _ in starts)]
        for name, x in zip(wanted, (*got[0], *got[1]), strict=True):
            right, size = values[name]
            gap = _gap(x, float(right), size)
            if gap > worst:
                worst, first = gap, f" ({name} at step {t}: {x!r}, not {float(right)!r})"
    ok = worst <= TOLERANCE
    return Row(
        "evaluator - reference", "scalars", ok, f"{worst:.1e} apart at most{'' if ok else first}"
    )


#: Of the largest number on the way: powers of t have rounded t times at most, in 60 products.
TOLERANCE = 1e-9


def _gap(a: float, b: float, size: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        # Products of powers overflow a little before a power does
        both = a != a and b != b
        return 0.0 if both or a == b or max(abs(a), abs(b)) > 1e300 else math.inf
    return abs(a - b) / max(size, abs(b), 1e-290)


def _value(e: Expr, values: dict[str, tuple[Any, float]]) -> tuple[Any, float]:
    """A number and the size of the largest number that it was made of, relative errors in mind."""
    if isinstance(e, Const):
        return np.float64(e.value), abs(e.value)
    if isinstance(e, Ref):
        return values[local_name(e)]
    assert isinstance(e, Op)
    made = [_value(a, values) for a in e.args]
    value = FUNCTIONS_OF_FLOAT64[e.fn](*(x for x, _ in made))
    loss = max((size / abs(x) if x else 1.0 for x, size in made if np.isfinite(size)), default=1.0)
    size: Any = (
        max(abs(value) * max(loss, 1.0), *(s for _, s in made))
        if _cancels(e.fn)
        else abs(value) * max(loss, 1.0)
    )
    return value, float(size)


def _cancels(fn: str) -> bool:
    return fn in ("add", "sub", "mod", "where")
