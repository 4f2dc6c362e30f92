"""The door matrix of docs/using.md: situations, backends and outcomes, as the tests expect them.

``make docs`` writes it between its marks; the parametrized tests of tests/runtime/test_doors_*.py
run every cell.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- doors: made by `make docs` -->\n", "<!-- end of doors -->\n"
#: Modules with SITUATIONS, in the order of the table.
MODULES = ("tests.support.doors", "tests.support.doors2")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "using.md"


def table() -> str:
    """One row a situation: what happens on each backend, ``steps`` or the code of the refusal."""
    modules: list[Any] = [importlib.import_module(n) for n in MODULES if find_spec(n)]
    backends = modules[0].BACKENDS
    text = f"| situation | {' | '.join(backends)} |\n|---|{'---|' * len(backends)}\n"
    for module in modules:
        for s in module.SITUATIONS:
            outcomes = (s.expected(b) for b in backends)
            text += f"| {s.what} | {' | '.join(outcomes)} |\n"
    return text


def page() -> str:
    """docs/using.md with the matrix as it is now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after
