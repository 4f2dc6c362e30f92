"""``signconv show --html``: what the page says, that it asks no network, what it may replace."""

import re
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from signconv.ir.nodes import Program
from signconv.pipeline import Build, build, files
from signconv.prove import page, report
from tests.support import HEAD, spec_file
from tests.support.command import Run


@cache
def made(spec: str, convert: str | None = None) -> tuple[Build, str]:
    one = build(spec, convert=convert)
    return one, page.as_html(one)


class Parsed(HTMLParser):
    """Attributes, text, and whether every element is closed in its turn."""

    VOID = {"meta", "link"}

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def test_it_says_what_show_says() -> None:
    """Each fact of the report, from the report itself."""
    one, text = made("adamw", "nesterov,stosign")
    r, shown = report.assemble(one), Parsed(text).text
    for fact in (r["name"], r["doc"], r["command"], *r["remarks"], *r["algorithm"]):
        assert " ".join(fact.split()) in shown
    for sentences in r["claims"].values():
        assert [x for x in sentences if x not in shown] == []
    for storage in r["state"].values():
        assert f"{storage['bytes']:.3f}" in shown
        for m in storage["moments"].values():
            assert f"{m['bytes']:.3f} {m['format']}" in shown
    assert text.count('<math display="block">') == len(r["algorithm"]) + 1  # the bound
    for h in r["hyperparameters"]:
        assert f"{h['default']:g}" in shown
    assert f"eps is removed: {r['removed'][0]['reason']}" in shown
    assert "class AdamW(Optimizer): " in shown and "numerator = m.corrected" in shown
    for s in (*one.kernel.scalars, *one.kernel.math):
        assert f" {s.target} = " in shown


def test_each_pass_says_what_it_changed() -> None:
    one, text = made("adamw", "nesterov,stosign")
    first, second = page.changes(one)
    assert [x["request"] for x in (first, second)] == ["nesterov", "stosign"]
    plain = "update = m.corrected / (sqrt(v.corrected) + eps)"
    assert first["algorithm"][0] == ("−", plain)
    assert first["hyperparameters"] == [] and first["state"] == []
    assert second["algorithm"][0] == ("−", first["algorithm"][1][1])
    assert second["hyperparameters"] == [("−", "eps = 1e-08")]
    assert f"− {plain}" in unescape(text)
    (grown,) = page.changes(build("sgd", convert="stosign"))
    assert ("+", "G") in grown["state"] and ("+", "beta2 = 0.99") in grown["hyperparameters"]


def test_passes_over_tensors_and_sums_over_all_are_among_the_lowered() -> None:
    titles = [title for title, _ in page.lowered(build("came").kernel)]
    assert "a pass of every tensor" in titles and titles[-1] == "every element, in fp32"
    assert "sums over every tensor" in [t for t, _ in page.lowered(build("prodigy").kernel)]
    between = dict(page.lowered(build("schedulefree_adamw").kernel))["between steps"]
    assert between[-1].startswith("evaluated with: ")


def test_it_asks_no_network() -> None:
    """No element that loads, no style that does, and a policy under which none could."""
    _, text = made("adamw", "nesterov,stosign")
    found = Parsed(text).attributes
    loading = [(t, k, v) for t, k, v in found if k in ("src", "href", "srcset", "action", "data")]
    assert loading == [("link", "href", "data:,")]
    tags = {t for t, _, _ in found} | set(re.findall(r"<(\w+)", text))
    assert not tags & {"script", "img", "iframe", "object", "form", "a", "base"}
    assert (
        "url(" not in text
        and "@import" not in text
        and "http" not in re.sub("http-equiv", "", text)
    )
    assert ("meta", "content") in [
        (t, k) for t, k, v in found if v.startswith("default-src 'none'; style-src 'unsafe-inline'")
    ]


def test_words_of_a_spec_are_no_markup(tmp_path: Path) -> None:
    evil = '"""Of <script>alert(1)</script> & </pre> \'quotes\'."""'
    head = HEAD.replace("    lr", f"    {evil}\n\n    lr")
    one = build(spec_file(tmp_path, "numerator = grad  # </pre><b>", head).spec)
    text = page.as_html(one)
    assert "<script" not in text and "</pre><b>" not in text
    assert "Of <script>alert(1)</script> & </pre> 'quotes'." in Parsed(text).text
    assert str(tmp_path) not in text


def test_a_spec_without_a_file_has_no_source() -> None:
    p = build("sgd").base
    assert page.source_of(p).startswith("class SGD(Optimizer):")
    nowhere = Program(p.name, p.key, p.doc, p.hypers, p.moments, p.temps, p.numerator)
    assert page.source_of(nowhere) == ""


# ---------------------------------------------------------------- the file


def test_it_is_written_once_and_replaces_its_own_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.html"
    done = run("show", "sgd", "--html", path)
    assert (done.code, done.err) == (0, ""), done.err
    assert done.out == f"{path} written: SGD, fp8 state\n"
    first = path.read_text()
    assert first == page.as_html(build("sgd"))
    assert files.write_own(path, first, page.MARK) == (path, False)
    assert files.write_own(path, first + "<!-- newer -->", page.MARK) == (path, True)
    path.write_text("<p>mine</p>")
    done = run("show", "sgd", "--html", path)
    assert done.code == 2 and "is there already and signconv did not write it" in done.err
    assert path.read_text() == "<p>mine</p>"
    assert [x.name for x in path.parent.iterdir()] == ["a.html"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sgd", "--html", "{0}/file/a.html"], "cannot write .*a.html"),
        (["sgd", "--html", "{0}"], "cannot write"),
        (["sgd", "--html", "{0}/a.html", "--format", "json"], "leave out --format"),
        (["sgdd", "--html", "{0}/a.html"], "did you mean 'sgd'"),
    ],
)
def test_what_cannot_be_written(arguments: list[str], words: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run("show", *(x.format(tmp_path) for x in arguments))
    assert done.code == 2 and re.search(words, done.err) and done.err.count("\n") == 1, done.err
    assert [x.name for x in tmp_path.iterdir()] == ["file"]
