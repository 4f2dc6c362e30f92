"""The measured part of docs/performance.md, rendered from records (``make performance``).

The page holds ``<!-- bench: raw/a.json raw/b.json -->`` and ``<!-- end of bench -->``; what lies
between is this module's, everything else is written by hand.  Paths count from the page's folder.

``python -m signconv.bench.page PAGE [JSON…]`` renders the page in place; JSON files named replace
those that the page names, and a chart is drawn beside each.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from signconv.bench import chart
from signconv.bench.run import read
from signconv.bench.table import as_markdown, tables
from signconv.errors import BenchError, SignconvError

_REGION = re.compile(r"<!-- bench: ?(.*?) ?-->\n(.*?)<!-- end of bench -->", re.DOTALL)


def named(text: str) -> list[str]:
    """The records that a page names; BenchError for a page without the two marks."""
    found = _REGION.search(text)
    if found is None:
        raise BenchError(
            "SC719",
            "the page has no place for measurements: <!-- bench: raw/FILE.json -->, a newline, "
            "<!-- end of bench -->",
        )
    return found[1].split()


def rendered(text: str, folder: Path, names: list[str] | None = None) -> str:
    """The page with its region made anew from the records it names (or ``names``)."""
    chosen = named(text) if names is None else names
    body = "".join(section(read(folder / x), x, folder) for x in chosen)
    begin = f"<!-- bench: {' '.join(chosen)}{' ' if chosen else ''}-->"
    return _REGION.sub(lambda _: f"{begin}\n{body}<!-- end of bench -->", text, count=1)


def section(record: dict[str, Any], name: str, folder: Path) -> str:
    """One record: machine, command, tables, chart."""
    machine, settings = record["machine"], record["settings"]
    versions = {k: v for k, v in machine["versions"].items() if v}
    rates = machine["rates"]
    clock = f"; {rates['sms']} SMs at {rates['sm_mhz']} MHz" if rates.get("sm_mhz") else ""
    threads = f"; {machine['threads']} threads" if machine.get("threads") else ""
    cut = "" if record["complete"] else " The run was cut off before its end."
    small = " These are the small shapes of `--quick`: no speed." if settings["quick"] else ""
    lines = [
        f"### {machine['name']}, {record['date']}",
        "",
        f"`{record['command']}` ({', '.join(f'{k} {v}' for k, v in versions.items())}{clock}"
        f"{threads}). Quartiles: [{name}]({name}).{cut}{small}",
        "",
    ]
    picture = str(Path(name).with_suffix(".png"))
    if (folder / picture).is_file():
        lines += [f"![Fraction of a copy per optimizer and workload]({picture})", ""]
    return "\n".join(lines) + "\n" + "\n".join(map(as_markdown, tables(record))) + "\n"


def main(arguments: list[str]) -> None:
    """Render the page named first from the records named after it, or from its own."""
    page, files = Path(arguments[0]), [Path(x) for x in arguments[1:]]
    text = page.read_text(encoding="utf-8")
    names = [Path(os.path.relpath(x, page.parent)).as_posix() for x in files] or named(text)
    for name in names:
        if name.startswith("../"):
            raise BenchError(
                "SC720", f"{name} is outside {page.parent}: copy it to {page.parent}/raw first"
            )
        chart.draw(read(page.parent / name), (page.parent / name).with_suffix(".png"))
    made = rendered(text, page.parent, names)
    page.write_text(made, encoding="utf-8")
    print(f"{page} {'unchanged' if made == text else 'written'}: {', '.join(names) or 'no record'}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m signconv.bench.page PAGE [JSON…]")
    try:
        main(sys.argv[1:])
    except (SignconvError, OSError) as problem:
        sys.exit(f"signconv.bench.page: {problem}")
