"""docs/algorithms.md is what the code says."""

from pathlib import Path

from signconv.algorithm_table import page

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_made_from_the_code() -> None:
    words = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert words == page(), "run `make docs`"
