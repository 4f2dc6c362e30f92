"""What each pass promises, checked on the float64 evaluator before against after.

A module here states the law of the pass of its name as LAW.  It is written from
docs/design.md#passes and the pass's paper, not from the pass's code, and therefore lies apart from
it.  A pass without a
module here has no law yet.  ``signconv verify`` runs the laws, and so do the tests on random
programs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from signconv.ir.nodes import Program
from signconv.passes.base import canonical, parse, transform
from signconv.verification.laws.base import Law, bare


def laws() -> dict[str, Law]:
    """Every law, by the name of its pass."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        made = getattr(importlib.import_module(f"{__name__}.{info.name}"), "LAW", None)
        if isinstance(made, Law):
            found[info.name] = made
    return found


def verdicts(
    before: Program, history: tuple[str, ...], levels: int = 32
) -> Iterator[tuple[str, Law | None, str | None]]:
    """Each pass of ``history`` in its canonical place, its law, and what that finds.

    A law of None: there is none yet; a finding of None: nothing was compared.  ``levels``: draws
    over which the mean of a stochastic sign is taken.
    """
    known = laws()
    for request in canonical([parse(text) for text in history]):
        after = transform(before, request)
        law = known.get(request.name)
        wrong = None
        if law is not None:
            old, new = before, after
            if old.grad == new.grad:  # what stands for the gradient is whoever's made it
                old, new = replace(old, grad=None), replace(new, grad=None)
            with np.errstate(all="ignore"):
                wrong = law.check(bare(old), bare(new), dict(request.options), levels)
        yield request.text, law, wrong
        before = after
