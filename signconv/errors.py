"""Every error a user can meet, one class per kind of fault.

The command line prints the message alone and exits with code 2, so a message says what is
wrong, where (the user's file and line where there is one) and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Where in the user's source an expression or a moment was written."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class SignconvError(Exception):
    """Base of all signconv errors; ``origin`` is the user's file and line, where known.

    ``code`` is one of tools/docs/errors.py and ends the text: ``mine.py:9: … [SC114]``.
    """

    def __init__(self, code: str, message: str, origin: Origin | None = None) -> None:
        super().__init__(f"{f'{origin}: ' if origin else ''}{message} [{code}]")
        self.code = code
        self.message = message
        self.origin = origin


class SpecError(SignconvError):
    """An optimizer's description is wrong: the author of the spec has to change it."""


class PassError(SignconvError):
    """A pass does not apply to this program, or the passes asked for exclude each other."""


class LoweringError(SignconvError):
    """The program is valid, but has something that the lowering cannot turn into a kernel."""


class BuildError(SignconvError):
    """The generated file could not be written, or did not come out as valid Python."""


class CheckpointError(SignconvError):
    """A checkpoint cannot be read, converted or written."""


class PictureError(SignconvError):
    """A picture cannot be drawn or written."""


class TuningError(SignconvError):
    """A learning-rate range run cannot be made of what the user gave."""


class VerifyError(SignconvError):
    """A differential check could not be carried out (a mismatch is a result, not an error)."""


class BenchError(SignconvError):
    """A benchmark cannot be run as asked, or its record cannot be read or written."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the closest valid name, and all of them."""
    names = sorted(valid)
    same = [n for n in names if n.lower() == name.lower()]
    close = same or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"
