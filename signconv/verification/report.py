"""One row per check, for the command line, for tests and for the record."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """The result of one check; ``ok`` None means that it could not be run, and ``detail`` why."""

    witness: str
    subject: str
    ok: bool | None
    detail: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)
