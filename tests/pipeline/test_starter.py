"""``signconv new``: files that work at once, both or neither, and names that it refuses."""

import builtins
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from signconv.errors import BuildError
from signconv.pipeline import build, resolve, starter
from tests.support import environment
from tests.support.command import Run


def test_both_files_and_what_to_do_next(run: Run, tmp_path: Path) -> None:
    done = run("new", "my_adam", cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my_adam.py", "test_my_adam.py"]
    first, second, word, *commands = done.out.splitlines()
    assert first.startswith("my_adam.py written: class MyAdam")
    assert (second, word) == ("test_my_adam.py written: its test", "Next:")
    spec = (tmp_path / "my_adam.py").read_text()
    assert len(commands) == 4 and all(command in spec for command in commands)
    for command in commands:
        words = shlex.split(command)
        if words[1] in ("show", "build"):
            done = run(*words[1:], cwd=tmp_path)
            assert done.code == 0, done.err
    (built,) = (tmp_path / "optimizers").glob("*.py")
    assert "class MyAdamStoSign(" in built.read_text()


def test_it_begins_with_adamw(tmp_path: Path) -> None:
    made = starter.new("my_adam", tmp_path)
    ours, theirs = (build(x).program for x in (f"{made.spec}:MyAdam", "adamw"))
    assert ours.hypers == theirs.hypers and ours.moments == theirs.moments
    assert (ours.numerator, ours.denominator, ours.decay) == (
        theirs.numerator, theirs.denominator, theirs.decay,
    )  # fmt: skip


def test_its_test_passes_and_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one about the loss; the other, of ten seconds, in the next test."""
    monkeypatch.setenv("SIGNCONV_CACHE", str(tmp_path / "cache"))
    made = starter.new("my_adam", tmp_path)
    found = importlib.util.spec_from_file_location("test_my_adam", made.test)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    module.test_the_loss_goes_down()
    text = made.spec.read_text()
    made.spec.write_text(text.replace("numerator = m", "numerator = -m"))
    with pytest.raises(AssertionError, match=r"from .* to "):
        module.test_the_loss_goes_down()


@pytest.mark.long
@pytest.mark.parametrize("outside", [False, True])
def test_pytest_passes_at_once(outside: bool, tmp_path: Path) -> None:
    """Beside the files, and from another folder."""
    made = starter.new("my_adam", tmp_path / "deep er")
    where = tmp_path if outside else made.spec.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(made.test.relative_to(where))],
        cwd=where, env=environment(SIGNCONV_CACHE=str(tmp_path / "cache")),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_the_files_stand_as_ruff_leaves_them(tmp_path: Path) -> None:
    starter.new("my_adam", tmp_path)
    for arguments in (["check", "--select", "E,F,W,I,B"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length", "100"]
        done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


REFUSED = {
    "adamw": "signconv has an optimizer of that name",
    "AdamW": "signconv has an optimizer of that name",
    "adam_w": "signconv has an optimizer of that name",
    "random": "would hide the Python module",
    "torch": "would hide the Python module",
    "optimizer": "the language has a word of that name",
    "grad": "the language has a word of that name",
    "tensor": "its class would be Tensor, which generated code uses itself",
    "class": "a keyword of Python",
    "_mine": "begins with _",
    "1st": "has to be a Python identifier",
    "größe": "has to be a Python identifier",
    "": "has to be a Python identifier",
    "my adam": "has to be a Python identifier",
    "mine.py": r"leave out \.py: mine",
    "sub/mine": "the folder goes into --out: mine --out sub",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_would_not_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=rf"cannot name a new optimizer: .*{REFUSED[name]}.*SC318"):
        starter.new(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_capitals_is_the_class(tmp_path: Path) -> None:
    made = starter.new("MyAdam", tmp_path / "new" / "folder")
    assert made.spec == tmp_path / "new" / "folder" / "MyAdam.py"
    assert resolve(f"{made.spec}:MyAdam").name == "MyAdam"


@pytest.mark.parametrize("there", ["mine.py", "test_mine.py"])
def test_a_file_that_is_there_stays_and_nothing_is_written(
    there: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / there).write_text("")
    done = run("new", "mine", cwd=tmp_path)
    assert done.code == 2 and done.err.count("\n") == 1
    assert re.fullmatch(rf"signconv: {there} is there already: .* \[SC317\]\n", done.err)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(there, "")]


def test_a_folder_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("new", "mine", "--out", "file", cwd=tmp_path)
    assert done.code == 2 and re.search(r"cannot write file/mine\.py: .*SC308", done.err)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_ends_the_second_file_takes_the_first_away(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.open

    def failing(path: Any, *arguments: Any, **options: Any) -> Any:
        if Path(str(path)).name == "test_mine.py" and "x" in arguments:
            raise error
        return real(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", failing)
    with pytest.raises((KeyboardInterrupt, BuildError)):
        starter.new("mine", tmp_path)
    assert list(tmp_path.iterdir()) == []
