"""Each pass keeps its law.  That a wrong pass breaks it is in the test file of the pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from signconv.ir.analysis import inlined, is_scalar
from signconv.ir.nodes import Expr, Op, Program, rewrite
from signconv.passes.base import registry, without_offset
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
    ("adamw", "clip"),
    ("sgd", "clip:norm=0.3:over=tensor,presign"),
    ("lamb", "clip:value=0.2"),
    ("adamw", "cautious"),
    ("nadam", "cautious,stosign,ema:beta=0.5"),
    ("adamw", "soft:p=3,nesterov,cautious,expected"),
    ("lion", "ema"),
    ("amsgrad", "lookahead"),
    ("sgd", "stosign,lookahead:alpha=0.25:k=2"),
    ("adamw", "schedulefree"),
    ("lamb", "schedulefree:beta=0.5"),
    ("signum", "clip,schedulefree"),
    ("adamw", "cautious,stosign,schedulefree"),
]
CONVERTED = [*dict.fromkeys((e.spec, e.convert) for e in GENERATED if e.convert), *MORE]


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


def test_a_number_that_goes_as_eps_does_is_compared(tmp_path: Path) -> None:
    body = "q = ema(grad, 0.9)\nnumerator = q\ndenominator = sqrt(ema_) + 0.1"
    p = program_of(tmp_path, "ema_ = ema(grad**2, 0.9)\n" + body)
    (row,) = pass_rows(p, ("stosign",))
    assert row.ok is True


@pytest.mark.parametrize("convert", ["clip", "clip:over=tensor", "clip:value=0.1"])
def test_a_norm_beside_clip_is_of_gradients_as_they_come(convert: str, tmp_path: Path) -> None:
    p = program_of(tmp_path, "numerator = grad * min(norm(grad, over='all'), 9)")
    (row,) = pass_rows(p, (convert,))
    assert row.ok


@pytest.mark.parametrize("below", ["sqrt(abs(q)) + 0.1", "sqrt(size) + 0.1"])
def test_momentum_that_the_denominator_reads_is_left_in_it(below: str, tmp_path: Path) -> None:
    """And so schedulefree has no program without momentum to be compared with."""
    body = "q = ema(grad, 0.9)\nnumerator = q\n" + "size = abs(q)\n" * ("size" in below)
    p = program_of(tmp_path, f"{body}denominator = {below}")
    (row,) = pass_rows(p, ("schedulefree",))
    assert row.ok is None


#: Denominators of which a pass that takes too much, or too little, makes another number.
WHOLE = (
    "sqrt(w) + eps", "sqrt(w + eps)", "2 * (sqrt(w) + eps)", "root(w + eps, 4) / 3 + 1",
    "sqrt(w) + eps + abs(q)", "sqrt(w) * (eps + abs(tanh(q)))", "sqrt(w) * (q**2 / (q**2 + eps))",
    "max(sqrt(w), eps)", "sqrt(w + eps) + abs(q)", "below", "sqrt(1 + w * (w + eps))",
)  # fmt: skip


def everywhere(e: Expr, p: Program) -> Expr:
    """The eps of 0.1: every scalar added to or compared with anything."""

    def rule(x: Expr) -> Expr | None:
        if isinstance(x, Op) and x.fn in ("add", "max"):
            kept = [a for a in x.args if not is_scalar(a, p)]
            return kept[0] if len(kept) == 1 else None
        return None

    return rewrite(inlined(p, e), rule)


@pytest.mark.parametrize("denominator", WHOLE)
@pytest.mark.parametrize("link", ["stosign", "expected"])
def test_the_law_compares_with_what_was_written(
    denominator: str, link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking more than a summand of the whole is seen, for hyperparameters as for numbers."""
    names = "near = eps + sqrt(w)\nbelow = near * 1.5\n" if denominator == "below" else ""
    body = "eps = hyper(0.3, ge=0)\nq, w = ema(grad, 0.8), ema(grad**2, 0.9)\n" + names
    p = program_of(tmp_path, f"{body}numerator = q\ndenominator = {denominator}")
    assert [r.ok for r in pass_rows(p, (link,))] == [True]
    if without_offset(p.denominator, p) == everywhere(p.denominator, p):
        return
    monkeypatch.setattr("signconv.passes.stosign.without_offset", everywhere)
    assert [r.ok for r in pass_rows(p, (link,))] == [False]
