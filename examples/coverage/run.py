"""Compare every spec with the collection's class, and write docs/coverage.md.

python -m examples.coverage.run          # needs pytorch_optimizer; exit code 1 if one is apart
python -m examples.coverage.run --page   # the page alone, from the figures there are
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from signconv.ir.nodes import Program
from signconv.pipeline import resolve

from .compare import (
    DRAWS,
    ROUNDING,
    STEPS,
    TIMES_BF16,
    TOLERANCE,
    deviation,
    of_bf16,
    rounding,
    signs_matrices,
)
from .row import Row
from .table import AGREES
from .waits import REASONS, WAITS

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
PAGE, FIGURES = DOCS / "coverage.md", DOCS / "raw" / "coverage.json"


def spec_of(row: Row) -> str:
    """What ``signconv.build`` takes: a name of the catalogue, or a class of a file in specs/."""
    return str(HERE / "specs" / row.spec) if ":" in row.spec else row.spec


def program_of(row: Row) -> Program:
    """The program of its spec."""
    return resolve(spec_of(row))


#: Rows whose specs have a matrix sign.
SIGNED = tuple(n for n, row in sorted(AGREES.items()) if signs_matrices(program_of(row)))


def measure(name: str) -> float:
    """How far apart the collection's optimizer and ours are."""
    program = program_of(AGREES[name])
    return deviation(program, name, AGREES[name].run(program))


def measure_compiled(name: str) -> float:
    """How far the compiled optimizer is from what it means."""
    program = program_of(AGREES[name])
    return rounding(spec_of(AGREES[name]), program, AGREES[name].run(program))


def measure_bf16(name: str) -> float:
    """How far the collection's matrix signs in bf16 take its class from itself in float64."""
    return of_bf16(name, AGREES[name].run(program_of(AGREES[name])))


def allowed(name: str, known: dict[str, Any]) -> float:
    """How far the compiled optimizer may be from what it means."""
    return TIMES_BF16 * known["bf16"][name] if name in SIGNED else ROUNDING


def figures() -> dict[str, Any]:
    """What the installed release says: its version, its optimizers' names, how far each is."""
    collection = importlib.import_module("pytorch_optimizer")
    titles = {
        n: collection.load_optimizer(n).__name__ for n in collection.get_supported_optimizers()
    }
    return {
        "version": importlib.metadata.version("pytorch_optimizer"),
        "titles": dict(sorted(titles.items())),
        "apart": {n: measure(n) for n in sorted(AGREES) if n in titles},
        "compiled": {n: measure_compiled(n) for n in sorted(AGREES)},
        "bf16": {n: measure_bf16(n) for n in SIGNED if n in titles},
    }


def strangers(titles: dict[str, str]) -> list[str]:
    """Optimizers that a release has and the tables do not, or the other way round."""
    return sorted(titles.keys() ^ (AGREES.keys() | WAITS.keys()))


def page(known: dict[str, Any]) -> str:
    """The page from the figures and the tables."""
    titles, apart = known["titles"], known["apart"]
    rows = []
    for name, row in sorted(AGREES.items()):
        file, _, label = row.spec.rpartition(":")
        folder = "examples/coverage/specs/" if file else "signconv/specs/"
        link = f"../{folder}{file or f'{label}.py'}"
        named = row.tolerance > TOLERANCE
        rows.append(
            {
                "title": titles[name], "label": label, "link": link, "apart": apart[name],
                "named": named, "note": row.note, "compiled": known["compiled"][name],
                "bf16": known["bf16"].get(name),
            }
        )  # fmt: skip
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("coverage.md.j2").render(
        version=known["version"],
        total=len(titles),
        agree=len(rows),
        own=sum(":" not in row.spec for row in AGREES.values()),
        differ=sum(row["named"] for row in rows),
        steps=STEPS,
        tolerance=TOLERANCE,
        times=TIMES_BF16,
        draws=DRAWS,
        rounding=ROUNDING,
        rows=rows,
        reasons=[
            {"name": n, "words": w, "count": sum(n in x.reasons for x in WAITS.values())}
            for n, w in REASONS.items()
        ],
        waits=[
            {"title": titles[n], "reasons": x.reasons, "detail": x.detail}
            for n, x in sorted(WAITS.items())
        ],
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="render only")
    if not parser.parse_args().page:
        made = figures()
        if unknown := strangers(made["titles"]):
            sys.exit(f"in the collection or in the tables alone: {', '.join(unknown)}")
        lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in made.items())
        FIGURES.write_text(f"{{\n{lines}\n}}\n", "utf-8")
    known = json.loads(FIGURES.read_text("utf-8"))
    text = page(known)
    PAGE.write_text(text, "utf-8")
    print(text)
    far = [n for n, x in known["apart"].items() if not x <= AGREES[n].tolerance]
    far += [n for n, x in known["compiled"].items() if not x <= allowed(n, known)]
    if far:
        sys.exit(f"further apart than their rows say: {', '.join(far)}")


if __name__ == "__main__":
    main()
