"""Each pass keeps its law.  That a wrong pass breaks it is in the test file of the pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from signconv.passes.base import registry
from signconv.pipeline import resolve
from signconv.pipeline.catalogue import GENERATED
from signconv.verification.laws import laws
from signconv.verification.witnesses import pass_rows
from tests.support import program_of

#: Conversions beside those of the catalogue.
MORE = [
    ("sgd", "presign"),
    ("adan", "presign,sign"),
    ("adamw", "presign,soft:p=3,nesterov,stosign"),
    ("adamw", "soft:p=1"),
    ("sgd", "soft:p=4,nesterov,expected"),
    ("sgd", "expected"),
    ("adamw", "expected:eps=keep"),
    ("adamax", "nesterov"),
    ("rmsprop", "sign"),
    ("adamw", "nesterov,sign"),
]
CONVERTED = [*((e.spec, e.convert) for e in GENERATED if e.convert), *MORE]


def test_every_pass_has_a_law() -> None:
    assert laws().keys() == registry().keys()


@pytest.mark.parametrize(("spec", "convert"), CONVERTED)
def test_law_holds(spec: str, convert: str) -> None:
    rows = pass_rows(resolve(spec), tuple(convert.split(",")))
    assert [r.subject for r in rows] == convert.split(",")
    assert all(r.ok for r in rows), rows


def test_law_holds_on_a_spec_written_here(tmp_path: Path) -> None:
    """Two averages, one of them of the other's input, a temporary, an offset."""
    p = program_of(
        tmp_path,
        """
        b, c, eps = hyper(0.8, ge=0, lt=1), hyper(0.95, ge=0, lt=1), hyper(1e-6, ge=0)
        u = 0.5 * grad
        q, w = ema(u, b, init="first"), ema(u**2, c)
        top = 2 * q
        numerator = top
        denominator = sqrt(w + eps)""",
    )
    rows = pass_rows(p, ("presign", "nesterov", "stosign"))
    assert [r.ok for r in rows] == [True, True, True]


def test_two_programs_that_no_law_compares_are_not_called_equal(tmp_path: Path) -> None:
    """A literal offset goes as eps does; the law can only set hyperparameters to zero."""
    body = "q = ema(grad, 0.9)\nnumerator = q\ndenominator = sqrt(ema_) + 0.1"
    p = program_of(tmp_path, "ema_ = ema(grad**2, 0.9)\n" + body)
    (row,) = pass_rows(p, ("stosign",))
    assert row.ok is None and "no law compares" in row.detail
