"""Every page as a file: what must be on it, where its links lead, what it would load."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import signconv.dsl
from signconv.pipeline.catalogue import GENERATED, Entry
from tests.support import ROOT
from tests.support.entries import path_of

REPOSITORY = "https://github.com/signconv/signconv/"
#: What loads a file by itself: tag -> attribute.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href",
         "object": "data", "use": "href", "image": "href"}  # fmt: skip


class Parsed(HTMLParser):
    """Ids, links and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attributes}
        self.ids |= {found[k] for k in ("id", "name") if k in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        target = found.get(LOADS.get(tag, ""), "")
        if target and found.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(target)


@cache
def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    """All pages but the one that says that there is none, whose links are absolute."""
    found = [p for p in sorted(site.rglob("*.html")) if p.name != "404.html"]
    assert len(found) > len(GENERATED)
    return found


def test_links_lead_to_files_and_anchors(pages: list[Path]) -> None:
    wrong = []
    for page in pages:
        for link in parsed(page).links:
            url = urlsplit(link)
            if url.scheme:
                continue
            path = (page.parent / unquote(url.path)).resolve() if url.path else page
            if not path.is_file():
                wrong.append((page.name, link))
            elif url.fragment and path.suffix == ".html":
                if unquote(url.fragment) not in parsed(path).ids:
                    wrong.append((page.name, link))
    assert not wrong


def test_links_into_the_repository_name_what_is_there(pages: list[Path]) -> None:
    seen = 0
    for link in {link for page in pages for link in parsed(page).links}:
        if found := re.match(REPOSITORY + r"(blob|tree)/main/([^#]*)", link):
            path = ROOT / found[2]
            assert path.is_dir() if found[1] == "tree" else path.is_file(), link
            seen += 1
    assert seen > len(GENERATED)


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: list[Path]) -> None:
    for page in pages:
        for target in parsed(page).loads:
            if target.startswith("data:"):
                continue
            assert not urlsplit(target).scheme and not target.startswith("//"), (page, target)
            assert (page.parent / unquote(urlsplit(target).path)).is_file(), (page, target)
    for sheet in site.rglob("*.css"):
        loaded = re.findall(
            r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)", sheet.read_text()
        )
        assert not loaded, sheet


def test_every_document_has_its_page(site: Path) -> None:
    documents = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")]
    wanted = [p for p in documents if p.parts[0] not in ("raw", "results")]
    assert len(wanted) > 20
    for path in wanted:
        assert (site / path.with_suffix(".html")).is_file(), path


@pytest.mark.parametrize("entry", GENERATED, ids=lambda e: e.label)
def test_every_optimizer_has_its_page(entry: Entry, site: Path) -> None:
    text = (site / "catalogue" / f"{path_of(entry).stem}.html").read_text("utf-8")
    for heading in ("algorithm", "spec", "bound-on-a-step", "state", "loss", "passes"):
        assert f'id="{heading}"' in text, heading
    assert "<mtable" in text
    assert text.count('class="figures"') >= 1 and text.count("function:") >= 2
    plain = re.sub(r"<[^>]+>", "", text)
    spec = (ROOT / "signconv" / "specs" / f"{entry.spec}.py").read_text("utf-8")
    assert re.search(r"class \w+\(Optimizer\)", spec)[0] in plain
    curve = "nats per" in plain or "held-out loss on digits" in plain
    assert curve or "recorded" in plain or "other settings" in plain


def test_formulas_are_rendered(pages: list[Path]) -> None:
    """No LaTeX is left for a script to find, and no formula came out empty."""
    for page in pages:
        text = page.read_text("utf-8")
        assert "arithmatex" not in text, page
        assert "<merror" not in text and not re.search(r"<mi>\\", text), page


def test_search_knows_what_people_look_for(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    texts = {d["location"]: f"{d['title']} {d['text']}" for d in index["docs"]}
    for term, page in {
        "AdamWStoSign": "catalogue/adamw_stosign.html",
        "stochastic rounding": "results.html",
        "SC207": "errors.html",
        "Prodigy": "catalogue/prodigy.html",
        "gradient_release": "api/signconv.html",
        "AdamAbs": "first_optimizer.html",
    }.items():
        assert any(term in text for where, text in texts.items() if where.startswith(page)), term
    assert not any("−4" in text for where, text in texts.items() if "#path-on" in where)


def test_reference_has_the_public_names(site: Path) -> None:
    ids = parsed(site / "api" / "signconv.html").ids
    assert {f"signconv.{n}" for n in signconv.__all__ if not n.startswith("_")} <= ids
    ids = parsed(site / "api" / "dsl.html").ids
    assert {"signconv.dsl.ema", "signconv.dsl.hyper", "signconv.dsl.stochastic_sign"} <= ids
