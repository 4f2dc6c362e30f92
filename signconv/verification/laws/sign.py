"""sign: the numerator's sign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from signconv.ir.nodes import Program
from signconv.verification.laws.base import Law, differ, gradients, run


def check(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    grads = gradients()
    wanted = [np.sign(u) for u, _ in run(replace(before, denominator=None), grads)]
    found = [u for u, _ in run(after, grads)]
    return "not sign(numerator)" if any(map(differ, found, wanted)) else ""


LAW = Law("the sign of the numerator", check)
