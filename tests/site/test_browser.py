"""Pages in Chromium: what they ask for, whether they fit a phone, whether dark is readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

WIDE, NARROW = (1280, 900), (380, 800)
#: Contrast of text, by WCAG 2.1, success criterion 1.4.3.
READABLE = 4.5

#: The pages whose colours are measured: prose and tables, a formula with pictures, code.
MEASURED = ("index.html", "catalogue/adamw_stosign.html", "api/signconv.html", "performance.html")

#: What reaches beyond the right edge where nothing scrolls: the theme hides it.
CUT_OFF = """() => {
  const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const cut = e => {
    if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let s = e.parentElement; s; s = s.parentElement) if (scrolls(s)) return false;
    return true;
  };
  const chosen = ".md-content :is(p, li, h1, h2, h3, code, table, pre, .formula, figure, img)";
  return [...document.querySelectorAll(chosen)].filter(cut).map(e => e.outerHTML.slice(0, 80));
}"""

CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, under) => {
    const a = top[3] / 255;
    return [0, 1, 2].map(i => top[i] * a + under[i] * (1 - a));
  };
  const luminance = rgb => {
    const [r, g, b] = rgb.map(x => {
      x /= 255;
      return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const chosen = ".md-content :is(p, li, td, th, pre code, math mi, figcaption, svg text)";
  const worst = {};
  for (const e of document.querySelectorAll(chosen)) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const under = ground(e);
    const colour = over(rgba(e.closest("svg") ? style.fill : style.color), under);
    const [a, b] = [luminance(colour), luminance(under)].sort((x, y) => y - x);
    const name = e.closest("svg") ? "svg text" : e.localName;
    worst[name] = Math.min(worst[name] ?? 21, (a + 0.05) / (b + 0.05));
  }
  return worst;
}"""


def opened(browser: Any, address: str, scheme: str, size: tuple[int, int]) -> tuple[Any, list[str]]:
    """A tab, and what went wrong in it: errors, and requests that leave the site."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": size[0], "height": size[1]}
    )
    tab, wrong = context.new_page(), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)

    def seen(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(request.url)

    tab.on("request", seen)
    return tab, wrong


def names(site: Path) -> list[str]:
    return [
        p.relative_to(site).as_posix() for p in sorted(site.rglob("*.html")) if p.name != "404.html"
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_narrow_screen(scheme: str, browser: Any, site: Path, address: str) -> None:
    """No page scrolls sideways; tables, code and formulas do so by themselves."""
    tab, wrong = opened(browser, address, scheme, NARROW)
    for name in names(site) if scheme == "dark" else MEASURED:
        tab.goto(f"{address}/{name}")
        width = tab.evaluate("document.documentElement.scrollWidth")
        assert width <= NARROW[0], (name, width)
        hidden = tab.evaluate(CUT_OFF)
        assert not hidden, (name, hidden)
    assert not wrong


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str, name: str, browser: Any, address: str) -> None:
    tab, wrong = opened(browser, address, scheme, WIDE)
    tab.goto(f"{address}/{name}")
    found = tab.evaluate(CONTRASTS)
    assert {"p", "td"} & set(found) and min(found.values()) >= READABLE, found
    assert ("svg text" in found) == name.startswith("catalogue/")
    assert not wrong


def test_schemes_differ_and_the_button_switches(browser: Any, address: str) -> None:
    tab, _ = opened(browser, address, "light", WIDE)
    tab.goto(f"{address}/index.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    tab.locator("label.md-header__button[title='Switch to dark']").click()
    tab.wait_for_timeout(500)
    assert tab.evaluate(ground) != light
    assert tab.evaluate("document.body.getAttribute('data-md-color-scheme')") == "slate"


def test_pictures_are_drawn(browser: Any, site: Path, address: str) -> None:
    tab, wrong = opened(browser, address, "light", WIDE)
    seen = 0
    for name in ("index.html", "results.html", "performance.html", "papers.html"):
        tab.goto(f"{address}/{name}", wait_until="load")
        widths = tab.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert all(widths), name
        seen += len(widths)
    tab.goto(f"{address}/catalogue/adamw_stosign.html")
    boxes = tab.evaluate("[...document.querySelectorAll('.figures svg')].map(s => s.clientHeight)")
    assert seen > 10 and len(boxes) == 3 and min(boxes) > 150
    assert not wrong


def test_formulas_are_set_in_the_sites_font(browser: Any, address: str) -> None:
    tab, _ = opened(browser, address, "light", WIDE)
    tab.goto(f"{address}/catalogue/adamw.html")
    tab.evaluate("document.fonts.ready.then(() => 0)")
    assert tab.evaluate("[...document.fonts].some(f => f.family == 'Math' && f.status == 'loaded')")
    # A subscript stands below the line of its base
    below = tab.evaluate(
        "(s => s.children[1].getBoundingClientRect().bottom"
        " - s.children[0].getBoundingClientRect().bottom)(document.querySelector('math msub'))"
    )
    assert below > 1


@pytest.mark.parametrize("way", ["served", "files"])
@pytest.mark.parametrize("term", ["stochastic rounding", "AdamWStoSign", "nesterov"])
def test_search_finds(term: str, way: str, browser: Any, site: Path, address: str) -> None:
    start = address if way == "served" else site.as_uri()
    tab, wrong = opened(browser, start, "light", WIDE)
    tab.goto(f"{start}/index.html")
    tab.locator("input.md-search__input").fill(term)
    results = tab.locator(".md-search-result__item a.md-search-result__link")
    results.first.wait_for(timeout=20_000)
    assert term.lower().split()[0] in tab.locator(".md-search-result__list").inner_text().lower()
    results.first.click()
    tab.wait_for_url(lambda url: "index.html" not in url)
    assert not wrong
