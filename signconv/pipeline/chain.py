"""The chain from a spec to a module in memory: resolve, convert, lower, render."""

from __future__ import annotations

from dataclasses import dataclass

from signconv.errors import SpecError
from signconv.ir.check import check
from signconv.ir.nodes import Program
from signconv.lower import lower
from signconv.lower.kernel_program import KernelProgram
from signconv.passes.base import Request, canonical, parse, transform
from signconv.pipeline.naming import DEFAULT_MATH, DEFAULT_STATE, command_of, label_of, names_of
from signconv.pipeline.resolve import resolve
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
            self.spec, self.program.history, self.kernel.state, math=self.kernel.precision
        )


def build(
    spec: str,
    convert: str | None = None,
    state: str = DEFAULT_STATE,
    name: str | None = None,
    math: str = DEFAULT_MATH,
) -> Build:
    """Build one optimizer in memory.

    spec: a built-in name, ``path/to/file.py:Name`` or ``package.module:Name``; convert: passes,
    comma-separated; state: fp8, fp8-raw, bf16 or fp32; name: class name, default from spec and
    passes; math: fp32, or bf16: every operation rounded to bf16.
    Raises SignconvError (one line for people) for anything that is not valid.
    """
    if not isinstance(spec, str) or not isinstance(convert, str | None):
        raise SpecError(
            "SC101",
            'an optimizer is named by a string ("adamw", "path/to/file.py:Name"), passes by '
            'one, comma-separated ("soft:p=3,stosign")',
        )
    requests = canonical(requests_of(convert))
    base = resolve(spec)
    program = apply_passes(base, requests)
    kernel = lower(program, state, math)
    class_name, stem = names_of(program, requests, state, math, name)
    label = label_of(spec)
    command = command_of(label, program.history, state, name, math)
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
