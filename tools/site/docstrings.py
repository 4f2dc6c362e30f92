"""The house style of docstrings, as Markdown, for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: The first line of an argument's description: ``low, high: the first and the last lr``.
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): (?=\S)")


#: A page of the documentation, as docstrings name it.
DOCUMENT = re.compile(r"\bdocs/([\w/]+)\.md(#[\w-]+)?")


def markdown(text: str) -> str:
    """A docstring whose ``name: what it is`` lines are a list, whose asterisks are products and
    whose mentions of pages are links."""
    return "\n\n".join(map(_paragraph, text.split("\n\n")))


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if lines[0].startswith("    "):
        return text  # code
    parts = re.split(r"(`+[^`]+`+)", text)
    parts[::2] = [DOCUMENT.sub(_link, x.replace("*", r"\*")) for x in parts[::2]]
    lines = "".join(parts).split("\n")
    if all(ARGUMENT.match(x) for x in lines if not x.startswith(" ")):
        lines = [ARGUMENT.sub(_item, x) for x in lines]
    return "\n".join(lines)


def _link(found: re.Match[str]) -> str:
    return f"[{found[1]}.md](../{found[1]}.md{found[2] or ''})"


def _item(found: re.Match[str]) -> str:
    names = ", ".join(f"`{n}`" for n in found[1].split(", "))
    return f"- {names}: "


class Docstrings(griffe.Extension):
    """Applies ``markdown`` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
