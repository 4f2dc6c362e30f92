"""Break signconv in small ways and see which test notices.

    python -m tests.mutation --json docs/raw/mutation.json --page docs/trust.md

Each mutant is made in a copy of the repository, generated/ is built anew by it (a comparison with
the committed files would notice every change of the compiler), then the tests asked first run, and
where they pass the wider list.  A survivor without an explanation in tests/mutants.py fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("signconv", "templates", "generated", "tests", "docs", "examples")
FILES = ("pyproject.toml", "Makefile", "README.md")
#: Asked where the tests asked first pass.
WIDE = (
    "tests/ir", "tests/dsl", "tests/lower", "tests/passes", "tests/test_specs.py",
    "tests/test_commutation.py", "tests/test_identities.py", "tests/runtime",
    "tests/theorems", "tests/test_faults.py", "tests/test_metamorphic.py",
    "tests/test_generated.py", "tests/fuzz", "tests/resume",
)  # fmt: skip
#: Compares generated/ with a rebuild, or what is printed of it with a record: no mathematics.
LEFT_OUT = "not rebuilding and not golden"


#: Build what they test themselves: generated/ need not be built anew for them.
OWN = (
    "tests/test_specs.py", "tests/fuzz", "tests/ir", "tests/dsl", "tests/lower", "tests/passes",
    "tests/test_identities.py", "tests/test_commutation.py", "tests/test_supply.py",
)  # fmt: skip


def copy(folder: Path) -> None:
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "raw")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)


def run(folder: Path, *command: str, limit: float) -> subprocess.CompletedProcess[str] | None:
    """None where it took longer than ``limit`` seconds."""
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"SIGNCONV_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    try:
        return subprocess.run(
            [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True,
            timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


#: Tests that fail without any mutant, and those that pass.
_sound: dict[str, bool] = {}


def sound(test: str, limit: float) -> bool:
    """Whether a test passes where nothing is broken: else its failure says nothing."""
    if test not in _sound:
        done = run(ROOT, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, limit=limit)
        _sound[test] = done is not None and done.returncode == 0
        if not _sound[test]:
            print(f"fails without a mutant: {test}", flush=True)
    return _sound[test]


def killer(folder: Path, tests: tuple[str, ...], limit: float) -> str | None:
    """The first test that fails, or what else ended the run; None if all pass."""
    unsound = [f"--deselect={test}" for test, ok in _sound.items() if not ok]
    done = run(
        folder, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT, *unsound,
        *tests, limit=limit,
    )  # fmt: skip
    if done is None:
        return f"no end within {limit:.0f} s"
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.M)
    if found is None and done.returncode in (2, 4, 5):
        raise RuntimeError(f"pytest did not run {tests}: {done.stdout[-2000:]}{done.stderr[-500:]}")
    if found is None:
        return f"the process ended with {done.returncode}"
    return found[1] if sound(found[1], limit) else killer(folder, tests, limit)


def rebuild(folder: Path) -> str | None:
    """Build generated/ by the mutant; what it said if it refused."""
    done = run(folder, "-m", "signconv", "build", "--all", limit=600)
    if done is None or done.returncode == 0:
        return None
    return f"signconv build: {(done.stderr.strip().splitlines() or ['no word'])[-1][:100]}"


def one(m: Mutant, limit: float, wide: bool) -> dict[str, Any]:
    """Make, build and ask one mutant."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="signconv_mutant_") as name:
        folder = Path(name)
        copy(folder)
        for file, old, new in m.edits:
            path = folder / file
            path.write_text(path.read_text("utf-8").replace(old, new), encoding="utf-8")
        compiler = any("runtime" not in file for file, _, _ in m.edits)
        stage, killed = "first", None
        for test in m.first:
            if compiler and not test.startswith(OWN):
                compiler, killed = False, rebuild(folder)
            if killed := killed or killer(folder, (test,), limit):
                break
        if not killed and wide:
            killed = rebuild(folder) if compiler else None
            stage, killed = "wide", killed or killer(folder, WIDE, 6 * limit)
    seconds = round(time.monotonic() - begin)
    made = {"mutant": m.name, "files": sorted({e[0] for e in m.edits}), "killed_by": killed}
    return {**made, "stage": stage if killed else None, "seconds": seconds, "why": m.survives}


REGION = re.compile(
    r"(<!-- mutants: from raw/mutation.json -->\n).*?(<!-- end of mutants -->)", re.S
)


def page(text: str, rows: list[dict[str, Any]]) -> str:
    """docs/trust.md with its table made anew from the record."""
    killed = sum(bool(r["killed_by"]) for r in rows)
    lines = [f"{len(rows)} mutants, {killed} noticed.\n", "| broken | noticed by |", "|---|---|"]
    for r in rows:
        said = r["killed_by"]
        test = f"`{said}`" if said else ""
        lines.append(f"| {r['mutant']} | {test or 'no test here: ' + r['why']} |")
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


def main() -> int:
    """Run all mutants, or those whose name holds ``--only``; 1 for an unexplained survivor."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="part of the names of the mutants to run")
    parser.add_argument("--first", action="store_true", help="leave the wider list out")
    parser.add_argument("--json", type=Path, help="where to record the table; kept rows are reused")
    parser.add_argument("--page", type=Path, help="docs/trust.md, whose table is made anew")
    parser.add_argument("--limit", type=float, default=400, help="seconds a test file may take")
    arguments = parser.parse_args()
    if found := stale():
        print("\n".join(["bring tests/mutants.py up to date:", *found]))
        return 2
    rows: dict[str, dict[str, Any]] = {}
    if arguments.json and arguments.json.exists():
        rows = {r["mutant"]: r for r in json.loads(arguments.json.read_text())}
    names = [m.name for m in MUTANTS]
    for m in MUTANTS:
        if arguments.only not in m.name or (not arguments.only and m.name in rows):
            continue
        rows[m.name] = row = one(m, arguments.limit, not arguments.first)
        print(f"{m.name}: {row['killed_by'] or 'SURVIVED'} ({row['seconds']} s)", flush=True)
        if arguments.json:
            kept = [rows[n] for n in names if n in rows]
            arguments.json.write_text(json.dumps(kept, indent=1) + "\n")
    if arguments.page:
        kept = [{**rows[m.name], "why": m.survives} for m in MUTANTS if m.name in rows]
        arguments.page.write_text(page(arguments.page.read_text("utf-8"), kept), "utf-8")
    return int(any(not r["killed_by"] and not r["why"] for r in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
