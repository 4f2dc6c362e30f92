"""Which optimizers of the catalogue the long tests of all of them take in ``make test``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from signconv.pipeline.catalogue import GENERATED, Entry
from signconv.runtime.optimizer import FusedOptimizer
from tests.support import ROOT, generated_classes

#: One of every kind of program (tests/support/test_entries.py says which there are).  Tests of one
#: law over the whole catalogue take these in ``make test`` and all others in ``make test-long``.
CORE = (
    Entry("adadelta"),
    Entry("adam_mini"),
    Entry("adamw"),
    Entry("adamw", state="fp4"),
    Entry("adamw", "soft:p=2,nesterov,stosign"),
    Entry("adamw", "stosign"),
    Entry("adamw", "stosign:noise=golden"),
    Entry("adan"),
    Entry("came"),
    Entry("cautious_adamw"),
    Entry("lamb"),
    Entry("lion"),
    Entry("muon"),
    Entry("nadam"),
    Entry("normuon"),
    Entry("prodigy"),
    Entry("rprop"),
    Entry("s3"),
    Entry("s3gd", state="fp8-raw", math="bf16"),
    Entry("schedulefree_adamw"),
    Entry("sgd"),
    Entry("signsgd"),
    Entry("sm3"),
    Entry("sophia"),
    Entry("stosignsgd"),
)

#: Specs whose first steps move nothing, by their definition: the step that moves first.  ADOPT's
#: first sets its second moment alone (arXiv 2411.02853, Alg. 2).
FIRST_MOVE = {"adopt": 2}
#: Of those that estimate the distance: d0, and AdamW's first step without bias correction.
FIRST_DISTANCE = 1e-6 * 0.1 / 0.001**0.5
#: Specs whose first step is small: its length in units of lr, where eps is small beside (1 - rho) *
#: g**2.  Adadelta's root of past steps begins at sqrt(eps), over sqrt((1 - rho) * g**2).
FIRST_LENGTH = {
    "adadelta": (1e-6 / 0.1) ** 0.5,
    "dadapt_adam": FIRST_DISTANCE,
    "prodigy": FIRST_DISTANCE,
}


def marks(core: bool) -> tuple[pytest.MarkDecorator, ...]:
    """``long`` for what ``make test`` leaves out."""
    return () if core else (pytest.mark.long,)


def core_first() -> list[Any]:
    """Every entry as a parameter, those outside CORE marked ``long``."""
    return [pytest.param(e, id=e.label, marks=marks(e in CORE)) for e in GENERATED]


def entry_of(cls: type[FusedOptimizer]) -> Entry:
    """The row of a generated class."""
    p = cls.program
    return Entry(p.spec, ",".join(p.passes) or None, p.storage, p.precision)


@cache
def _stems() -> dict[Entry, str]:
    return {entry_of(cls): stem for stem, cls in generated_classes().items()}


def path_of(entry: Entry) -> Path:
    """Its file in generated/, as the files themselves say; nothing is built for that."""
    return ROOT / "generated" / f"{_stems()[entry]}.py"


def class_for(entry: Entry) -> Any:
    """Its class, one for all tests of a process: what is compiled for it is compiled once."""
    return generated_classes()[_stems()[entry]]


def first_move(cls: type[FusedOptimizer]) -> int:
    """The step at which its parameters move first."""
    return FIRST_MOVE.get(cls.program.spec, 1)
