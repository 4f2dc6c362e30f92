"""Every error has a code, every code is provoked and its text read, docs/errors.md lists them."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW

from signconv import errors
from signconv.errors import Origin, SignconvError, SpecError
from signconv.pipeline import build, resolve
from tests.errors.faults import FAULTS
from tests.errors.spec_faults import BODIES, BUILDS
from tests.support import ROOT, environment, spec_file
from tools.docs import errors as error_table
from tools.docs.errors import CODES, DOORS, raises

SITES = list(raises(ROOT / "signconv"))
#: Raised for Python, for typer or for a caller inside signconv: no user reads them as they are.
INTERNAL = {
    "AttributeError",  # what hasattr, getattr and __getattr__ ask for
    "KeyError",  # what a class body's mapping raises for a name of another scope
    "NotImplementedError",  # cpu/lanes': cpu/compile names the program and adds the code
    "SyntaxError",  # prove/mathml's: the line stands on the page as text
    "Unproved",  # becomes the reason in `show`
    "typer.BadParameter",  # a usage error, SC700
    "typer.Exit",
}
#: Provoked on the command line.
USAGE = {"SC700"}


def test_every_raise_has_a_code() -> None:
    bare = [f"{s.file}:{s.line} {s.kind}" for s in SITES if not s.code and s.kind not in INTERNAL]
    assert not bare, f"raise with a code of tools/docs/errors.py: {bare}"
    assert len(SITES) > 150


def test_internal_errors_stay_inside() -> None:
    where = {s.file for s in SITES if s.kind == "NotImplementedError" and not s.code}
    assert where == {"runtime/cpu/lanes.py", "runtime/cpu/rows.py"}
    own = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    assert not own & INTERNAL


def test_every_code_is_in_the_table_and_is_raised() -> None:
    assert {s.code for s in SITES if s.code} | USAGE == set(CODES)
    assert list(CODES) == sorted(CODES)
    assert {c[2] for c in CODES} == set(DOORS)
    assert all(re.fullmatch(r"SC\d{3}", c) for c in CODES)


def test_every_code_is_provoked_once() -> None:
    count = Counter([*BODIES, *BUILDS, *FAULTS, *USAGE])
    assert set(count) == set(CODES)
    assert set(count.values()) == {1}


def read(error: BaseException, code: str, words: str) -> None:
    """Its code ends the text, once; the words are in it; the class is the one raised there."""
    message = str(error)
    assert message.endswith(f" [{code}]"), message
    assert re.search(words, message), message
    assert "\n" not in message
    assert type(error).__name__ in {s.kind for s in SITES if s.code == code}
    if isinstance(error, SignconvError):
        assert error.code == code


@pytest.mark.parametrize("code", BODIES)
def test_a_description(code: str, tmp_path: Path) -> None:
    body, words = BODIES[code]
    spec = spec_file(tmp_path, body)
    with pytest.raises(SpecError) as caught:
        resolve(spec.spec)
    read(caught.value, code, words)
    assert str(caught.value).startswith(f"{spec.path}:")


@pytest.mark.parametrize("code", BUILDS)
def test_a_build(code: str, tmp_path: Path) -> None:
    body, convert, state, math, words = BUILDS[code]
    with pytest.raises(SignconvError) as caught:
        build(spec_file(tmp_path, body).spec, convert=convert, state=state, math=math)
    read(caught.value, code, words)


@pytest.mark.parametrize("code", FAULTS)
def test_an_act(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act, words = FAULTS[code]
    kinds: Any = (SignconvError, ValueError, TypeError, RuntimeError, ImportError)
    with pytest.raises(kinds) as caught, monkeypatch.context() as patch:
        act(tmp_path, patch)
    read(caught.value, code, words)


def test_the_command_line_prints_the_code() -> None:
    for arguments, words in (
        (["build", "adamww"], r"unknown optimizer 'adamww'; did you mean 'adamw'\? .* \[SC102\]"),
        (["build", "--al"], r"No such option.* \(see .*signconv build --help\) \[SC700\]"),
    ):
        command = [sys.executable, "-m", "signconv", *arguments]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 2
        assert re.fullmatch(f"signconv: {words}\n", done.stderr), done.stderr


def test_message_origin_and_code_are_at_hand() -> None:
    error = SpecError("SC114", "'m' is bound twice", Origin("mine.py", 9))
    assert str(error) == "mine.py:9: 'm' is bound twice [SC114]"
    assert (error.code, error.message) == ("SC114", "'m' is bound twice")


def test_an_error_of_the_runtime_is_of_the_class_that_torch_would_raise() -> None:
    with pytest.raises(ValueError, match=r"\[SC407\]$"):
        AdamW([torch.zeros(3, requires_grad=True)], lr=-1.0)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        torch.optim.AdamW([torch.zeros(3, requires_grad=True)], lr=-1.0)


def test_the_page_is_made_from_the_code() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert text == error_table.page(), "run `make docs`"


def test_a_raise_without_a_code_is_found(tmp_path: Path) -> None:
    """The scan itself: what it must and must not take for a code."""
    (tmp_path / "a.py").write_text(
        "raise SpecError('no code')\nraise coded(ValueError, 'SC407', 'x')\n"
        "raise ValueError(f'SC{1}')\nraise PassError('SC201', 'x') from None\nraise\n"
        "def f():\n    return coded(TypeError, 'SC406', 'x')\n    return str(1)\n"
    )
    found = [(s.line, s.kind, s.code) for s in raises(tmp_path)]
    assert found == [
        (1, "SpecError", None),
        (2, "ValueError", "SC407"),
        (3, "ValueError", None),
        (4, "PassError", "SC201"),
        (7, "TypeError", "SC406"),
    ]
