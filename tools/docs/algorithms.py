"""docs/algorithms.md: every generated optimizer with its source, storage and proved bound."""

from __future__ import annotations

from signconv.lower.storage import plan
from signconv.passes.base import parse, registry
from signconv.pipeline import Build, build
from signconv.pipeline.catalogue import GENERATED, Entry
from signconv.prove.proofs import Bound, prove
from signconv.runtime.formats import FORMATS

HEAD = """\
# Algorithms

Every optimizer in `generated/`, made by `make docs` from the code; a test compares this page with
it. State is in bytes per parameter where rows are multiples of 32, the last of the three with the
file's own storage where that is fp8-raw or fp4. The bound is that of
abs(numerator/denominator) at the default hyperparameters, derived from the recurrences
(`signconv show SPEC` prints the derivation); "sign" means that the update is -1, 0 or 1.

Two files of tests guard a row: `tests/render/test_generated.py` compares kernel and reference bit
for bit, `tests/specs/test_specs.py` the spec with a step that shares no code with it. Ids stand in
brackets.

| algorithm | source | spec or composition | fp32 | bf16 | fp8 | bound | guarded by |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(row(e) for e in GENERATED)


def row(e: Entry) -> str:
    """A line of the table."""
    made = build(e.spec, convert=e.convert, state=e.state, math=e.math)
    sources = [made.program.doc.strip().splitlines()[0].rstrip(".")]
    sources += [f"{x}: {registry()[parse(x).name].source}" for x in made.program.history]
    options = [e.spec, *([f"--convert {e.convert}"] if e.convert else [])]
    options += [f"--state {e.state}"] if e.state != "fp8" else []
    options += [f"--math {e.math}"] if e.math != "fp32" else []
    sizes = [
        _size(made, s)
        for s in ("fp32", "bf16", e.state if e.state in ("fp8-raw", "fp4") else "fp8")
    ]
    guards = f"test_generated.py[{e.label}], test_specs.py[{e.spec}]"
    name, command = made.module.class_name, f"`{' '.join(options)}`"
    cells = [name, "; ".join(sources), command, *sizes, bound(made), guards]
    return "| " + " | ".join(cells) + " |\n"


def _size(made: Build, state: str) -> str:
    moments = plan(made.program, state)
    return f"{sum(FORMATS[m.format].bytes_per_element for m in moments):.2f}"


def bound(made: Build) -> str:
    """The bound of a step's ratio in a few words, as the table has it."""
    link = made.program.link
    if link == "sign":
        return "sign"
    b: Bound = prove(made.program)
    words = {
        "linear": "none: grows with the gradient",
        "infinite": "none",
        "unproved": f"not proved; at least {b.search:.3g} by search" if b.search else "not proved",
    }
    value = max(b.value, b.early[1] if b.early else b.value)
    ratio = words.get(b.status) or (f"{value:.4g}" + (", always" if b.at_most_one else ""))
    return f"sign; ratio {ratio}" if link == "stosign" else ratio
