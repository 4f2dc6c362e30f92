"""How an error of the runtime carries its code; signconv/error_table.py says what each means."""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=Exception)


def coded(kind: type[E], code: str, message: str) -> E:
    """The error ``kind``, with the code in brackets after its message."""
    return kind(f"{message} [{code}]")
