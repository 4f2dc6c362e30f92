"""Specs that several passes are tried on, and what each pass's test file asks of its pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from signconv.errors import PassError
from signconv.ir.nodes import Program
from signconv.passes.base import canonical
from signconv.pipeline import apply_passes, requests_of, resolve
from signconv.verification.laws import verdicts
from tests.support import program_of

#: A ratio with an offset in its denominator, under names that no built-in has.
RATIO = """\
rate = hyper(0.9, ge=0, lt=1)
tiny = hyper(1e-6, ge=0)
wd = hyper(0.02, ge=0)
m1 = ema(grad, rate)
m2 = ema(grad**2, 0.99)
numerator = m1
denominator = {denominator}
decay = decoupled(wd)
"""
MEAN = ["m1 = rate * m1.prev + (1 - rate) * g"]
BOTH = [*MEAN, "m2 = 0.99 * m2.prev + (1 - 0.99) * g**2"]
DECAYED = "p = p - lr * update - lr * wd * p"
ADAM = RATIO.format(denominator="sqrt(m2) + tiny")

#: A numerator alone.
BARE = """\
rate = hyper(0.9, ge=0, lt=1)
wd = hyper(0.02, ge=0)
m = ema(grad, rate)
update = m
decay = decoupled(wd)
"""


def converted(folder: Path, body: str, convert: str) -> Program:
    """A spec written in a test after its passes, in canonical order."""
    return apply_passes(program_of(folder, body), canonical(requests_of(convert)))


def refused(folder: Path, body: str, convert: str) -> tuple[str, str]:
    """The code and the words with which a pass refuses a spec."""
    program = program_of(folder, body)
    with pytest.raises(PassError) as caught:
        apply_passes(program, canonical(requests_of(convert)))
    return caught.value.code, caught.value.message


def breaks_the_law(
    module: ModuleType,
    spec: str,
    convert: str,
    fault: Callable[[Program], Program],
    monkeypatch: pytest.MonkeyPatch,
) -> bool:
    """Whether the law holds for the pass, and not for the pass with a fault behind it."""
    right = module.PASS.apply

    def wrong(p: Program, options: Mapping[str, str]) -> Program:
        return fault(right(p, options))

    ((_, _, before),) = verdicts(resolve(spec), (convert,))
    monkeypatch.setattr(module, "PASS", replace(module.PASS, apply=wrong))
    ((_, _, after),) = verdicts(resolve(spec), (convert,))
    return before == "" and bool(after)
