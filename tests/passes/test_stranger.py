"""A pass by a stranger: one file, dropped beside the others, and every command takes it.

It has no law, which `signconv verify` says in a row that does not count as a failure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import signconv.passes
from signconv import cli, pipeline
from signconv.ir.describe import algorithm
from signconv.passes.base import parse, registry
from signconv.verification.laws import verdicts
from signconv.verification.witnesses import pass_rows
from tools.fuzz import programs

STRANGER = '''\
"""trim: every element of the gradient is cut off at a size before anything reads it."""

from __future__ import annotations

from signconv.errors import PassError
from signconv.ir.nodes import GRAD, Expr, Program, map_expressions, op
from signconv.passes.base import Options, Pass


def _apply(p: Program, options: Options) -> Program:
    at = float(options.get("at", "1"))
    if at <= 0:
        raise PassError("SC202", f"trim:at={at:g}: the size is above 0")
    small = op("clip", GRAD, -at, at)

    def rule(e: Expr) -> Expr | None:
        return small if e == GRAD else None

    return map_expressions(p, rule)


PASS = Pass(
    name="trim",
    title="Trim",
    order=4,
    group="trim",
    summary="the gradient is cut off elementwise",
    source="none",
    requires="any optimizer",
    provides="gradients of at most one size",
    apply=_apply,
    options={"at": "1|2"},
)
'''


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file, in a folder that the package of passes looks into as into its own."""
    folder = tmp_path / "passes"
    folder.mkdir()
    file = folder / "trim.py"
    file.write_text(STRANGER)
    monkeypatch.setattr(signconv.passes, "__path__", [*signconv.passes.__path__, str(folder)])
    yield file
    sys.modules.pop("signconv.passes.trim", None)
    vars(signconv.passes).pop("trim", None)


def command(*arguments: str) -> str:
    """What ``signconv ARGUMENTS`` prints; it must succeed."""
    wide = {"COLUMNS": "160"}  # no cell wraps
    done = CliRunner().invoke(cli.app, list(arguments), env=wide, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_it_is_one_short_file(stranger: Path) -> None:
    assert stranger.read_text().count("\n") <= 35
    assert next(iter(registry())) == "trim"


def test_build(stranger: Path, tmp_path: Path) -> None:
    said = command("build", "adamw", "--convert", "stosign,trim:at=2", "--out", str(tmp_path))
    assert "class AdamWTrimAt2StoSign" in said
    source = (tmp_path / "adamw_trimat2_stosign.py").read_text()
    assert "signconv build adamw --convert trim:at=2,stosign" in source
    p = pipeline.build("adamw", convert="stosign,trim:at=2").program
    assert algorithm(p)[0] == "m = beta1 * m.prev + (1 - beta1) * (clip(g, -2, 2))"


def test_show_and_list(stranger: Path) -> None:
    said = command("show", "adamw", "--convert", "trim")
    assert "trim" in said and "clip(g, -1, 1)" in said
    listed = command("list").split("│")  # a table, or in a narrow window cells of several lines
    words = {word for cell in listed for word in cell.split()}
    assert {"trim", "gradient", "cut", "off", "elementwise"} <= words


@pytest.mark.long
def test_verify_says_that_there_is_no_law(stranger: Path) -> None:
    said = command(
        "verify", "adamw", "--convert", "trim,stosign", "--device", "cpu", "--steps", "1"
    )
    rows = {line.split("│")[2].strip(): line for line in said.splitlines() if "pass law" in line}
    assert "not run" in rows["trim"] and "no law yet" in rows["trim"]
    assert "ok" in rows["stosign"]
    assert "FAILED" not in said and "evaluator - reference" in said


def test_rows_say_where_a_law_would_be(stranger: Path) -> None:
    row, other = pass_rows(pipeline.resolve("adamw"), ("trim", "sign"))
    assert (row.witness, row.subject, row.ok) == ("pass law", "trim", None)
    assert row.detail.startswith("no law yet: signconv.verification.laws.trim")
    assert other.ok
    assert [law for _, law, _ in verdicts(pipeline.resolve("adamw"), ("trim",))] == [None]


def test_random_programs_ask_for_it_as_it_may_be_asked_for(stranger: Path) -> None:
    found = programs.requests(registry().values())
    assert [x for x in found if x.startswith("trim")] == ["trim", "trim:at=1", "trim:at=2"]
    assert [x for x in found if x.startswith("soft")] == [f"soft:p={n}" for n in (1, 2, 3, 4)]


def test_every_request_that_random_programs_make_is_one() -> None:
    """One that ``parse`` refuses would be an error of the strategy, not of a program."""
    assert [parse(x).text for x in programs.PASSES] == programs.PASSES
