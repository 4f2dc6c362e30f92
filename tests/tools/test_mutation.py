"""tools.mutation without its hour: what it believes, keeps and says; its list is whole."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tools.bounded import bounded
from tools.mutation import __main__ as mutation
from tools.mutation.mutants import MUTANTS, Mutant


def test_every_mutant_still_breaks_something() -> None:
    assert mutation.stale() == []
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 30
    for m in MUTANTS:
        assert m.first and all(old != new for _, old, new in m.edits)
        for test in m.first:
            assert (mutation.ROOT / test.split("::")[0]).exists(), test


def test_what_is_over_ends_with_all_that_it_started(tmp_path: Path) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    child = (
        "import pathlib, time; print('child', flush=True); "
        f"pathlib.Path({str(begun)!r}).touch(); time.sleep(1); pathlib.Path({str(ended)!r}).touch()"
    )
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    code, said = bounded([sys.executable, "-c", command], tmp_path, {}, begun.exists)
    assert (code, said) == (None, "child\n")
    time.sleep(1.5)
    assert not ended.exists()
    assert bounded([sys.executable, "-c", "exit(3)"], tmp_path, {}, lambda: False) == (3, "")


class Script(mutation.Judge):
    """Answers by a table: words of a command, then its exit code and output in the order asked."""

    def __init__(self, answers: dict[str, list[tuple[int | None, str]]]) -> None:
        self.limit, self.unbroken = 7, Path("unbroken")
        self._sound, self._locks = {}, {}
        self.answers, self.asked = answers, []

    def run(self, folder: Path, *command: str, times: int = 1) -> tuple[int | None, str]:
        place = "unbroken" if folder == self.unbroken else "mutant"
        key = f"{place} {' '.join(command[len(mutation.PYTEST) :])}"
        self.asked.append(key)
        time.sleep(0.02)
        return self.answers[key].pop(0)


FLAKY = "a.py::t[x - y]"
SAID = f"FAILED {FLAKY} - assert [1] - 2\n"


@pytest.mark.parametrize(
    ("answers", "noticed"),
    [
        ({"mutant a.py": [(0, "")]}, None),
        ({"mutant a.py": [(1, SAID)], f"unbroken {FLAKY}": [(0, "")]}, FLAKY),
        ({"mutant a.py": [(1, "FAILED a.py::u\n")], "unbroken a.py::u": [(0, "")]}, "a.py::u"),
        ({"mutant a.py": [(-6, "")], "unbroken a.py": [(0, "")]}, "the process ended with -6"),
        ({"mutant a.py": [(None, "")], "unbroken a.py": [(0, "")]}, "no end within 7 s"),
        (  # a failure that the tree itself has is left out, and the next one counts
            {
                "mutant a.py": [(1, SAID)], f"unbroken {FLAKY}": [(1, "")],
                f"mutant --deselect={FLAKY} a.py": [(1, "ERROR a.py::u - no\n")],
                "unbroken a.py::u": [(0, "")],
            },
            "a.py::u",
        ),
        (
            {
                "mutant a.py": [(1, SAID)], f"unbroken {FLAKY}": [(1, "")],
                f"mutant --deselect={FLAKY} a.py": [(0, "")],
            },
            None,
        ),
    ],
)  # fmt: skip
def test_who_noticed(answers: dict[str, Any], noticed: str | None) -> None:
    assert Script(answers).killer(Path("mutant"), "a.py") == noticed
    assert not any(answers.values())


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"mutant a.py": [(4, "no such file")]}, "did not run a.py: no such file"),
        ({"mutant a.py": [(None, "")], "unbroken a.py": [(None, "")]}, "does not end without"),
        (
            {
                "mutant a.py": [(1, SAID)], f"unbroken {FLAKY}": [(1, "")],
                f"mutant --deselect={FLAKY} a.py": [(1, SAID)],
            },
            "cannot be left out",
        ),
    ],
)  # fmt: skip
def test_what_is_no_answer(answers: dict[str, Any], reason: str) -> None:
    with pytest.raises(mutation.Unasked, match=reason):
        Script(answers).killer(Path("mutant"), "a.py")


def test_a_build_that_fails_anyway_notices_nothing() -> None:
    for unbroken, wanted in ((0, "signconv build: no"), (1, None)):
        judge = Script({"mutant ": [(1, "first\nno\n")], "unbroken ": [(unbroken, "")]})
        if wanted:
            assert judge.rebuild(Path("mutant")) == wanted
        else:
            with pytest.raises(mutation.Unasked, match="fails without a mutant"):
                judge.rebuild(Path("mutant"))


def test_many_threads_ask_the_unbroken_copy_once() -> None:
    judge = Script({"unbroken a.py": [(0, "")], "unbroken b.py": [(1, "")]})
    with ThreadPoolExecutor(16) as pool:
        asked = [
            (test, pool.submit(judge.sound, *mutation.PYTEST, test))
            for test in ("a.py", "b.py") * 8
        ]
    assert all(answer.result() == (test == "a.py") for test, answer in asked)
    assert sorted(judge.asked) == ["unbroken a.py", "unbroken b.py"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mutation", *arguments])
    return mutation.main()


def test_rows_are_kept_as_they_end_in_the_order_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slowest begin first; what had no answer fails the run and is asked again."""
    record, out = tmp_path / "known.json", tmp_path / "out.json"
    names = ["quick", "slow", "unknown", "late"]
    seconds = {"quick": 1, "slow": 9, "late": 0}
    record.write_text(json.dumps([{"mutant": n, "seconds": s} for n, s in seconds.items()]))
    monkeypatch.setattr(mutation, "RECORD", record)
    monkeypatch.setattr(mutation, "MUTANTS", [Mutant(n, (), ("a.py",)) for n in names])
    monkeypatch.setattr(mutation, "copy", lambda folder: folder)
    begun: list[str] = []
    kept: list[list[str]] = []
    stage: str | None = f"{mutation.UNASKED}the time was up"

    def row(judge: mutation.Judge, m: Mutant, wide: bool) -> dict[str, Any]:
        begun.append(m.name)
        kept.append(list(mutation.read(out)))
        late = m.name == "late"
        made = {"mutant": m.name, "files": [], "killed_by": None if late else "a.py::t"}
        return {**made, "stage": stage if late else "first", "seconds": 1, "why": ""}

    monkeypatch.setattr(mutation.Judge, "row", row)
    assert run(monkeypatch, "--json", str(out)) == 1
    assert begun == ["unknown", "slow", "quick", "late"]
    assert list(mutation.read(out)) == names
    begun.clear()
    stage = None
    assert run(monkeypatch, "--json", str(out)) == 1  # asked, and survived unexplained
    assert begun == ["late"] and kept[-1] == names
    text = "<!-- mutants: from raw/mutation.json -->\n<!-- end of mutants -->"
    assert "4 mutants, 3 noticed." in mutation.page(text, mutation.read(out))


def test_the_page_shows_the_record() -> None:
    text = (mutation.ROOT / "docs" / "trust.md").read_text("utf-8")
    record = mutation.read(mutation.RECORD)
    assert mutation.page(text, record) == text, "run `make mutation`"
    assert len(record) >= 30 and not any(map(mutation.failed, record.values()))


def test_time_that_is_up_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation, "copy", lambda folder: folder)
    judge = mutation.Judge(tmp_path, limit=60, within=0.5)
    found = judge.row(Mutant("slow", (), ("a.py",)), wide=False)
    assert found["stage"] == "not asked: the time was up"
    assert mutation.failed(found) and found["killed_by"] is None
