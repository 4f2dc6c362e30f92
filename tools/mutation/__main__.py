"""Break signconv in small ways and see which test notices.

    python -m tools.mutation --jobs 2 --json docs/raw/mutation.json --page docs/trust.md

Each mutant is made in a copy of the repository, generated/ is built anew by it (a comparison with
the committed files would notice every change of the compiler), then the tests asked first run, and
where they pass the wider list.  A test that fails, or does not end, without a mutant notices
nothing.  A survivor without an explanation in mutants.py fails, and so does a mutant that could not
be asked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tools.bounded import bounded
from tools.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs" / "raw" / "mutation.json"
PARTS = ("signconv", "templates", "generated", "tests", "tools", "docs", "examples")
FILES = ("pyproject.toml", "Makefile", "README.md")
#: Asked where the tests asked first pass.
WIDE = (
    "tests/ir", "tests/dsl", "tests/lower", "tests/passes", "tests/specs", "tests/theorems",
    "tests/runtime", "tests/render/test_generated.py", "tests/fuzz", "tests/resume",
)  # fmt: skip
#: Compares generated/ with a rebuild, or what is printed of it with a record: no mathematics.
LEFT_OUT = "not rebuilding and not golden"


#: Build what they test themselves: generated/ need not be built anew for them.
OWN = (
    "tests/specs/test_specs.py", "tests/fuzz", "tests/ir", "tests/dsl", "tests/lower",
    "tests/passes", "tests/theorems/test_identities.py", "tests/pipeline/test_files.py",
)  # fmt: skip
#: The id of a test that failed; what is between the brackets may hold anything.
NOTICED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+(?:\[.*?\])?)(?: - |$)", re.M)
BUILD = ("-m", "signconv", "build", "--all")
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT)
#: How the stage of a row begins that is no answer.
UNASKED = "not asked: "


class Unasked(Exception):
    """A mutant that could not be asked, and why."""


def copy(folder: Path) -> Path:
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "raw")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)
    return folder


class Judge:
    """Asks the tests, of mutants and of an unbroken copy, from any number of threads."""

    def __init__(self, folder: Path, limit: float, within: float) -> None:
        self.unbroken, self.limit = copy(folder), limit
        self.end = time.monotonic() + within
        self._sound: dict[tuple[str, ...], bool] = {}
        self._locks: dict[tuple[str, ...], threading.Lock] = {}

    def run(self, folder: Path, *command: str, times: int = 1) -> tuple[int | None, str]:
        """Exit code, None after ``times`` the limit, and output; raises where all time is up."""
        env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        env |= {"SIGNCONV_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        late = time.monotonic() + times * self.limit
        code, said = bounded(
            [sys.executable, *command], folder, env, lambda: time.monotonic() > min(late, self.end)
        )
        if code is None and time.monotonic() > self.end:
            raise Unasked("the time was up")
        return code, said

    def sound(self, *command: str, times: int = 1) -> bool:
        """Whether a command succeeds where nothing is broken: else its failure says nothing.

        Asked once, by the first thread that wants to know; the others wait for its answer.
        """
        with self._locks.setdefault(command, threading.Lock()):
            if command not in self._sound:
                self._sound[command] = self.run(self.unbroken, *command, times=times)[0] == 0
                if not self._sound[command]:
                    print(f"fails without a mutant: {' '.join(command)}", flush=True)
        return self._sound[command]

    def killer(self, folder: Path, *tests: str, times: int = 1) -> str | None:
        """The first test that fails, or what else ended the run; None if all pass."""
        unsound: list[str] = []
        while True:
            command = (*PYTEST, *(f"--deselect={test}" for test in unsound), *tests)
            code, said = self.run(folder, *command, times=times)
            if code == 0:
                return None
            found = NOTICED.search(said)
            if code is not None and found:
                if self.sound(*PYTEST, found[1]):
                    return found[1]
                if found[1] in unsound:
                    raise Unasked(f"{found[1]} cannot be left out")
                unsound.append(found[1])
            elif code in (2, 3, 4, 5):
                raise Unasked(f"pytest did not run {' '.join(tests)}: {said.strip()[-300:]}")
            elif not self.sound(*command, times=times):
                raise Unasked(f"{' '.join(tests)} does not end without a mutant")
            elif code is None:
                return f"no end within {times * self.limit:.0f} s"
            else:
                return f"the process ended with {code}"

    def rebuild(self, folder: Path) -> str | None:
        """Build generated/ by the mutant; what it said if it refused."""
        code, said = self.run(folder, *BUILD)
        if code == 0:
            return None
        if not self.sound(*BUILD):
            raise Unasked(f"signconv build --all fails without a mutant: {said.strip()[-300:]}")
        return f"signconv build: {(said.strip().splitlines() or ['no word'])[-1][:100]}"

    def ask(self, m: Mutant, folder: Path, wide: bool) -> tuple[str | None, str | None]:
        """Who noticed this mutant, and at which stage."""
        for file, old, new in m.edits:
            path = folder / file
            path.write_text(path.read_text("utf-8").replace(old, new), encoding="utf-8")
        compiler = any("runtime" not in file for file, _, _ in m.edits)
        killed = None
        for test in m.first:
            if compiler and not test.startswith(OWN):
                compiler, killed = False, self.rebuild(folder)
            if killed := killed or self.killer(folder, test):
                return killed, "first"
        if wide:
            killed = self.rebuild(folder) if compiler else None
            killed = killed or self.killer(folder, *WIDE, times=6)
        return killed, "wide" if killed else None

    def row(self, m: Mutant, wide: bool) -> dict[str, Any]:
        """Make, build and ask one mutant."""
        begin, killed = time.monotonic(), None
        with tempfile.TemporaryDirectory(prefix="signconv_mutant_") as name:
            try:
                killed, stage = self.ask(m, copy(Path(name)), wide)
            except Unasked as reason:
                stage = f"{UNASKED}{reason}"
        seconds = round(time.monotonic() - begin)
        made = {"mutant": m.name, "files": sorted({e[0] for e in m.edits}), "killed_by": killed}
        return {**made, "stage": stage, "seconds": seconds, "why": m.survives}


def answered(row: dict[str, Any]) -> bool:
    return not (row["stage"] or "").startswith(UNASKED)


def failed(row: dict[str, Any]) -> bool:
    """Not asked, or a survivor that nobody explained."""
    return not answered(row) or not (row["killed_by"] or row["why"])


REGION = re.compile(
    r"(<!-- mutants: from raw/mutation.json -->\n).*?(<!-- end of mutants -->)", re.S
)


def page(text: str, record: dict[str, dict[str, Any]]) -> str:
    """docs/trust.md with its table made anew from the record."""
    rows = [{**record[m.name], "why": m.survives} for m in MUTANTS if m.name in record]
    killed = sum(bool(r["killed_by"]) for r in rows)
    lines = [f"{len(rows)} mutants, {killed} noticed.\n", "| broken | noticed by |", "|---|---|"]
    for r in rows:
        said = r["killed_by"]
        none = f"no test here: {r['why']}" if answered(r) else r["stage"]
        lines.append(f"| {r['mutant']} | {f'`{said}`' if said else none} |")
    made = "\n".join(lines) + "\n"
    return REGION.sub(lambda m: m[1] + "\n" + made + "\n" + m[2], text)


def stale() -> list[str]:
    """Mutants whose text the sources no longer hold."""
    return [
        f"{m.name}: {file} has no {old!r}"
        for m in MUTANTS
        for file, old, _ in m.edits
        if old not in (ROOT / file).read_text(encoding="utf-8")
    ]


def read(path: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of a record by mutant; none where there is no record."""
    if path is None or not path.exists():
        return {}
    return {row["mutant"]: row for row in json.loads(path.read_text("utf-8"))}


def write(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """In the order of MUTANTS; whole at any moment, as the run may be cut off."""
    kept = [rows[m.name] for m in MUTANTS if m.name in rows]
    fresh = path.with_name(path.name + ".new")
    lines = ",\n ".join(map(json.dumps, kept))
    fresh.write_text(f"[\n {lines}\n]\n", encoding="utf-8")
    fresh.replace(path)


def slowest_first(mutants: list[Mutant]) -> list[Mutant]:
    """By the record in docs/raw; what is not in it may be slow."""
    known = read(RECORD)
    return sorted(mutants, key=lambda m: -known.get(m.name, {"seconds": math.inf})["seconds"])


def main() -> int:
    """Run all mutants, or those whose name holds ``--only``; 1 for an unexplained survivor."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="part of the names of the mutants to run")
    parser.add_argument("--first", action="store_true", help="leave the wider list out")
    parser.add_argument("--json", type=Path, help="where to record the table; kept rows are reused")
    parser.add_argument("--page", type=Path, help="docs/trust.md, whose table is made anew")
    parser.add_argument("--limit", type=float, default=400, help="seconds a test file may take")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds all may take")
    parser.add_argument("--jobs", type=int, default=1, help="mutants asked at once")
    arguments = parser.parse_args()
    if found := stale():
        print("\n".join(["bring tools/mutation/mutants.py up to date:", *found]))
        return 2
    rows = {name: row for name, row in read(arguments.json).items() if answered(row)}
    wanted = [
        m for m in MUTANTS if arguments.only in m.name and (arguments.only or m.name not in rows)
    ]
    with (
        tempfile.TemporaryDirectory(prefix="signconv_unbroken_") as name,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        judge = Judge(Path(name), arguments.limit, arguments.within)
        try:
            asked = [pool.submit(judge.row, m, not arguments.first) for m in slowest_first(wanted)]
            for done in as_completed(asked):
                row = done.result()
                rows[row["mutant"]] = row
                said = row["killed_by"] or ("SURVIVED" if answered(row) else row["stage"])
                print(f"{row['mutant']}: {said} ({row['seconds']} s)", flush=True)
                if arguments.json:
                    write(arguments.json, rows)
        except BaseException:  # Ctrl-C reaches this thread alone
            judge.end = -math.inf
            pool.shutdown(cancel_futures=True)
            raise
    if arguments.page:
        arguments.page.write_text(page(arguments.page.read_text("utf-8"), rows), "utf-8")
    return int(any(map(failed, rows.values())))


if __name__ == "__main__":
    sys.exit(main())
