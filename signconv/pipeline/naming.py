"""What the result is called: its class, its file, and the command that builds it."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from signconv.errors import BuildError
from signconv.ir.nodes import Program
from signconv.passes.base import Request, registry

DEFAULT_STATE = "fp8"
DEFAULT_MATH = "fp32"


def names_of(
    p: Program, requests: list[Request], state: str, math: str, name: str | None
) -> tuple[str, str]:
    passes = registry()
    titles, stems = [p.name], [p.key]
    for r in requests:
        values = "".join(v if len(k) == 1 else k + v for k, v in r.options)
        values = re.sub(r"[^0-9a-zA-Z]", "p", values)
        titles.append(passes[r.name].title + "".join(_title(k, v) for k, v in r.options))
        stems.append(r.name + values)
    if state != DEFAULT_STATE:
        titles.append(state.upper().replace("-", ""))
        stems.append(state.replace("-", ""))
    if math != DEFAULT_MATH:
        titles.append(f"Math{math.upper()}")
        stems.append(f"math{math}")
    if name is not None and (
        not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name)
    ):
        raise BuildError("SC307", f"--name {name!r} is not a class name")
    stem = "_".join(stems) if name is None else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return name or "".join(titles), stem


def label_of(spec: str) -> str:
    """The spec as it enters the file: no folder of this machine."""
    where, colon, name = spec.rpartition(":")
    return f"{Path(where).name}{colon}{name}" if where.endswith(".py") else spec


def _title(key: str, value: str) -> str:
    """An option in a class name: p=3 is 3, eps=keep is EpsKeep."""
    shown = re.sub(r"[^0-9a-zA-Z]", "p", value)
    return shown if len(key) == 1 else key.title() + shown.title()


def command_of(
    spec: str,
    history: tuple[str, ...],
    state: str,
    name: str | None = None,
    math: str = DEFAULT_MATH,
) -> str:
    parts = ["signconv build", spec]
    parts += [f"--convert {','.join(history)}"] if history else []
    parts += [f"--state {state}"] if state != DEFAULT_STATE else []
    parts += [f"--math {math}"] if math != DEFAULT_MATH else []
    parts += [f"--name {name}"] if name else []
    return " ".join(parts)
