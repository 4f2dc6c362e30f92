"""tools.sanitizer without a GPU: what it launches, what it reads, what it says."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from signconv.bench import limits
from signconv.runtime import program
from signconv.runtime.formats import BLOCK
from signconv.runtime.kernel import engine, folds, passes, scalars, step, walk
from signconv.runtime.program import Rows
from signconv.verification import bits
from tests.support import ROOT, python
from tools.sanitizer import __main__ as sanitizer

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
=========     at step_kernel+0x1d0
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


HOST = """\
========= COMPUTE-SANITIZER
== module adamw
========= Internal Sanitizer Error: The Sanitizer encountered an error when instrumenting
== module adamw launched 7
========= ERROR SUMMARY: 0 errors
"""
NO_RACE = CLEAN.replace(
    "ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
)


def test_reading_what_the_tool_said() -> None:
    good = sanitizer.read("memcheck", 0, CLEAN)
    assert (good.launched, good.errors) == ({"adamw": 7}, 0)
    assert sanitizer.clean([good, sanitizer.read("racecheck", 0, NO_RACE)], ["adamw"])
    bad = sanitizer.read("memcheck", 99, DIRTY)
    assert (bad.launched, bad.errors) == ({"adamw": 7, "lion": 5}, 2)
    assert list(bad.reports) == ["lion"] and bad.quiet() == ["adamw"]
    lines = list(sanitizer.table([good, bad], ["adamw", "lion"]))
    assert lines[-1] == "verdict: NOT CLEAN"
    assert "memcheck: lion: 2 reports, the first: Invalid __global__ write of size 4 bytes" in lines
    assert "memcheck: ran without a report: adamw" in lines
    assert sanitizer.read("racecheck", 99, RACE).reports["lamb"]


@pytest.mark.parametrize(
    ("output", "code", "wanted", "problem"),
    [
        (CLEAN, 1, ["adamw"], "exit code 1"),
        (CLEAN, None, ["adamw"], "cut off"),
        (CLEAN, 0, ["adamw", "lion"], "did not run to the end: lion"),
        (CLEAN.replace("launched 7", "launched 0"), 0, ["adamw"], "did not run to the end: adamw"),
        (CLEAN.replace("0 errors", "3 errors"), 0, ["adamw"], "ERROR SUMMARY: 3 errors"),
        (CLEAN.replace("0 errors", "0 errors were not"), 0, ["adamw"], "0 errors were not"),
        (CLEAN + CLEAN.replace("0 errors", "3 errors"), 0, ["adamw"], "SUMMARY: 3 errors"),
        (CLEAN.replace("ERROR SUMMARY", "ERROR"), 0, ["adamw"], "1 processes without a summary"),
        (NO_RACE.replace("(0 errors, 0", "(0 errors, 2"), 0, ["adamw"], "0 errors, 2 warnings"),
        (HOST, 0, ["adamw"], "adamw: 1 reports, the first: Internal Sanitizer Error"),
    ],
)
def test_what_is_not_clean(output: str, code: int | None, wanted: list[str], problem: str) -> None:
    result = sanitizer.read("memcheck", code, output)
    assert any(problem in found for found in result.problems(wanted)), result.problems(wanted)
    assert not sanitizer.clean([result], wanted)


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
        done = python("-m", "tools.sanitizer", PATH=os.defpath, CUDA_HOME=None, CUDA_PATH=None)
        assert done.returncode == 2
        assert done.stdout.startswith("compute-sanitizer is neither on PATH nor in")


class Stepped:
    """An optimizer that has nothing to do."""

    program = SimpleNamespace(reductions=())

    def __init__(self, params: object, **options: object) -> None:
        pass

    def step(self) -> None:
        pass


def test_what_it_launches_runs(
    device: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def rows_of(*arguments: Any) -> Rows:
        seen.add(found := program.rows_of(*arguments))
        return found

    monkeypatch.setattr(engine, "rows_of", rows_of)
    chunk = 2 * BLOCK if device == "cpu" else None  # the interpreter is slow
    sanitizer.launch([str(ROOT / "generated" / "sgd_stosign.py")], device, chunk)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "== module sgd_stosign"
    assert said[1].startswith("== module sgd_stosign launched")
    assert seen == set(Rows), "every way in which rows lie"


def test_kernels_are_counted_for_each_module_though_all_share_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interpreter compiles nothing: what each is asked for stands for what it compiled."""
    known: dict[object, set[int]] = {}

    def keys(kernel: object) -> set[int]:
        found = known.setdefault(kernel, set())
        found.add(len(found))
        return set(found)

    monkeypatch.setattr(limits, "compiled_keys", keys)
    monkeypatch.setattr(bits, "parameters", lambda *a: [])
    monkeypatch.setattr(bits, "load_class", lambda path: Stepped)
    sanitizer.launch(["generated/one.py", "generated/two.py"], "cpu", 32)
    said = capsys.readouterr().out.splitlines()
    assert said[1::2] == ["== module one launched 6", "== module two launched 6"]
    steps = {scalars.scalar_kernel, step.step_kernel, walk.walk_kernel}
    assert set(known) == steps | {passes.reduce_kernel, walk.column_kernel, folds.derive}


def said(tool: str, names: list[str], bad: str = "", summary: str = "") -> str:
    """What a tool prints of modules, one of them with an error that ends the process."""
    lines = ["========= COMPUTE-SANITIZER"] if tool else []
    for name in names:
        lines.append(f"== module {name}")
        if name == bad:
            lines.append("========= Invalid __global__ read of size 4 bytes")
            break
        lines.append(f"== module {name} launched 3")
    clean = "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    clean = clean if tool == "racecheck" else "ERROR SUMMARY: 0 errors"
    failed = "ERROR SUMMARY: 1 error"
    lines += [f"========= {failed if bad in names else clean}"] if tool else []
    return "\n".join(lines)


class Played(sanitizer.Runner):
    """Says what the tools would: ``bad`` has an error; ``blind`` finds nothing planted."""

    def __init__(self, cache: Path, bad: str = "", blind: str = "") -> None:
        super().__init__("compute-sanitizer", cache, 60.0, cache)
        self.bad, self.blind = bad, blind
        self.runs: list[tuple[str, ...]] = []

    def python(self, tool: str, *command: str) -> sanitizer.Result:
        names = [Path(p).stem for p in command[2:]]
        self.runs.append((tool, *names))
        if command[0] == "tools.sanitizer.planted":
            found = "" if tool == self.blind else "planted"
            return sanitizer.read(tool, 99, said(tool, ["planted"], found))
        bad = self.bad if tool else ""
        code = 99 if bad in names else 0
        return sanitizer.read(tool, code, said(tool, names, bad))


PATHS = [f"generated/{name}.py" for name in ("adamw", "lion", "sgd", "lamb", "adan")]


def test_a_few_processes_for_all_modules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played = Played(tmp_path)
    assert sanitizer.check(played, PATHS, list(sanitizer.TOOLS), 4) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "verdict: clean"
    assert {tuple(line.split()[:5]) for line in out if line.split()[1:2] == ["5"]} == {
        ("memcheck", "5", "15", "0", "2"), ("racecheck", "5", "15", "0", "2"),
    }  # fmt: skip
    assert sum(tool == "memcheck" for tool, *_ in played.runs) == 3  # two and what was planted


def test_one_error_keeps_no_other_module_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sanitizer.check(Played(tmp_path, bad="lion"), PATHS, ["memcheck"], 1) == 1
    out = capsys.readouterr().out
    assert "memcheck: lion: 1 reports" in out and "NOT CLEAN" in out
    assert "memcheck: ran without a report: adamw, sgd, lamb, adan" in out


def test_a_tool_that_sees_nothing_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tool in sanitizer.TOOLS:
        played = Played(tmp_path, blind=tool)
        assert sanitizer.check(played, PATHS, list(sanitizer.TOOLS), 2) == 1
        assert f"{tool} did not find the fault planted for it" in capsys.readouterr().out


def test_what_does_not_run_without_a_tool_is_not_run_under_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played = Played(tmp_path)
    played.end = 0.0
    assert sanitizer.check(played, PATHS, ["memcheck"], 2) == 2
    assert "without a tool not all run" in capsys.readouterr().out and not played.runs


def test_the_tool_is_asked_of_a_python_and_its_words_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script stands for compute-sanitizer: it says what it was asked and runs the command."""
    tool = tmp_path / "tool"
    tool.write_text(
        '#!/bin/sh\necho "========= COMPUTE-SANITIZER $*"\n'
        'while [ "$1" != -m ]; do last=$1; shift; done\n"$last" "$@"\n'
        'echo "== module cache launched ${#TRITON_CACHE_DIR}"\n'
        'echo "========= ERROR SUMMARY: 0 errors"\n'
    )
    tool.chmod(0o755)
    runner = sanitizer.Runner(str(tool), tmp_path / "cache", 60.0, tmp_path)
    found = runner.python("memcheck", "tools.sanitizer", "--help")
    assert found.codes == [0] and found.launched == {"cache": len(str(tmp_path / "cache"))}
    kept = (tmp_path / "memcheck.txt").read_text()
    assert "--tool memcheck --target-processes all --launch-timeout 0" in kept
    assert "--padding" in kept
    runner.python("racecheck", "tools.sanitizer", "--help")
    other = (tmp_path / "racecheck.txt").read_text()
    assert "--padding" not in other
    ports = {re.findall(r"--port (\d+)", text)[0] for text in (kept, other)}
    assert len(ports) == 2
    assert "usage: tools.sanitizer" in kept and "SUMMARY: 0 errors" in kept


def test_padding_is_more_than_a_kernel_can_run_over() -> None:
    for path in sanitizer.modules(""):
        chunk = bits.chunk_of(bits.load_class(Path(path)).program, "triton", torch.float32)
        assert 4 * chunk <= sanitizer.PADDING


def test_all_modules_or_those_of_a_name() -> None:
    everything = sanitizer.modules("")
    assert len(everything) > 20 and all(Path(p).is_file() for p in everything)
    some = sanitizer.modules("adamw")
    assert 0 < len(some) < len(everything) and all("adamw" in p for p in some)
