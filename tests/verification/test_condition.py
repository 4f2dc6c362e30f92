"""The bound between evaluator and reference has the condition of what is computed, no wider.

The specs in tests/verification/specs take differences of near numbers and quotients by small ones;
a bound of so many units in the last place of the terms fails them, or else misses faults elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from signconv.errors import PassError
from signconv.ir.nodes import Program, Ref, add, mul
from signconv.pipeline import build, builtin_names
from signconv.verification import witnesses
from signconv.verification.enclosure import Enclosed
from tests.support import class_of, spec_file

FOLDER = Path(__file__).parent / "specs"
SPECS = {
    "adagrad_l2": "AdagradL2", "novograd": "NovoGrad", "msvag": "MSVAG", "amos": "Amos",
    "adai": "Adai",
}  # fmt: skip
#: How much larger a quantity is made: a few times what rounding does to one operation.
SMALL = 1 + 2.0**-15


def spec_of(name: str) -> str:
    return f"{FOLDER / name}.py:{SPECS[name]}" if name in SPECS else name


@pytest.mark.parametrize("convert", [None, "stosign"])
@pytest.mark.parametrize("name", [*SPECS, *builtin_names()])
def test_a_correct_spec_agrees(name: str, convert: str | None, tmp_path: Path) -> None:
    try:
        made = build(spec_of(name), convert=convert, state="fp32")
    except PassError:
        pytest.skip("it has that link already")
    row = witnesses.reference_row(made.program, class_of(made, tmp_path))
    assert row.ok, row.detail


def larger_moment(p: Program) -> Program:
    """One moment's new values a little too large."""
    m = next(m for m in p.moments if m.input is not None or m.next is not None)
    field = "input" if m.input is not None else "next"
    wrong = replace(m, **{field: mul(getattr(m, field), SMALL)})
    return replace(p, moments=tuple(wrong if x is m else x for x in p.moments))


def larger_update(p: Program) -> Program:
    return replace(p, numerator=mul(p.numerator, 1 + 2.0**-10))


def no_decay(p: Program) -> Program:
    """An update that also moves by a little of the parameter."""
    return replace(p, numerator=add(p.numerator, mul(Ref("param", "param"), 1e-3)))


@pytest.mark.parametrize("fault", [larger_moment, larger_update, no_decay])
@pytest.mark.parametrize("name", [*SPECS, "adamw", "lamb"])
def test_a_fault_of_that_size_is_noticed(name: str, fault, tmp_path: Path) -> None:
    """The reference is right and the program it is compared with is off by little."""
    made = build(spec_of(name), state="fp32")
    row = witnesses.reference_row(fault(made.program), class_of(made, tmp_path))
    assert not row.ok, row.detail


def test_a_program_that_rounding_takes_apart_is_not_called_equal(tmp_path: Path) -> None:
    """All digits cancel, so no comparison says anything, and the row says that."""
    body = "update = ((grad + 1e12) - 1e12) * 1e3"
    made = build(spec_file(tmp_path, body).spec, state="fp32")
    row = witnesses.reference_row(made.program, class_of(made, tmp_path))
    assert not row.ok and "not decided" in row.detail


@pytest.mark.parametrize("unit", [2.0**-24, 2.0**-8])
def test_a_choice_between_numbers_is_an_interval(unit: float) -> None:
    x = Enclosed([-1.0, 1.0, 1e-9], [-0.5, 2.0, 1e-9], False, unit)
    made = np.where(x > np.zeros(3), 1.0, 0.0)
    assert isinstance(made, Enclosed) and made.unit == unit
    assert made.lo.tolist() == [0, 1, 1] and made.hi.tolist() == [0, 1, 1]
    unsure = np.where(Enclosed([-1.0], [1.0], False, unit) > np.zeros(1), 1.0, 0.0)
    assert (unsure.lo[0], unsure.hi[0]) == (0, 1)


def test_every_spec_is_asked() -> None:
    """Every file is asked."""
    assert {f.stem for f in FOLDER.glob("*.py")} == set(SPECS)
