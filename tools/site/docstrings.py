"""The house style of docstrings, for mkdocstrings: ``name: what it is`` lines become a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: The first line of an argument's description: ``low, high: the first and the last lr``.
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): (?=\S)")


def listed(text: str) -> str:
    """Paragraphs whose every unindented line describes arguments, as lists."""
    return "\n\n".join(map(_paragraph, text.split("\n\n")))


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if not all(ARGUMENT.match(x) for x in lines if not x.startswith(" ")) or lines[0][:1] == " ":
        return text
    return "\n".join(ARGUMENT.sub(_item, x) for x in lines)


def _item(found: re.Match[str]) -> str:
    names = ", ".join(f"`{n}`" for n in found[1].split(", "))
    return f"- {names}: "


class Lists(griffe.Extension):
    """Applies ``listed`` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = listed(obj.docstring.value)
