"""docs/algorithms.md is what the code says, and what it says of tests is true."""

import re
from pathlib import Path

import pytest

from signconv.passes.base import registry
from signconv.pipeline.catalogue import GENERATED, Entry
from tests.render import test_generated
from tests.specs import test_specs
from tests.support.entries import core_first
from tools.docs.algorithms import HEAD, row

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")


def test_the_page_has_its_head_and_a_row_for_every_entry() -> None:
    rows = PAGE.removeprefix(HEAD).splitlines()
    assert PAGE.startswith(HEAD) and len(rows) == len(GENERATED)
    labels = [re.search(r"test_generated\.py\[([^]]+)\]", row)[1] for row in rows]
    assert labels == [e.label for e in GENERATED]


@pytest.mark.parametrize("entry", core_first())
def test_rows_are_made_from_the_code(entry: Entry) -> None:
    assert row(entry) in PAGE, "run `make docs`"


def ids(test: object, argument: str) -> set[str]:
    """The ids of a parametrized test, from its own mark."""
    (mark,) = [m for m in test.pytestmark if m.args[0] == argument]  # type: ignore[attr-defined]
    return {mark.kwargs["ids"](x) if "ids" in mark.kwargs else x for x in mark.args[1]}


def test_guards_are_tests() -> None:
    guards = re.findall(r"(test_\w+)\.py\[([^]]+)\]", PAGE)
    assert len(guards) == 2 * len(GENERATED)
    found = {
        "test_generated": ids(test_generated.test_kernel_equals_reference_bit_for_bit, "entry"),
        "test_specs": ids(test_specs.test_evaluator_follows_the_oracle, "name"),
    }
    assert [(file, name) for file, name in guards if name not in found[file]] == []


def test_compositions_name_the_sources_of_their_passes() -> None:
    rows = {r.split("|")[3].strip(): r.split("|")[2] for r in PAGE.splitlines() if "| `" in r}
    assert len(rows) == len(GENERATED)
    for command, source in rows.items():
        convert = re.search(r"--convert ([^\s`]+)", command)
        for x in convert[1].split(",") if convert else ():
            assert registry()[x.partition(":")[0]].source in source, command
