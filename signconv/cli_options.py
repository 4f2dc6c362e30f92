"""Arguments and options that several commands share, and what a shell completes them to.

Nothing here imports torch: a shell waits for it at every press of the tab key.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer

from signconv.ir.nodes import STATES
from signconv.specs import builtin_names


class Math(StrEnum):
    """Arithmetic of the step."""

    fp32 = "fp32"
    bf16 = "bf16"


class Device(StrEnum):
    """Where the kernel runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """Parameters and gradients of a benchmark."""

    bf16 = "bf16"
    fp32 = "fp32"


class Format(StrEnum):
    """How ``show`` prints."""

    text = "text"
    latex = "latex"
    json = "json"


# ---------------------------------------------------------------- what a shell completes


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [w for w in words if w.startswith(incomplete)]


def specs(incomplete: str) -> list[str]:
    """Built-in names; where none fits, the shell goes on with files."""
    return _beginning(incomplete, builtin_names())


def targets(incomplete: str) -> list[str]:
    """What ``convert-state --to`` takes."""
    return _beginning(incomplete, [*builtin_names(), "torch"])


def passes(incomplete: str) -> list[str]:
    """The last of the passes that are typed: those that go with the others, then their options."""
    return _after(incomplete, ",")


def subjects(incomplete: str) -> list[str]:
    """What ``bench`` takes: SPEC+PASS+PASS@STATE."""
    before, at, state = incomplete.rpartition("@")
    if at:
        return [f"{before}@{w}" for w in _beginning(state, STATES)]
    return _after(incomplete, "+") if "+" in incomplete else specs(incomplete)


def _after(incomplete: str, separator: str) -> list[str]:
    from signconv.passes.base import registry

    known = registry()
    before, sign, last = incomplete.rpartition(separator)
    typed = [x.partition(":")[0] for x in before.split(separator)]
    groups = {known[x].group for x in typed if x in known}
    name, colon, _ = last.partition(":")
    if colon and name in known:
        words = [
            f"{name}:{key}={value}"
            for key, values in known[name].options.items()
            for value in (values.split("|") if "|" in values else [""])
        ]
    else:
        words = [x.name for x in known.values() if x.group not in groups]
    return [f"{before}{sign}{w}" for w in _beginning(last, words)]


def states(incomplete: str) -> list[str]:
    """The last format that is typed, after a comma and after a moment's name too."""
    cut = max(incomplete.rfind(","), incomplete.rfind("=")) + 1
    return [incomplete[:cut] + w for w in _beginning(incomplete[cut:], STATES)]


# ---------------------------------------------------------------- arguments and options

SPEC_HELP = "built-in name, path/to/file.py:Name or package.module:Name"
Spec = Annotated[str, typer.Argument(help=SPEC_HELP, autocompletion=specs)]
Convert = Annotated[
    str | None, typer.Option(help="passes, comma-separated: stosign, …", autocompletion=passes)
]
StateOption = Annotated[
    str,
    typer.Option(
        metavar="STATE",
        help=f"storage of the moments: {', '.join(STATES)}; by name: m=fp8,v=fp4",
        autocompletion=states,
    ),
]
MathOption = Annotated[Math, typer.Option(help="arithmetic: fp32, or every result rounded to bf16")]
DeviceOption = Annotated[Device, typer.Option(help="auto: the GPU if there is one")]
