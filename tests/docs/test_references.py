"""Comments, docstrings and pages name only what is in the repository.

A comment that cites a document nobody can read is authority without a reason.  Every name of a
Markdown, Python or template file must exist, and what follows a ``#`` must be one of its headings.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import anchors
from tests.support import ROOT, python

FOLDERS = ("signconv", "templates", "generated", "tests", "tools", "examples", "docs", ".github")
#: Folders of records, which name what was there when they were taken.
RECORDS = ("docs/raw", "docs/results", "tools/fuzz/regressions", "tests/data")
NAME = re.compile(r"(?<![\w/.:<>*-])([\w][\w./-]*\.(?:md|py|j2))\b(?!\.\w)(#[\w-]+)?")
#: Stand for a reader's own file, or for what a command or a test writes.
NOT_OURS = {
    "path/to/file.py", "file.py", "FILE.py", "mine.py", "optimizers/adams_stosign.py",
    "adamw_stosign_fp32.py", "claim.py", "NAME.py", "test_NAME.py", "test_my_optimizer.py",
}  # fmt: skip
#: Of other projects, cited as theirs.
ELSEWHERE = {"test/test_optim.py"}


def sources() -> list[Path]:
    found = [ROOT / name for name in ("Makefile", "pyproject.toml", *_pages_of_the_root())]
    for folder in FOLDERS:
        found += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".md", ".j2")]
    return [p for p in found if not any(_name(p).startswith(r) for r in RECORDS)]


def _pages_of_the_root() -> list[str]:
    """CHANGELOG.md is left out: it names what a release took away."""
    return sorted(p.name for p in ROOT.glob("*.md") if p.name != "CHANGELOG.md")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def basenames() -> frozenset[str]:
    files = (p for folder in FOLDERS for p in (ROOT / folder).rglob("*.*"))
    return frozenset(p.name for p in files) | {p.name for p in ROOT.iterdir()}


def prose(text: str, suffix: str) -> str:
    """Comments and docstrings of Python, comments of a Makefile or of TOML, the whole of a page."""
    if suffix in (".md", ".j2"):
        return text
    if suffix != ".py":
        return "\n".join(line.partition("#")[2] for line in text.splitlines())
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    said = [t.string for t in tokens if t.type == tokenize.COMMENT]
    with_docstrings = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (n for n in ast.walk(ast.parse(text)) if isinstance(n, with_docstrings))
    return "\n".join([*said, *filter(None, map(ast.get_docstring, nodes))])


def resolve(name: str, folder: Path) -> Path | None:
    """The file that a name means: from the root, its own folder or the package."""
    near = (ROOT / name, folder / name, *(ROOT / x / name for x in ("signconv", "tests", "docs")))
    return next((p for p in near if p.is_file()), None)


def dangling(text: str, path: Path) -> list[str]:
    """Names in a file's prose that lead nowhere."""
    wrong = []
    for name, anchor in set(NAME.findall(prose(text, path.suffix))):
        if name in NOT_OURS | ELSEWHERE:
            continue
        found = resolve(name, path.parent)
        if found is None:
            if "/" in name or name not in basenames():
                wrong.append(name)
        elif name.endswith(".md") and anchor and anchor[1:] not in anchors(found):
            wrong.append(f"{name}{anchor}")
    return sorted(wrong)


def test_every_reference_resolves() -> None:
    found = {_name(p): dangling(p.read_text(encoding="utf-8"), p) for p in sources()}
    assert {k: v for k, v in found.items() if v} == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('"""Rounding (algorithmics.md C8)."""', ["algorithmics.md"]),
        ("x = 1  # see docs/nowhere.md", ["docs/nowhere.md"]),
        ("# by tests/lower/test_nothing.py", ["tests/lower/test_nothing.py"]),
        ('"""Bits (docs/design.md#no-such-section)."""', ["docs/design.md#no-such-section"]),
        ('"""Bits (docs/design.md#random-numbers)."""', []),
        ('x = "algorithmics.md"  # a string is no citation', []),
    ],
)
def test_a_planted_reference_is_found(text: str, wrong: list[str]) -> None:
    assert dangling(text + "\n", ROOT / "signconv" / "planted.py") == wrong


def test_a_planted_reference_in_a_page_is_found() -> None:
    page = "See [numerics](numerics.md#no-such-heading) and `gone.py`.\n"
    planted = dangling(page, ROOT / "docs" / "planted.md")
    assert planted == ["gone.py", "numerics.md#no-such-heading"]


def test_make_check_finds_its_tests() -> None:
    """pytest runs nothing at all where one of the ids is no test."""
    done = python("-m", "pytest", "--collect-only", "-q", "@tests/check.txt")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
