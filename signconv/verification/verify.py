"""``signconv.verify`` and the command of that name: what is to be checked, where, and all rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch

from signconv.errors import VerifyError, nearest
from signconv.ir.nodes import DEFAULT_STATE
from signconv.pipeline import Build, build
from signconv.pipeline.classes import recipe_of
from signconv.pipeline.naming import DEFAULT_MATH
from signconv.pipeline.resolve import Spec
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification import differential
from signconv.verification.report import Report, Row

DEVICES = ("auto", "cpu", "cuda")


def verify(
    subject: Spec | type[FusedOptimizer],
    *,
    convert: str | None = None,
    state: str = DEFAULT_STATE,
    math: str = DEFAULT_MATH,
    name: str | None = None,
    device: str = "auto",
    steps: int = 3,
    watch: Callable[[Row], object] | None = None,
) -> Report:
    """Check one optimizer: oracle, passes, reference and kernels against each other.

    subject: what ``build`` takes, with its options; or a generated class or the path of a
    generated file, which say themselves what made them and are compared with what the compiler
    emits now.  device: auto, cpu (the kernel runs under Triton's interpreter) or cuda; steps are
    compared bit for bit; ``watch`` sees each row as soon as it is there.
    A mismatch is a row that failed; raises SignconvError for what cannot be checked.
    """
    where = device_type(device)
    if steps < 1:
        raise VerifyError("SC709", f"steps={steps}: at least one step has to be compared")
    path: Path | None = None
    if (isinstance(subject, str) and subject.endswith(".py")) or (
        isinstance(subject, type) and issubclass(subject, FusedOptimizer)
    ):
        options = {"convert": convert, "name": name}
        options |= {"state": None if state == DEFAULT_STATE else state}
        options |= {"math": None if math == DEFAULT_MATH else math}
        given = ", ".join(f"--{option}" for option, value in options.items() if value)
        if given:
            raise VerifyError(
                "SC701", f"a generated module says itself what made it: leave out {given}"
            )
        made, path = _generated(subject)
    else:
        made = build(subject, convert=convert, state=state, math=math, name=name)
    rows = []
    for row in differential.verify(made, path, where, steps):
        rows.append(row)
        if watch is not None:
            watch(row)
    return Report(made.module.class_name, where, tuple(rows))


def _generated(subject: str | type[FusedOptimizer]) -> tuple[Build, Path]:
    """What a generated file or class was made from, built anew, and where its text is."""
    if isinstance(subject, str):
        return differential.from_module(Path(subject)), Path(subject)
    recipe = recipe_of(subject)
    try:
        path = Path(inspect.getfile(subject))
    except (OSError, TypeError):
        path = Path(f"{subject.__module__}.py")
    if recipe is None and "program" not in vars(subject):
        raise VerifyError(
            "SC708",
            f"{subject.__name__} is derived from a generated class or is the base of all: give "
            "the generated class itself",
        )
    if recipe is None:
        return differential.from_module(path), path
    r = recipe
    return build(r.spec, convert=r.convert, state=r.state, math=r.math, name=r.name), path


def device_type(device: str) -> str:
    """The device's type: ``auto`` is the GPU if there is one."""
    if device not in DEVICES:
        raise VerifyError("SC710", f"unknown device {device!r}; {nearest(device, DEVICES)}")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise VerifyError("SC605", "device cuda: this machine has no CUDA device; leave it at auto")
    return device
