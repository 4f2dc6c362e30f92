"""``signconv lr``: the range run of one optimizer beside torch's AdamW."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from signconv import pictures
from signconv.errors import TuningError, nearest
from signconv.pipeline import compile
from signconv.pipeline.files import replace
from signconv.pipeline.resolve import load
from signconv.tuning.lr_range import Curve, Factory, draw, lr_range

#: What the other column is measured with.
ADAMW = "torch.optim.AdamW"
HINT = (
    "A range run sees the first steps alone: take the suggestion for the middle of a sweep of full "
    "runs; for Lion and Signum it is too large (docs/using.md)."
)


def run(
    model: str,
    spec: str,
    convert: str | None,
    state: str,
    *,
    picture: Path | None,
    json_file: Path | None,
    busy: Callable[[str], AbstractContextManager[Any]],
    **options: Any,
) -> list[Curve]:
    """Both curves, drawn and written where that was asked for."""
    if picture is not None:
        pictures.check(picture)
    if json_file is not None:
        _writable(json_file)
    make = function(model)
    cls = compile(spec, convert=convert, state=state)
    optimizers: dict[str, Factory] = {cls.__name__: cls, ADAMW: torch.optim.AdamW}
    with busy("the lr rises"):
        curves = lr_range(make, optimizers, **options)
    if picture is not None:
        draw(curves, picture)
    if json_file is not None:
        try:
            replace(json_file, json.dumps([c.as_json() for c in curves], indent=1) + "\n")
        except OSError as error:
            raise TuningError(
                "SC717", f"cannot write {json_file}: {error.strerror or error}"
            ) from error
    return curves


def _writable(path: Path) -> None:
    """Raise TuningError, before anything is run, for a file that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        problem = "it is a folder" if path.is_dir() else ""
        if not os.access(path.parent, os.W_OK):
            problem = "its folder is not writable"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise TuningError("SC717", f"cannot write {path}: {problem}")


def function(model: str) -> Callable[[], Any]:
    """The function that ``path/to/file.py:make`` or ``package.module:make`` names."""
    where, _, name = model.rpartition(":")
    if not where or not name.isidentifier():
        raise TuningError(
            "SC729",
            f"{model!r} names no function: write path/to/file.py:make, or package.module:make",
        )
    if where.endswith(".py"):  # a training script imports what lies beside it
        sys.path.insert(0, str(Path(where).resolve().parent))
    module = load(where)
    found = getattr(module, name, None)
    if not callable(found):
        raise TuningError(
            "SC729",
            f"{where} has no function {name!r}; {nearest(name, _functions(module))}",
        )
    made: Callable[[], Any] = found
    return made


def _functions(module: Any) -> list[str]:
    """What a module defines itself, to choose from."""
    own = vars(module).items()
    return [n for n, x in own if callable(x) and getattr(x, "__module__", "") == module.__name__]


def table(curves: list[Curve]) -> Table:
    """One row per optimizer, AdamW's last; what was tried is compared with it."""
    reference = curves[-1].suggestion
    made = Table(title="learning rates", title_justify="left")
    for column in ("optimizer", "suggested", "loss is least at", "ended at", "times AdamW's"):
        made.add_column(column, justify="left" if column == "optimizer" else "right")
    for c in curves:
        ours = c.suggestion
        factor = "-" if ours is None or not reference else f"{ours / reference:.2g}"
        own = "none: the loss never fell" if ours is None else f"{ours:g}"
        made.add_row(escape(c.name), own, f"{c.lowest:.1e}", f"{c.lrs[-1]:.1e}", factor)
    return made
