"""Files: builds that are killed, races, a damaged or foreign cache, and what may be executed."""

from __future__ import annotations

import ast
import errno
import os
import pickle
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import signconv
from signconv import pipeline
from signconv.errors import BuildError, SignconvError
from signconv.pipeline import build, files, write
from signconv.pipeline.files import UNFINISHED
from signconv.render.module import Module
from tests.support import HEAD, ROOT, environment, spec_file

OLD = Module("A", "a.py", "old = 1\n" * 4000)
NEW = Module("A", "a.py", "new = 2\n" * 5000)
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


# ---------------------------------------------------------------- killed builds


def killed_at(call: int, module: Module, folder: Path) -> bool:
    """Run ``write`` in a child that dies at its n-th call of a C function; True if it got through.

    Every system call is made by some C function, so the child dies between any two of them.
    """
    child = os.fork()
    if child == 0:
        made = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal made
            made += event in ("c_call", "c_return")
            if made == call:
                os._exit(9)

        sys.setprofile(count)
        write(module, folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@posix
@pytest.mark.parametrize(
    "before",
    [pytest.param(None, marks=pytest.mark.long, id="no file"), pytest.param(OLD, id="an old file")],
)
def test_killed_between_any_two_system_calls(before: Module | None, tmp_path: Path) -> None:
    """The target is the old file or the new one, and the next build sweeps what is left."""
    strays = finished = 0
    for call in range(1, 3000):
        folder = tmp_path / str(call)
        folder.mkdir()
        if before is not None:
            write(before, folder)
        done = killed_at(call, NEW, folder)
        target = folder / "a.py"
        found = target.read_text() if target.exists() else None
        assert found in (before and before.source, NEW.source)
        finished += found == NEW.source
        strays += len(list(folder.iterdir())) > (found is not None)
        write(OLD, folder)
        assert [p.name for p in folder.iterdir()] == ["a.py"]
        assert target.read_text() == OLD.source
        if done:
            break
    assert done
    assert call > 90
    assert strays > 10
    assert finished > 1


@posix
def test_an_unfinished_file_of_a_living_build_is_left_alone(tmp_path: Path) -> None:
    ours = tmp_path / f".b.py.x{UNFINISHED}"
    with ours.open("w") as file:
        assert files._lock(file.fileno())
        write(NEW, tmp_path)
        assert ours.exists()
    write(NEW, tmp_path)  # nothing changes, and it sweeps all the same
    assert not ours.exists()


@posix
def test_many_processes_write_one_file(tmp_path: Path) -> None:
    """A reader sees whole files only; no writer fails; nothing is left."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(60):
                    write((OLD, NEW)[number % 2], tmp_path)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    seen, running = set(), set(children)
    while running:
        target = tmp_path / "a.py"
        if target.exists():
            seen.add(target.read_text())
        for child in list(running):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0
                running.remove(child)
    assert seen <= {OLD.source, NEW.source}
    assert len(seen) == 2
    write(NEW, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.py"]


def test_two_processes_build_one_cache_entry(tmp_path: Path) -> None:
    code = "import signconv; print(signconv.compile('sgd', convert='stosign').program.hash)"
    env = environment(SIGNCONV_CACHE=str(tmp_path / "cache"))
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=-1, text=True)
        for _ in range(2)
    ]
    words = {p.communicate(timeout=120)[0] for p in both}
    assert [p.returncode for p in both] == [0, 0]
    assert len(words) == 1
    files = [p for p in (tmp_path / "cache").iterdir() if p.name != "__pycache__"]
    assert [p.suffix for p in files] == [".py"]


@pytest.mark.parametrize("where", ["mkdir", "open", "write", "replace"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(
    where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root writes anywhere, so the system's refusal is played."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    write(OLD, tmp_path)
    owner: Any = {"mkdir": Path}.get(where, os)
    monkeypatch.setattr(owner, {"write": "fsync"}.get(where, where), refuse)
    with pytest.raises(BuildError, match=rf"cannot write .*a\.py: {os.strerror(number)}"):
        write(NEW, tmp_path)
    assert (tmp_path / "a.py").read_text() == OLD.source
    assert [p.name for p in tmp_path.iterdir()] == ["a.py"]


# ---------------------------------------------------------------- the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SIGNCONV_CACHE", str(folder))
    return folder


def fresh() -> Any:
    """signconv.compile as a new process would see it."""
    for name in [n for n in sys.modules if n.startswith("signconv_cache.")]:
        del sys.modules[name]
    return signconv.compile("sgd", convert="stosign")


@pytest.mark.parametrize(
    "damage", [b"", b"raise SystemExit('not ours')\n", b"\xff\xfe", None], ids=str
)
def test_a_damaged_cache_entry_is_built_again(damage: bytes | None, cache: Path) -> None:
    fresh()
    (entry,) = cache.glob("*.py")
    good = entry.read_bytes()
    entry.write_bytes(good[: len(good) // 2] if damage is None else damage)
    cls = fresh()
    assert entry.read_bytes() == good
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    cls([p], lr=0.5).step()
    assert torch.equal(p.detach(), torch.full((3,), 0.5))


def test_bytecode_beside_the_entry_is_never_run(cache: Path) -> None:
    """Python trusts a .pyc whose date and size fit, whatever it does."""
    import importlib.util
    import py_compile

    fresh()
    (entry,) = cache.glob("*.py")
    evil = cache / "evil.py"
    evil.write_text("raise SystemExit('bytecode was run')\n")
    target = Path(importlib.util.cache_from_source(str(entry)))
    py_compile.compile(str(evil), cfile=str(target))
    data, info = target.read_bytes(), entry.stat()
    stamp = int(info.st_mtime).to_bytes(4, "little") + info.st_size.to_bytes(4, "little")
    target.write_bytes(data[:8] + stamp + data[16:])
    assert fresh().program.name


@posix
def test_the_cache_folder_is_private(cache: Path) -> None:
    fresh()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    cache.chmod(0o777)
    fresh()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@posix
def test_a_cache_folder_of_somebody_else_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(cache).st_uid + 1)
    with pytest.raises(BuildError, match=r"belongs to another user.*set SIGNCONV_CACHE"):
        fresh()
    assert not list(cache.iterdir())


@posix
def test_a_link_is_followed_only_if_it_is_ours(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    cache.symlink_to(tmp_path / "scratch")
    assert fresh().program.name  # one's own link to one's own folder
    plain = os.lstat

    def foreign(path: Any, **k: Any) -> os.stat_result:
        info = plain(path, **k)
        return os.stat_result((*info[:4], info.st_uid + 1, *info[5:]))

    monkeypatch.setattr(os, "lstat", foreign)
    with pytest.raises(BuildError, match="belongs to another user"):
        pipeline.cache_folder()


def test_a_cache_that_cannot_be_made_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIGNCONV_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(BuildError, match=r"cannot make the cache folder .*set SIGNCONV_CACHE"):
        fresh()


# ---------------------------------------------------------------- what enters templates

HOSTILE_WORDS = (
    'three quotes """ and more',
    "'''; import os #",
    "backslash at the end \\",
    "\\N{BULLET} \\x41 \\",
    "{{ 7 * 7 }} {% raise %} {# #}",
    "line one\\n\\n    indented {braces} %s\\r\\nlast",
    "nul \\x00 and bell \\x07",
    "right-to-left \\u202e and line separator \\u2028 end",
    "emoji \\U0001F600 é",
    '"',
    "",
)


@pytest.mark.parametrize("words", HOSTILE_WORDS)
def test_a_hostile_docstring_stays_a_docstring(words: str, tmp_path: Path) -> None:
    literal = repr(words) if "\\" not in words or words.endswith("\\") else f'"{words}"'
    source = HEAD.replace("    lr = hyper", f"    __doc__ = {literal}\n    lr = hyper")
    made = build(spec_file(tmp_path, "numerator = grad", head=source).spec)
    plain = build(spec_file(tmp_path, "numerator = grad", name="plain.py").spec)

    def code(text: str) -> str:
        """The module without docstrings."""
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                if ast.get_docstring(node) is not None:
                    node.body[0] = ast.Pass()
        return ast.dump(tree).replace("plain.py", "mine.py")

    assert code(made.module.source) == code(plain.module.source)
    assert "49" not in ast.get_docstring(ast.parse(made.module.source)).split("Generated")[0]


@pytest.mark.parametrize(
    "name",
    ["m; import os", "a.b", "m\n", "{{ m }}", "é", "ｍ", "class", "__import__", "m'", "", "1m"],
)
def test_names_are_identifiers_however_they_get_in(name: str, tmp_path: Path) -> None:
    """A class body can bind any string through locals(), as a setattr would."""
    body = f"locals()[{name!r}] = ema(grad, 0.5)\nnumerator = locals()[{name!r}]"
    with pytest.raises(SignconvError):
        build(spec_file(tmp_path, body).spec)


@pytest.mark.parametrize("name", ['A"B', "A\nB", "A B", "{{A}}", "Ａ", "A;import os", "../A", ""])
def test_the_class_name_is_an_identifier(name: str) -> None:
    with pytest.raises(BuildError, match="is not a class name"):
        build("sgd", name=name)


def test_a_class_with_a_hostile_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.py"
    path.write_text(
        "from signconv.dsl import *\n"
        "body = type(Optimizer).__prepare__('x', (Optimizer,))\n"
        "body['lr'] = hyper(0.1)\nbody['numerator'] = grad\n"
        "Fine = type(Optimizer)('A\\nimport os', (Optimizer,), body)\n"
    )
    with pytest.raises(SignconvError, match="not an ASCII identifier"):
        build(f"{path}:Fine")


@pytest.mark.parametrize("stem", ["a'b", 'a"b', "a{{7*7}}b", "a\nb", "ünï", "a b"])
def test_a_file_with_a_hostile_name(stem: str, tmp_path: Path) -> None:
    """Its name enters the header and a string of the module."""
    spec = spec_file(tmp_path, "numerator = grad", name=f"{stem}.py").spec
    made = build(spec)
    tree = ast.parse(made.module.source)
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert f"{stem}.py:Mine" in strings


def test_what_does_not_parse_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from signconv.render import signature

    monkeypatch.setattr(signature, "tuple_literal", lambda items: "(")
    with pytest.raises(BuildError, match="did not come out as valid Python"):
        build("sgd", convert="stosign")


def test_nothing_loads_pickles() -> None:
    """No pickle, marshal, shelve, or torch.load without weights_only in the package."""
    for path in [*(ROOT / "signconv").rglob("*.py"), *(ROOT / "generated").glob("*.py")]:
        tree = ast.parse(path.read_text())
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        safe = {
            id(n.func)
            for n in calls
            if any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in n.keywords)
        }
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            bad = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
            assert not bad & {n.split(".")[0] for n in names}, path
            if isinstance(node, ast.Attribute) and node.attr == "load":
                value = node.value
                if isinstance(value, ast.Name) and value.id == "torch" and id(node) in safe:
                    continue
                assert not (isinstance(value, ast.Name) and value.id in ("torch", "np")), path


def test_a_compiled_optimizer_pickles_as_its_recipe(cache: Path) -> None:
    """What is pickled is how it was built and the name of its module, never code."""
    cls = fresh()
    p = torch.ones(3, requires_grad=True)
    text = pickle.dumps(cls([p]))
    assert b"def _math" not in text and b"SGDStoSign" in text
    assert str(cache).encode() not in text


def test_module_replaced_source_is_compared(tmp_path: Path) -> None:
    made = build("sgd").module
    write(made, tmp_path)
    assert write(made, tmp_path)[1] is False
    assert write(replace(made, source=made.source + "#\n"), tmp_path)[1] is True
