"""Records keep what a person can read: nothing large that is not text with a row a line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

LARGE = 300_000  # bytes
WIDEST = 200  # characters of a line that is still read


def readable(path: Path) -> bool:
    """A small file, a picture, or text whose lines are short."""
    if path.stat().st_size <= LARGE or path.suffix in (".png", ".svg"):
        return True
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return False
    return max(map(len, lines), default=0) <= WIDEST


def test_nothing_large_that_nobody_can_read() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no repository here")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    assert [p for p in paths if p.is_file() and not readable(p)] == []


def test_what_is_not_readable_is_found(tmp_path: Path) -> None:
    one_line, rows = tmp_path / "a.json", tmp_path / "b.json"
    one_line.write_text("[" + "1.5, " * LARGE + "1]")
    rows.write_text("1.5,\n" * LARGE)
    (tmp_path / "c.bin").write_bytes(b"\xff" * (LARGE + 1))
    assert not readable(one_line) and readable(rows) and not readable(tmp_path / "c.bin")


def test_records_are_no_raw_samples() -> None:
    """A row a line: all of docs/raw is shorter than one file of it once was."""
    raw = ROOT / "docs" / "raw"
    if not raw.is_dir():
        pytest.skip("an sdist carries no records")
    count = sum(
        len(p.read_text(encoding="utf-8").splitlines()) for p in raw.iterdir() if p.suffix != ".png"
    )
    assert count < 3_000
