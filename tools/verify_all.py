"""`make verify-all`: kernel against reference, bit for bit, over the whole matrix.

Every spec, plain and stosign, with fp32, bf16 and fp8 state, parameters in fp32 and bf16.  One
line per configuration; exit code 1 on any mismatch.  Writes nothing outside a temporary folder.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from signconv.pipeline import build, write  # noqa: E402
from signconv.verification.differential import kernel_rows  # noqa: E402

SPECS = ("adamw", "sgd", "adamax", "rmsprop", "lion")
MATRIX = [
    (spec, convert, state)
    for spec in SPECS
    for convert in (None, "stosign")
    for state in ("fp32", "bf16", "fp8")
]


def label(spec: str, convert: str | None, state: str) -> str:
    return f"{spec} {convert or 'plain'} {state}"


def main() -> int:
    """Parse the command line and check every configuration that matches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=50, help="steps compared (default 50)")
    parser.add_argument("--only", metavar="REGEX", default="", help='as in "adamw (plain|stosign)"')
    arguments = parser.parse_args()
    wanted = [c for c in MATRIX if re.search(arguments.only, label(*c))]
    if not wanted:
        parser.error(f"--only {arguments.only!r} matches none of: "
                     f"{', '.join(label(*c) for c in MATRIX)}")  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    failed, begin = 0, time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal,
        ) as progress,
    ):  # fmt: skip
        task = progress.add_task("", total=len(wanted))
        for configuration in wanted:
            progress.update(task, description=label(*configuration))
            path, _ = write(
                build(configuration[0], convert=configuration[1], state=configuration[2]).module,
                Path(folder),
            )
            for row in kernel_rows(path, arguments.device, arguments.steps):
                word = "not run" if row.ok is None else "ok" if row.ok else "FAILED"
                failed += row.ok is not True
                subject = row.subject.removesuffix(" parameters")
                console.print(f"{label(*configuration):24} {subject:9} {word:7} {row.detail}")
            progress.advance(task)
    words = f"{failed} checks failed" if failed else "all agree bit for bit"
    console.print(
        f"{len(wanted)} configurations x 2 parameter dtypes x {arguments.steps} steps on "
        f"{arguments.device}: {words}, {time.perf_counter() - begin:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
