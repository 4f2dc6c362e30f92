"""Each pass keeps its law, and a pass that is wrong in one place breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from signconv.ir.nodes import GRAD, Const, Op, Program, Ref, map_expressions, mul
from signconv.passes import expected, nesterov, presign, sign, soft
from signconv.passes.base import registry
from signconv.pipeline import resolve
from signconv.pipeline.catalogue import GENERATED
from signconv.verification.laws import laws, verdicts
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


# ---------------------------------------------------------------- wrong passes


def first(p: Program) -> Program:
    """A pass that forgets that averages of signs start from zero."""
    return replace(p, moments=tuple(replace(m, init="first") for m in p.moments))


def of_gradients(p: Program) -> Program:
    return map_expressions(p, lambda e: GRAD if e == Op("sign", (GRAD,)) else None)


def cubed(p: Program) -> Program:
    return map_expressions(p, lambda e: Const(3.0) if e == Const(2.0) else None)


def rootless(p: Program) -> Program:
    return replace(p, denominator=p.denominator.args[0])


def other_beta(p: Program) -> Program:
    moments = (*p.moments[:-1], replace(p.moments[-1], beta=Const(0.99)))
    return replace(p, moments=moments)


def swapped(p: Program) -> Program:
    """(1 - beta)*m + beta*u."""
    a, b = p.numerator.args
    return replace(p, numerator=Op("add", (mul(b.args[0], a.args[1]), mul(a.args[0], b.args[1]))))


def lagging(p: Program) -> Program:
    return replace(p, denominator=Op("sqrt", (Ref("value", p.moments[-1].name),)))


def slower(p: Program) -> Program:
    return replace(p, moments=tuple(replace(m, beta=Const(0.5)) for m in p.moments))


def unclipped(p: Program) -> Program:
    return replace(p, link="ratio")


def negated(p: Program) -> Program:
    return replace(p, numerator=mul(p.numerator, -1))


def halved_sigma(p: Program) -> Program:
    return replace(p, denominator=mul(p.denominator, 0.5))


FAULTS = [
    (presign, "sgd", "presign", first),
    (presign, "adamw", "presign", of_gradients),
    (soft, "adamw", "soft:p=2", cubed),
    (soft, "adamw", "soft:p=2", rootless),
    (soft, "sgd", "soft:p=3", other_beta),
    (nesterov, "sgd", "nesterov", swapped),
    (nesterov, "adamw", "nesterov", lagging),
    (nesterov, "adamw", "nesterov", slower),
    (expected, "rmsprop", "expected", unclipped),
    (expected, "sgd", "expected", halved_sigma),
    (expected, "adamw", "expected", negated),
    (sign, "adamw", "sign", negated),
]


@pytest.mark.parametrize(("module", "spec", "request_", "fault"), FAULTS)
def test_fault_breaks_the_law(
    module, spec: str, request_: str, fault: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module.PASS.apply
    wrong = replace(module.PASS, apply=lambda p, options: fault(right(p, options)))
    ((_, _, before),) = verdicts(resolve(spec), (request_,))
    monkeypatch.setattr(module, "PASS", wrong)
    ((_, _, after),) = verdicts(resolve(spec), (request_,))
    assert before == "" and after
