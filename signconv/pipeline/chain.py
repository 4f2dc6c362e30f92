"""The chain from a spec to a module in memory: resolve, convert, lower, render."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from signconv.errors import SpecError
from signconv.ir.check import check
from signconv.ir.nodes import DEFAULT_STATE, Program
from signconv.lower import lower
from signconv.lower.kernel_program import KernelProgram
from signconv.passes.base import Request, canonical, parse, transform
from signconv.pipeline.files import MODULE, write
from signconv.pipeline.naming import DEFAULT_MATH, command_of, label_of, names_of
from signconv.pipeline.resolve import Spec, named, resolve
from signconv.render.module import Module, render


@dataclass(frozen=True)
class Build:
    """One optimizer, built: the program before and after all passes, lowered, and its module."""

    spec: str
    base: Program
    program: Program
    kernel: KernelProgram
    module: Module

    @property
    def command(self) -> str:
        return command_of(
            self.spec, self.program.history, self.kernel.storage, self.kernel.precision
        )

    def write(self, folder: str | Path) -> Path:
        """Write the module into ``folder``, atomically; returns its path.

        Raises BuildError where the folder cannot be written, and where a file of this name is
        there that signconv did not write.
        """
        return write(self.module, Path(folder), MODULE)[0]


def build(
    spec: Spec,
    *,
    convert: str | None = None,
    state: str = DEFAULT_STATE,
    math: str = DEFAULT_MATH,
    name: str | None = None,
) -> Build:
    """Build one optimizer in memory; ``.module`` is its text, ``.write(folder)`` writes it.

    spec: a subclass of ``signconv.dsl.Optimizer``, a built-in name, ``path/to/file.py:Name`` or
        ``package.module:Name``.
    convert: passes, comma-separated.
    state: fp8, int8, fp4, fp8-raw, bf16 or fp32, or that by moment (``m=fp8,v=fp4``; a word without
        a name is for all others).
    math: fp32, or bf16: every operation rounded to bf16.
    name: class name, default from spec and passes.

    Raises SignconvError (one line for people) for anything that is not valid.
    """
    if not isinstance(convert, str | None):
        raise SpecError(
            "SC155", 'passes are named by one string, comma-separated: convert="soft:p=3,stosign"'
        )
    spec = named(spec)
    requests = canonical(requests_of(convert))
    base = resolve(spec)
    program = apply_passes(base, requests)
    if not isinstance(state, str):
        raise SpecError("SC301", f'state={state!r}: give "fp8", "fp4" or "m=fp8,v=fp4"')
    kernel = lower(program, state, math)
    class_name, stem = names_of(program, requests, kernel.storage, math, name)
    label = label_of(spec)
    command = command_of(label, program.history, kernel.storage, math, name)
    module = render(kernel, class_name, f"{stem}.py", label, command)
    return Build(label, base, program, kernel, module)


def requests_of(convert: str | None) -> list[Request]:
    """``soft:p=3,nesterov`` as requests, in the order typed."""
    return [parse(part) for part in convert.split(",")] if convert else []


def apply_passes(p: Program, requests: list[Request]) -> Program:
    """Apply passes in the order given, checking the program after each."""
    for request in requests:
        p = check(transform(p, request))
    return p
