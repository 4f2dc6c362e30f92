"""Formulas as MathML, made while the site is built: browsers draw it without a script."""

from __future__ import annotations

import io
import re
from html import unescape
from importlib.resources import files

from fontTools import subset
from latex2mathml.converter import convert

#: What pymdownx.arithmatex leaves of ``$…$`` and ``$$…$$``.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)

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


#: What formulas are set in: Latin, Greek, both as the italics of mathematics, accents, operators,
#: arrows, brackets and their pieces.
CHARACTERS = (
    *range(0x20, 0x7F), *range(0xA0, 0x100), *range(0x300, 0x310), *range(0x391, 0x3F7),
    *range(0x2010, 0x2045), 0x210E, *range(0x2190, 0x2200), *range(0x2200, 0x2300),
    *range(0x239B, 0x23B0), *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C),
)  # fmt: skip


def font() -> bytes:
    """STIX Two Math (SIL Open Font License) with CHARACTERS, as WOFF.

    Machines without a font of mathematics place subscripts on the line; the copy that the package
    ziamath brings along needs no network.
    """
    options = subset.Options(layout_features=["*"], name_IDs=["*"], notdef_outline=True)
    options.flavor = "woff"
    whole = str(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf")
    made = subset.load_font(whole, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=CHARACTERS)
    subsetter.subset(made)
    text = io.BytesIO()
    subset.save_font(made, text, options)
    return text.getvalue()
