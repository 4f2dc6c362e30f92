"""How an error of the runtime carries its code; tools/docs/errors.py says what each means."""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=Exception)


def coded(kind: type[E], code: str, message: str) -> E:
    """The error ``kind``, with the code in brackets after its message."""
    return kind(f"{message} [{code}]")
