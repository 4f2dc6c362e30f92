"""Names, paths and files of a hostile user: refused in one line, or handled as they are."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import signconv
from signconv import pipeline
from signconv.errors import BuildError
from signconv.pipeline import files
from signconv.verification import differential

ROOT = str(Path(signconv.__file__).parents[1])
TAKEN = [
    "torch", "Step", "Tensors", "FusedOptimizer", "Tensor", "Sequence", "HyperSlot", "RandomBits",
    "MomentSlot", "OptimizerProgram", "ParamsT", "triton", "tl", "dev", "_math", "_scalars",
    "_math_reference", "super", "float", "__name__",
]  # fmt: skip


def cli(folder: Path, *args: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "signconv", *args]
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, check=False, **options
    )


@pytest.mark.parametrize("name", TAKEN)
def test_a_class_does_not_hide_what_its_module_uses(name: str) -> None:
    with pytest.raises(BuildError, match="SC307"):
        pipeline.build("nadam", convert="stosign", name=name)


def test_a_name_that_this_module_does_not_use_is_fine() -> None:
    assert pipeline.build("sgd", name="AdamW").module.class_name == "AdamW"


#: The commands of every path in one process, since importing torch outlasts them.
PATHS = """
import runpy, sys
names = sys.argv[1:]
for name in names:
    for arguments in (["build", "sgd", "--out", name], ["build", name + ".py:Mine"]):
        sys.argv = ["signconv", *arguments]
        try:
            runpy.run_module("signconv", run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        print(code, end="\\0", flush=True)
        print(end="\\0", file=sys.stderr, flush=True)
"""


def test_paths_are_printed_as_they_are_and_on_one_line(tmp_path: Path) -> None:
    names = ["d[/red]x", "d[b]x", ":smile:", "a\u202eb", b"d\xffx", "a\nb"]
    done = subprocess.run(
        [sys.executable, "-c", PATHS, *names],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
    )
    out, err = (x.split(b"\0") for x in (done.stdout, done.stderr))
    assert len(out) == len(err) == 2 * len(names) + 1
    for i, name in enumerate(names):
        assert out[2 * i].endswith(b"\n0") and out[2 * i].count(b"\n") == 1, (name, out[2 * i])
        folder = os.fsencode(tmp_path) + b"/" + os.fsencode(name)
        assert (Path(os.fsdecode(folder)) / "sgd.py").exists()
        if isinstance(name, str) and name.isprintable():
            assert name.encode() in out[2 * i]
        assert (out[2 * i + 1], err[2 * i + 1].count(b"\n")) == (b"2", 1), (name, err[2 * i + 1])


def test_a_path_from_a_shell_is_printed_as_it_is(tmp_path: Path) -> None:
    done = cli(tmp_path, "build", "sgd", "--out", "d[b]x")
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 1) and b"d[b]x" in done.stdout


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "signconv", "show", "sgd", "--format", "json"]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        command, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.stderr == b"" and done.returncode in (0, 1, 141)


def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    made = pipeline.build("signsgd")
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            path = made.write(tmp_path / str(mask))
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.build("signsgd").write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_file_swept_again_and_again_is_written_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, swept = files.replace, []

    def replace(path: Path, source: str) -> None:
        if len(swept) < 10:
            swept.append(path)
            raise FileNotFoundError
        kept(path, source)

    monkeypatch.setattr(files, "replace", replace)
    assert pipeline.build("signsgd").write(tmp_path).is_file()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "\nimport sys; sys.exit(0)\n"),
        pytest.param("", "\nclass Stop(BaseException): pass\nraise Stop\n", marks=pytest.mark.long),
        ("words=1", "words=0"),
        pytest.param('MomentSlot("m", "e4m3"', 'MomentSlot("m", "zzz"', marks=pytest.mark.long),
        (
            '    """The step in fp32, the same statements as ``_math``."""',
            '    raise ValueError("x")',
        ),
    ],
    ids=["exits", "raises", "no words", "no format", "reference raises"],
)
def test_verify_of_a_broken_file_says_so(old: str, new: str, tmp_path: Path) -> None:
    path = pipeline.build("sgd", convert="stosign").write(tmp_path)
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new) if old else source + new)
    done = cli(tmp_path, "verify", str(path), "--steps", "1")
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr


def test_verify_checks_one_text_and_says_that_it_was_edited(tmp_path: Path) -> None:
    path = pipeline.build("signsgd").write(tmp_path)
    made = differential.from_module(path)
    rows = []
    for row in differential.verify(made, path, "cpu", 1):
        rows.append(row)
        if row.witness == "file - compiler" and row.ok:
            path.write_text("raise ValueError\n")
    assert [r.detail for r in rows if r.ok is False] == ["was edited while it was checked"]
