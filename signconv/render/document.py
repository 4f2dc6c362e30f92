"""Documents of groups and breaks, and how they become lines (Wadler, "A prettier printer").

A group stays on its line where it fits; otherwise all breaks that are its own are taken, and the
groups inside it decide for themselves.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """A new line, or ``flat`` where its group stays on one line."""

    flat: str = ""


@dataclass(frozen=True)
class IfBroken:
    """Text that stands only where its group is broken: a trailing comma."""

    text: str


@dataclass(frozen=True)
class Indent:
    """Parts whose new lines start one step deeper."""

    parts: tuple[Doc, ...]


@dataclass(frozen=True)
class Group:
    """Parts that stand on one line, or break where they say."""

    parts: tuple[Doc, ...]


Doc = str | Break | IfBroken | Indent | Group
STEP = 4

#: An indentation, whether breaks are taken, and what is to be printed.
_Entry = tuple[int, bool, Doc]


def printed(parts: tuple[Doc, ...], indent: int, width: int, room: int = 0) -> str:
    """The text of ``parts``, the first line at ``indent``; ``room`` is kept free at the end."""
    made: list[str] = [" " * indent]
    column = indent
    pending: list[_Entry] = [(indent, True, " " * room), *_entries(parts, indent, True)]
    while pending:
        if len(pending) == 1:
            break
        depth, broken, doc = pending.pop()
        if isinstance(doc, Group):
            broken = broken and not _fits(doc, depth, width - column, pending)
            pending += _entries(doc.parts, depth, broken)
        elif isinstance(doc, Indent):
            pending += _entries(doc.parts, depth + STEP, broken)
        elif isinstance(doc, Break) and broken:
            made.append("\n" + " " * depth)
            column = depth
        else:
            text = _flat(doc, broken)
            made.append(text)
            column += len(text)
    return "".join(made)


def _entries(parts: tuple[Doc, ...], depth: int, broken: bool) -> list[_Entry]:
    return [(depth, broken, x) for x in reversed(parts)]


def _flat(doc: str | Break | IfBroken, broken: bool) -> str:
    if isinstance(doc, IfBroken):
        return doc.text if broken else ""
    return doc.flat if isinstance(doc, Break) else doc


def _fits(group: Group, depth: int, room: int, after: list[_Entry]) -> bool:
    """Whether the group on one line, and what follows up to the next break, fits in ``room``."""
    pending = _entries(group.parts, depth, False)
    rest = len(after)
    while room >= 0:
        if not pending:
            if rest == 0:
                return True
            rest -= 1
            pending.append(after[rest])
        _, broken, doc = pending.pop()
        if isinstance(doc, Group | Indent):
            pending += _entries(doc.parts, 0, broken)
        elif isinstance(doc, Break) and broken:
            return True
        else:
            room -= len(_flat(doc, broken))
    return False


__all__ = ["Break", "Doc", "Group", "IfBroken", "Indent", "printed"]
