"""``signconv verify``: all witnesses for one optimizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from signconv.errors import SignconvError, VerifyError
from signconv.lower import lower
from signconv.lower.storage import without_widths
from signconv.pipeline import Build, build, write
from signconv.pipeline.naming import nameable
from signconv.render.module import render
from signconv.runtime.compat import CPU_REMEDY, HAS_LLVM, HAS_TRITON
from signconv.runtime.program import OptimizerProgram
from signconv.verification import bits, scalars, witnesses
from signconv.verification.report import Row


def verify(made: Build, path: Path | None, device: str, steps: int = 3) -> Iterator[Row]:
    """Rows of all checks; ``path`` is a module to check instead of a fresh build.

    device: "cpu" (kernel under Triton's interpreter) or "cuda".
    """
    yield witnesses.oracle_row(made.spec, made.base)
    yield from witnesses.pass_rows(made.base, made.program.history)
    with tempfile.TemporaryDirectory() as folder:
        exact = build_like(made, "fp32")
        fp32_path, _ = write(exact.module, Path(folder) / "fp32")
        yield witnesses.reference_row(made.program, bits.load_class(fp32_path))
        if path is None:
            copy, _ = write(made.module, Path(folder))
        else:
            # One text for all checks, whatever becomes of the file meanwhile
            text = path.read_bytes()
            copy = Path(folder) / path.name
            copy.write_bytes(text)
            same = text == made.module.source.encode()
            words = "what the compiler emits now" if same else f"differs from `{made.command}`"
            yield Row("file - compiler", path.name, same, words)
        yield from guarded("evaluator - reference", lambda: scalar_rows(made, copy))
        yield from guarded("reference - cpu", lambda: cpu_rows(copy, steps))
        yield from kernel_rows(copy, device, steps)
        if path is not None and (not path.is_file() or path.read_bytes() != text):
            yield Row("file - compiler", path.name, False, "was edited while it was checked")


def guarded(witness: str, rows: Callable[[], list[Row]]) -> list[Row]:
    """Rows of a check; one that failed where the module raises, whatever it raises."""
    try:
        return rows()
    except (SignconvError, KeyboardInterrupt):
        raise
    except BaseException as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return [Row(witness, "", False, f"the module did not run: {words}")]


def scalar_rows(made: Build, path: Path) -> list[Row]:
    """The module's scalars in Python against the evaluator's functions."""
    program: OptimizerProgram = bits.load_class(path).program
    return [scalars.reference_row(made.kernel, program)]


def build_like(made: Build, state: str) -> Build:
    """The same program with one other state format for all moments."""
    kernel = lower(without_widths(made.program), state)
    module = render(kernel, f"{made.module.class_name}Exact", made.module.file_name, made.spec, "")
    return Build(made.spec, made.base, made.program, kernel, module)


def cpu_rows(path: Path, steps: int) -> list[Row]:
    """The CPU backend against the reference."""
    if not HAS_LLVM:
        return [Row("reference - cpu", "", None, f"llvmlite is not installed: {CPU_REMEDY}")]
    cls = bits.load_class(path)
    dtypes = (torch.float32, torch.bfloat16)
    return [bits.compare(cls, dtype, "cpu", steps, backend="cpu") for dtype in dtypes]


def kernel_rows(path: Path, device: str, steps: int) -> list[Row]:
    """Kernel against reference in a process of its own."""
    if not HAS_TRITON:
        return [Row("reference - kernel", "", None, "Triton is not installed on this machine")]
    environment = dict(os.environ)
    environment.pop("TRITON_INTERPRET", None)
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [environment.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-m", "signconv.verification.bits", str(path), "--device", device]
    command += ["--steps", str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return [Row("reference - kernel", "", False, f"the kernel did not run: {last[0]}")]
    try:
        return [Row(**row) for row in json.loads(done.stdout.strip().splitlines()[-1])]
    except (IndexError, ValueError, TypeError):
        return [Row("reference - kernel", "", False, "the kernel's process printed no result")]


def from_module(path: Path) -> Build:
    """Rebuild what a generated module says it is."""
    program: OptimizerProgram = bits.load_class(path).program
    if not nameable(program.spec):
        raise VerifyError(
            "SC707",
            f"{path} was built from a class that only its own Python process has "
            f"({program.spec}): call signconv.verify with that class",
        )

    def rebuilt(name: str | None) -> Build:
        convert = ",".join(program.passes) or None
        return build(
            program.spec, convert=convert, state=program.storage, math=program.precision, name=name
        )

    try:
        made = rebuilt(None)
        return made if made.module.class_name == program.name else rebuilt(program.name)
    except Exception as error:
        words = str(error) if isinstance(error, SignconvError) else repr(error)
        raise VerifyError(
            "SC705", f"{path} says it was built from {program.spec!r}: {words}"
        ) from error
