"""What the result is called: its class, its file, and the command that builds it."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from signconv.dsl.optimizer import Optimizer
from signconv.errors import BuildError
from signconv.ir.nodes import DEFAULT_STATE, Program
from signconv.passes.base import Request, registry

DEFAULT_MATH = "fp32"


def names_of(
    p: Program, requests: list[Request], state: str, math: str, name: str | None
) -> tuple[str, str]:
    passes = registry()
    titles, stems = [p.name], [p.key]
    for r in requests:
        values = "".join(_stem(k, re.sub(r"[^0-9a-zA-Z]", "p", v)) for k, v in r.options)
        titles.append(passes[r.name].title + "".join(_title(k, v) for k, v in r.options))
        stems.append(r.name + values)
    if state != DEFAULT_STATE:
        parts = [x.replace("-", "").split("=") for x in state.split(",")]
        titles += [x.upper() if x.islower() else x for part in parts for x in part]
        stems += [x for part in parts for x in part]
    if math != DEFAULT_MATH:
        titles.append(f"Math{math.upper()}")
        stems.append(f"math{math}")
    if name is not None and not (
        isinstance(name, str)
        and name.isidentifier()
        and name.isascii()
        and not keyword.iskeyword(name)
    ):
        raise BuildError("SC307", f"--name {name!r} is not a class name")
    stem = "_".join(stems) if name is None else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return name or "".join(titles), stem


#: Opens the label of a class that no command line can name.
NO_FILE, IN_FUNCTION = "<no file>", "<function>"


def label_of(spec: str | type[Optimizer]) -> str:
    """The spec as it enters the file: no folder of this machine."""
    if isinstance(spec, str):
        where, colon, name = spec.rpartition(":")
        return f"{Path(where).name}{colon}{name}" if where.endswith(".py") else spec
    file = Path(spec.program.origin.file) if spec.program.origin else Path()
    if "<locals>" in spec.__qualname__:
        return f"{IN_FUNCTION}:{spec.__name__}"
    if spec.__qualname__ == spec.__name__ and file.suffix == ".py" and file.is_file():
        return f"{file.name}:{spec.__name__}"
    return f"{NO_FILE}:{spec.__name__}"


def nameable(label: str) -> bool:
    """Whether a command line can name what has this label."""
    return not label.startswith((NO_FILE, IN_FUNCTION))


#: Options whose values say by themselves what they are of.
_SAY_IT = ("noise", "to")


def _title(key: str, value: str) -> str:
    """An option in a class name: p=3 is 3, eps=keep EpsKeep, noise=golden Golden, to=zero Zero."""
    shown = re.sub(r"[^0-9a-zA-Z]", "p", value)
    if key in _SAY_IT:
        return shown.title()
    return shown if len(key) == 1 else key.title() + shown.title()


def _stem(key: str, value: str) -> str:
    """The same in a file name."""
    if key in _SAY_IT:
        return f"_{value}"
    return value if len(key) == 1 else key + value


def command_of(
    label: str,
    history: tuple[str, ...],
    state: str,
    math: str = DEFAULT_MATH,
    name: str | None = None,
) -> str:
    """What builds the file again: a command line, or a line of Python beside the user's class."""
    if not nameable(label):
        options = {
            "convert": ",".join(history) or None,
            "state": None if state == DEFAULT_STATE else state,
            "math": None if math == DEFAULT_MATH else math,
            "name": name,
        }
        given = "".join(f', {k}="{v}"' for k, v in options.items() if v)
        where, _, own = label.rpartition(":")
        words = "in a function" if where == IN_FUNCTION else "without a file"
        return f"signconv.build({own}{given}).write(folder)  # a class {words}"
    parts = ["signconv build", label]
    parts += [f"--convert {','.join(history)}"] if history else []
    parts += [f"--state {state}"] if state != DEFAULT_STATE else []
    parts += [f"--math {math}"] if math != DEFAULT_MATH else []
    parts += [f"--name {name}"] if name else []
    return " ".join(parts)
