"""The init pass: where averages start; refusals; its law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import signconv
from signconv.ir.describe import algorithm
from signconv.ir.nodes import Const, Program
from signconv.passes import init
from signconv.pipeline import build
from tests.passes.bodies import breaks_the_law, converted, refused
from tests.support import program_of

BODY = """
    m = ema(grad, 0.9, init="first")
    n = ema(m, 0.8)
    G = max_ema(abs(m), 1.0)
    s = state()
    s.next = grad
    numerator = m + n + G + s.prev
"""


@pytest.mark.parametrize(("to", "starts"), [("zero", ("zero", "zero")), ("first", ("first",) * 2)])
def test_averages_alone_start_there(to: str, starts: tuple[str, str], tmp_path: Path) -> None:
    plain = program_of(tmp_path, BODY)
    p = converted(tmp_path, BODY, f"init:to={to}")
    assert tuple(x.init for x in p.moments[:2]) == starts
    assert [x.init for x in p.moments[2:]] == [x.init for x in plain.moments[2:]]
    assert p.history == (f"init:to={to}",)
    shown = [line.partition("   (t = 1")[0] for line in algorithm(p)]
    assert shown == [line.partition("   (t = 1")[0] for line in algorithm(plain)]


def test_the_papers_form_keeps_its_name() -> None:
    paper, zero = build("stosignsgd"), build("stosignsgd", convert="init:to=zero")
    assert paper.program.moment("m").init == "first"
    assert zero.module.class_name == "StoSignSGDInitZero"
    assert zero.module.file_name == "stosignsgd_init_zero.py"
    golden = build("stosignsgd", convert="init:to=zero,stosign:noise=golden")
    assert golden.program.moment("m").init == "zero" and golden.program.noise == "golden"


@pytest.mark.parametrize(
    ("body", "convert", "code", "words"),
    [
        ("numerator = grad", "init", "SC215", "init:to=zero or init:to=first"),
        ("numerator = grad", "init:to=one", "SC215", "valid: first, zero"),
        ("numerator = grad", "init:to=zero", "SC216", "no average of Mine starts from first"),
        ("m = ema(grad, 0.9)\nnumerator = m", "init:to=zero", "SC216", "starts from first"),
        (
            "m = ema(grad, 0.9)\nnumerator = m.corrected", "init:to=first", "SC216",
            "corrects m for a start from zero",
        ),
    ],
)  # fmt: skip
def test_refusals(body: str, convert: str, code: str, words: str, tmp_path: Path) -> None:
    found = refused(tmp_path, body, convert)
    assert found[0] == code and words in found[1]


def test_presign_starts_from_zero_whatever_was_asked(tmp_path: Path) -> None:
    p = converted(tmp_path, "m = ema(grad, 0.9)\nnumerator = m", "presign,init:to=first")
    assert p.history == ("init:to=first", "presign") and p.moment("m").init == "zero"


def other_start(p: Program) -> Program:
    return replace(p, moments=tuple(replace(m, init="first") for m in p.moments))


def faulty_beta(p: Program) -> Program:
    """Another average: the start alone must change."""
    moments = (replace(m, beta=Const(0.5)) if m.kind == "ema" else m for m in p.moments)
    return replace(p, moments=tuple(moments))


@pytest.mark.parametrize("fault", [other_start, faulty_beta])
def test_the_law_sees(fault: Callable[[Program], Program], monkeypatch: pytest.MonkeyPatch) -> None:
    assert breaks_the_law(init, "stosignsgd", "init:to=zero", fault, monkeypatch)


def test_a_beta_by_name_that_changes_with_time_comes_before_its_moment() -> None:
    """Adafactor's: at the first step the averages are the first squares either way."""
    plain, first = (signconv.compile("adafactor", convert=c) for c in (None, "init:to=first"))
    steps = []
    for cls in (plain, first):
        p = torch.nn.Parameter(torch.ones(4, 6))
        optimizer = cls([p])
        p.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        steps.append(p.detach().clone())
    torch.testing.assert_close(*steps)
