"""Shared by tests: specs written inside a test, generated classes, separate processes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

from signconv.pipeline import Build, build, resolve, write
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import load_class

ROOT = Path(__file__).resolve().parents[2]

#: Every user spec starts with these lines; bodies of a table follow, indented.
HEAD = """\
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(1e-3, ge=0)
"""
#: The comment that marks the line a refusal must name.
HERE = "# here"


class SpecFile(NamedTuple):
    """A spec file on disk: its path, the SPEC argument, and the line marked HERE (0: none)."""

    path: Path
    spec: str
    line: int


def spec_file(folder: Path, body: str, head: str = HEAD, name: str = "mine.py") -> SpecFile:
    """Write ``body`` as the body of class Mine; with an empty ``head``, as the whole file."""
    body = textwrap.dedent(body).strip("\n") + "\n"
    source = head + (textwrap.indent(body, "    ") if head else body)
    marked = [i for i, text in enumerate(source.split("\n"), 1) if HERE in text]
    path = folder / name
    path.write_text(source)
    return SpecFile(path, f"{path}:Mine", marked[0] if marked else 0)


def program_of(folder: Path, body: str):
    """The Program of a spec given as the body of a class."""
    return resolve(spec_file(folder, body).spec)


def class_of(made: Build, folder: Path) -> type[FusedOptimizer]:
    """Write a build and import its class."""
    return load_class(write(made.module, folder)[0])


def built_class(folder: Path, body: str, convert: str | None = None, state: str = "fp32"):
    """The optimizer class of a spec given as the body of a class."""
    return class_of(build(spec_file(folder, body).spec, convert=convert, state=state), folder)


@cache
def generated_classes() -> dict[str, type[FusedOptimizer]]:
    """File stem -> class of everything in generated/, imported as users do (so they pickle)."""
    found = {}
    for path in sorted((ROOT / "generated").glob("*.py")):
        module = importlib.import_module(f"signconv.generated.{path.stem}")
        (cls,) = [
            x
            for x in vars(module).values()
            if isinstance(x, type) and issubclass(x, FusedOptimizer) and x is not FusedOptimizer
        ]
        found[path.stem] = cls
    return found


def environment(**changes: str | None) -> dict[str, str]:
    """This environment with the checkout importable; None removes a variable."""
    merged = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **changes}
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Workers share the cores (conftest.py): threads that wait for one another spin meanwhile
        merged.setdefault("OMP_NUM_THREADS", "1")
    if "COLUMNS" not in changes:  # of this run's own window, not of the program's
        merged.pop("COLUMNS", None)
    merged.setdefault("TRITON_INTERPRET", "")
    if "TRITON_INTERPRET" not in changes:
        del merged["TRITON_INTERPRET"]
    return {k: v for k, v in merged.items() if v is not None}


def python(
    *arguments: str, timeout: float = 300, **changes: str | None
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in the checkout's root with an environment of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
