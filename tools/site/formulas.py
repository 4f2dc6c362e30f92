"""Formulas as MathML, made while the site is built: browsers draw it without a script."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert

#: What pymdownx.arithmatex leaves of ``$…$`` and ``$$…$$``.
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL
)

#: ``\\mathrm{rate}`` letter by letter; one identifier of several letters is upright by itself.
LETTERS = re.compile(r'(?:<mi mathvariant="normal">[^<]*</mi>){2,}')


def in_page(html: str) -> str:
    """A page with its formulas as MathML."""
    return FORMULA.sub(lambda m: mathml(unescape(m[3]), m[2] == "["), html)


def mathml(latex: str, block: bool) -> str:
    """A formula as a ``math`` element; a wide block scrolls by itself (tools/site/site.css)."""
    made = str(convert(latex.strip(), display="block" if block else "inline"))
    # MathML Core knows no columnalign: the style sheet aligns by class
    made = re.sub(r'columnalign="(\w+)"', r'class="\1"', made)
    made = LETTERS.sub(lambda m: f"<mi>{unescape(re.sub('<.*?>', '', m[0]))}</mi>", made)
    return f'<div class="formula" tabindex="0">{made}</div>' if block else made
