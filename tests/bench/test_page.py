"""Tables, chart and page: what they say is what the record holds."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import rich.console

from signconv.bench import chart, page, run
from signconv.bench.table import as_markdown, as_rich, number, tables
from signconv.errors import BenchError, PictureError
from tests.bench import records
from tests.support import ROOT

PAGE = ROOT / "docs" / "performance.md"


def test_the_committed_page_is_what_its_records_give() -> None:
    """`make performance` was run after the last measurement, and nobody edited a figure."""
    text = PAGE.read_text(encoding="utf-8")
    assert page.rendered(text, PAGE.parent) == text


def test_the_page_names_every_committed_record() -> None:
    made = {f"raw/{p.name}" for p in (PAGE.parent / "raw").glob("*.json") if is_record(p)}
    assert set(page.named(PAGE.read_text(encoding="utf-8"))) == made


def is_record(path: Path) -> bool:
    try:
        run.read(path)
    except BenchError:
        return False
    return True


# ---------------------------------------------------------------- tables


def cells(record: dict[str, Any], title: str) -> list[dict[str, str]]:
    (found,) = [t for t in tables(record) if t.title.startswith(title)]
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.04125, "0.04125"), (0.9134, "0.9134"), (12.3456, "12.35"), (0, "0.000"),
     (4216.4, "4,216"), (123456.0, "123,456"), (1.0, "1.000")],
)  # fmt: skip
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_workload_table() -> None:
    record = records.full()
    (d, failed) = cells(record, "D, small tensors: 2,000 tensors, 1,048,576 elements")
    assert d["optimizer"] == "adamw" and d["ms"] == "0.04125" and d["kernel ms"] == "0.03300"
    assert d["of a copy"] == "0.170" and d["host µs"] == "75.5" and d["state B"] == "2.06"
    assert d["moved B"] == "10.12" and d["launches"] == "2" and d["peak bytes"] == "0"
    assert failed["note"] == "out of memory on the device"
    titles = [t.title for t in tables(record)]
    assert "a copy 4,000 GB/s, a list copy (bf16) 3,800 GB/s" in titles[0]


def test_columns_without_a_figure_are_left_out() -> None:
    row = records.ours("adamw", "A", 1.0, kernel_ms=None, host_us=None, launches=None)
    (found,) = cells(records.record(row), "A, one tensor")
    assert not {"kernel ms", "host µs", "launches", "note"} & set(found)


def test_limits_table() -> None:
    row, *_ = cells(records.full(), "limits")
    assert (row["ms"], row["bytes ms"], row["issue ms"], row["integer ms"]) == (
        "0.4000", "0.2000", "0.3000", "0.2500",
    )  # fmt: skip
    assert (row["bytes/time"], row["issue/time"]) == ("0.500", "0.750")
    assert row["nearest limit"] == "issue"


def test_no_limits_where_nothing_was_compiled() -> None:
    row = records.ours("adamw", "A", 1.0, counts=None, counts_error="no machine code: not on a GPU")
    assert not [t for t in tables(records.record(row)) if t.title == "limits"]


def test_peers_table() -> None:
    bf16, fp8, bnb, missing = cells(records.full(), "peers")
    assert bf16["ours"] == "adamw@bf16 (4.00 B)" and bf16["ours/peer ms"] == "0.750"
    assert fp8["ours"] == "adamw (2.06 B)" and fp8["ours/peer ms"] == "0.500"
    assert fp8["ours/peer step"] == "0.500"
    assert bnb["ours"] == "adamw (2.06 B) *", "a build with more state than the peer is marked"
    assert missing["workload"] == "A, D" and missing["ours"] == "–"
    assert missing["note"] == "not installed: pip install torchao"


def test_both_renderings_hold_the_same_cells() -> None:
    record = records.full()
    console = rich.console.Console(width=250, file=io.StringIO())
    for t in tables(record):
        console.print(as_rich(t))
    shown = console.file.getvalue()
    for t in tables(record):
        text = as_markdown(t)
        for cell in {c for row in (t.columns, *t.rows) for c in row}:
            assert cell in text and cell in shown, cell


# ---------------------------------------------------------------- page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A docs folder with a page and one record."""
    (tmp_path / "raw").mkdir()
    run.write(records.full(), tmp_path / "raw" / "gpu.json")
    (tmp_path / "page.md").write_text("# Head\n\n<!-- bench: -->\n<!-- end of bench -->\n\nTail.\n")
    return tmp_path


def test_page_is_rendered_in_place_and_stays(folder: Path, capsys: Any) -> None:
    path = folder / "page.md"
    page.main([str(path), str(folder / "raw" / "gpu.json")])
    text = path.read_text()
    assert text.startswith("# Head\n\n<!-- bench: raw/gpu.json -->\n### GPU X, 2026-01-02")
    assert text.endswith("<!-- end of bench -->\n\nTail.\n")
    for words in ("`signconv bench adamw --workload A,D`", "132 SMs at 1755 MHz", "0.04125",
                  "[raw/gpu.json](raw/gpu.json)", "](raw/gpu.png)", "torch 2.11.0"):  # fmt: skip
        assert words in text
    assert "numba" not in text and "cut off" not in text and "quick" not in text
    page.main([str(path)])
    assert path.read_text() == text and "unchanged" in capsys.readouterr().out


def test_an_edited_figure_is_found(folder: Path) -> None:
    path = folder / "page.md"
    page.main([str(path), str(folder / "raw" / "gpu.json")])
    text = path.read_text()
    assert page.rendered(text.replace("0.04125", "0.03125"), folder) == text
    changed = records.full()
    changed["rows"][0]["of_copy"] = 0.91
    run.write(changed, folder / "raw" / "gpu.json")
    assert page.rendered(text, folder) != text


def test_page_says_what_is_no_benchmark(folder: Path) -> None:
    record = records.full()
    record["complete"], record["settings"]["quick"] = False, True
    text = page.section(record, "raw/gpu.json", folder)
    assert "cut off" in text and "no speed" in text


def test_pages_that_cannot_be_rendered(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no place for measurements"):
        page.rendered("# Head\n", folder)
    outside = folder / "page.md"
    (folder / "sub").mkdir()
    outside.rename(folder / "sub" / "page.md")
    with pytest.raises(BenchError, match="is outside"):
        page.main([str(folder / "sub" / "page.md"), str(folder / "raw" / "gpu.json")])


# ---------------------------------------------------------------- chart


def test_chart_has_a_bar_per_optimizer_and_workload(tmp_path: Path) -> None:
    """matplotlib writes every text of an SVG as a comment beside its outline."""
    chart.draw(records.full(), tmp_path / "new" / "c.svg")
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "new" / "c.svg").read_text())
    for words in ("adamw", "adamw@bf16", "A, one tensor", "D, small tensors", "GPU X"):
        assert words in texts
    assert texts.count("0.90") == 2 and texts.count("0.17") == 1
    assert "lamb" not in texts, "a row that failed has no bar"


def test_charts_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"name ends in \.png"):
        chart.draw(records.full(), tmp_path / "c.txt")
    with pytest.raises(BenchError, match="nothing to draw"):
        chart.draw(records.record(), tmp_path / "c.png")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PictureError, match="cannot write"):
        chart.draw(records.full(), tmp_path / "file" / "c.png")
