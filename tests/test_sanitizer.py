"""tests/sanitizer.py without a GPU: what it launches, what it reads, what it says."""

import os
from pathlib import Path

import pytest

from signconv.runtime.formats import BLOCK
from tests import sanitizer
from tests.support import ROOT, python

CLEAN = """\
========= COMPUTE-SANITIZER
== module adamw
== module adamw launched 7
========= ERROR SUMMARY: 0 errors
"""
DIRTY = """\
========= COMPUTE-SANITIZER
== module adamw
== module adamw launched 7
== module lion
========= Invalid __global__ write of size 4 bytes
=========     at _step_kernel+0x1d0
=========     by thread (0,0,0) in block (3,0,0)
========= Invalid __global__ write of size 4 bytes
== module lion launched 5
========= ERROR SUMMARY: 2 errors
"""
RACE = """\
== module lamb
========= Error: Race reported between Write access at _combine+0x90
== module lamb launched 9
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


def test_reading_what_the_tool_said() -> None:
    good = sanitizer.read("memcheck", CLEAN, 0, 1.0)
    assert (good.modules, good.kernels, good.errors) == (1, 7, 0)
    assert sanitizer.clean([good], 1)
    bad = sanitizer.read("memcheck", DIRTY, 99, 1.0)
    assert (bad.modules, bad.kernels, bad.errors) == (2, 12, 2)
    assert list(bad.reports) == ["lion"]
    lines = list(sanitizer.table([good, bad], 2))
    assert lines[-1] == "verdict: NOT CLEAN"
    assert "memcheck, lion: 2 reports, the first: Invalid __global__ write" in lines[-2]
    assert sanitizer.read("racecheck", RACE, 99, 1.0).reports["lamb"]


@pytest.mark.parametrize(
    ("output", "code", "wanted"),
    [
        (CLEAN, 1, 1),  # the process failed
        (CLEAN, 0, 2),  # a module did not run
        (CLEAN.replace("0 errors", "3 errors"), 0, 1),
        (CLEAN.replace("ERROR SUMMARY: 0 errors", "cut off"), 0, 1),
    ],
)
def test_what_is_not_clean(output: str, code: int, wanted: int) -> None:
    assert not sanitizer.clean([sanitizer.read("memcheck", output, code, 1.0)], wanted)


def test_it_is_found_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    elsewhere = sanitizer.find()
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    if elsewhere is None:
        assert sanitizer.find() is None  # not executable
    tool.chmod(0o755)
    assert sanitizer.find() == str(tool)
    if elsewhere is None:
        done = python("-m", "tests.sanitizer", PATH=os.defpath, CUDA_HOME=None, CUDA_PATH=None)
        assert done.returncode == 2
        assert done.stdout.startswith("compute-sanitizer is neither on PATH nor in")


def test_what_it_launches_runs(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    chunk = 2 * BLOCK if device == "cpu" else None  # the interpreter is slow
    sanitizer.launch([str(ROOT / "generated" / "sgd_stosign.py")], device, chunk)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "== module sgd_stosign"
    assert said[1].startswith("== module sgd_stosign launched")


def test_many_runs_are_clean_when_each_is() -> None:
    good = sanitizer.read("memcheck", CLEAN, 0, 1.0)
    both = sanitizer.merged("memcheck", [good, good])
    assert (both.modules, both.kernels) == (2, 14) and sanitizer.clean([both], 2)
    for output, code in ((DIRTY, 99), (CLEAN, 1), (CLEAN.replace("0 errors", "cut off"), 124)):
        part = sanitizer.read("memcheck", output, code, 1.0)
        mixed = sanitizer.merged("memcheck", [good, part])
        assert not sanitizer.clean([mixed], good.modules + part.modules)


def test_all_modules_or_those_of_a_name() -> None:
    everything = sanitizer.modules("")
    assert len(everything) > 20 and all(Path(p).is_file() for p in everything)
    some = sanitizer.modules("adamw")
    assert 0 < len(some) < len(everything) and all("adamw" in p for p in some)
