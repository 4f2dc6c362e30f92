"""Pictures inside pages: SVG whose colours are the theme's, so that they fit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

#: Stand-ins while drawing -> what the page's style sheet (tools/site/site.css) says they are.
COLOURS = {
    "#010101": "var(--figure-text)",
    "#020202": "var(--figure-faint)",
    "#030303": "var(--figure-1)",
    "#040404": "var(--figure-2)",
    "#050505": "var(--figure-3)",
}
TEXT, FAINT, *LINES = COLOURS
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "signconv",  # the same bytes at every build
    "font.size": 9,
    "text.color": TEXT,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "path.simplify_threshold": 0.5,
}


class Picture:
    """What ``drawn`` gives: axes to draw on, and then the element for the page."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.html = ""


@contextmanager
def drawn(name: str, caption: str, size: tuple[float, float] = (4.2, 3.4)) -> Iterator[Picture]:
    """Axes of ``size`` inches; at the end ``.html`` is a ``figure`` element with that caption.

    name: of the picture on its page, which makes the ids in it its own.
    """
    with plt.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        picture = Picture(axes)
        try:
            yield picture
            text = io.StringIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        finally:
            plt.close(figure)
    picture.html = _element(text.getvalue(), name, caption)


def _rounded(tag: re.Match[str]) -> str:
    """A tag's coordinates with one decimal."""
    return re.sub(r"\d+\.\d{2,}", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), tag[0])


def _element(svg: str, name: str, caption: str) -> str:
    """One line without blank lines, which would end an element in Markdown."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", _rounded, svg)  # in tags alone: what stands between them is text
    svg = re.sub(r'(?<= )(width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    svg = re.sub(r'id="(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick)\w*"', "", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    for drawn_in, meant in COLOURS.items():
        svg = svg.replace(drawn_in, meant)
    text = f"<figure data-search-exclude>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
    return re.sub(r"\s*\n\s*", " ", text)
