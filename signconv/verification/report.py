"""One row per check, for the command line, for tests and for the record."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """The result of one check; ``ok`` None means that it could not be run, and ``detail`` why."""

    witness: str
    subject: str
    ok: bool | None
    detail: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """All rows of one optimizer; true where none failed, and prints as ``signconv verify`` does."""

    subject: str
    device: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed; one that could not be run does not fail."""
        return all(row.ok is not False for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def table(self) -> Table:
        """The rows for rich's console."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(f"{self.subject} on {self.device}"), title_justify="left")
        for column in ("check", "subject", "result", "detail"):
            table.add_column(column)
        for row in self.rows:
            word = "not run" if row.ok is None else "ok" if row.ok else "FAILED"
            style = "yellow" if row.ok is None else "green" if row.ok else "bold red"
            subject, detail = escape(row.subject), escape(row.detail)
            table.add_row(row.witness, subject, f"[{style}]{word}[/]", detail)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=140, highlight=False).print(self.table())
        return text.getvalue().rstrip("\n")
