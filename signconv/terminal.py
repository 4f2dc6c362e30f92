"""What commands print with: as wide as the window, in one piece where nobody sees one."""

from __future__ import annotations

import os
import sys

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

#: Columns where nobody sees a window, so that a log keeps a row on a line; COLUMNS says another.
UNSEEN = 140
#: Columns of prose, at most.
PROSE = 100
#: Below so many columns a table whose cells would have to break is a list.
NARROW = 60

for _stream in (sys.stdout, sys.stderr):
    if hasattr(_stream, "reconfigure"):  # a path may hold bytes that are no text
        _stream.reconfigure(errors="backslashreplace")
out = Console(highlight=False, emoji=False, soft_wrap=False)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def fit() -> None:
    """Give ``out`` the width that the environment says, or that of its window."""
    asked = os.environ.get("COLUMNS", "")
    seen = sys.stdout is not None and sys.stdout.isatty()
    if asked.isdigit() and int(asked):
        out.width = int(asked)
    elif not seen:
        out.width = UNSEEN


def prose() -> int:
    """Columns for text that is wrapped by its writer: PROSE, or those of a narrower window."""
    return min(PROSE, max(out.width, 20))


def say(line: str) -> None:
    """Print one line, whatever is in it; a terminal breaks it where it is full."""
    out.print(plain(line), soft_wrap=True, markup=False)


def plain(line: str) -> str:
    """One line on every terminal: what is no printable character, a line break or a change of
    writing direction say, is spelled out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in line
    )


def busy(words: str) -> Progress:
    """A spinner on a terminal, nothing elsewhere."""
    progress = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip
    progress.add_task(words, total=None)
    return progress


class Fitting:
    """A table no word of which is cut: narrow columns as wide as they want to be, the others equal,
    and none narrower than its longest word.  Where that does not fit, or the window is narrow and
    cells would break, a list of rows.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - 1 - 3 * len(self.table.columns)  # rules, and spaces beside them
        needs = [
            [Measurement.get(console, options.update(width=10_000), x) for x in column]
            for column in self._columns(console)
        ]
        least = [max(x.minimum for x in column) for column in needs]
        most = [max(x.maximum for x in column) for column in needs]
        if sum(most) > room:
            if sum(least) > room or options.max_width < NARROW:
                return self._rows(console, options)
            left, reserved, columns = room, sum(least), len(least)
            for high, low, column in sorted(zip(most, least, self.table.columns), key=_high):
                reserved -= low
                column.width = min(high, max(low, min(left // columns, left - reserved)))
                left, columns = left - column.width, columns - 1
        return iter([self.table])

    def _columns(self, console: Console) -> list[list[Text]]:
        """Header and cells of every column."""
        columns = self.table.columns
        return [[_text(console, x) for x in (c.header, *c.cells)] for c in columns]

    def _rows(self, console: Console, options: ConsoleOptions) -> RenderResult:
        (_, *names), *others = self._columns(console)
        if self.table.title:
            yield _text(console, self.table.title)
        for name, *cells in zip(names, *(cells for _, *cells in others)):
            name.stylize("bold")
            yield name
            for (title, *_), cell in zip(others, cells):
                line = Text.assemble(title.plain.replace("\n", " "), ": ", cell)
                for part in line.wrap(console, options.max_width - 2) if cell.plain else ():
                    part.rstrip()
                    yield Text.assemble("  ", part)
        if self.table.caption:
            yield _text(console, self.table.caption)


def _high(column: tuple[int, int, Column]) -> int:
    return column[0]


def _text(console: Console, cell: object) -> Text:
    return console.render_str(str(cell))
