"""Ahead-of-time compilation of step kernels for GPUs that this machine does not have.

Needs a process in which kernels are compiled, not interpreted (TRITON_INTERPRET unset).
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from signconv.errors import VerifyError
from signconv.runtime.compat import HAS_TRITON
from signconv.runtime.extras import DTYPES
from signconv.runtime.formats import BLOCK, GIVEN_BF16, PLAIN, STEPS, SUMS_TOO
from signconv.runtime.kernel import gradients, launch, matrices
from signconv.runtime.kernel.launch import WARPS, Variant, codec_for, interpreted
from signconv.runtime.kernel.reading import across, step_kernel
from signconv.runtime.kernel.scalars import scalar_kernel
from signconv.runtime.kernel.stages import Stages
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.program import Rows

#: Targets: backend, architecture, threads per warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
#: What the runtime passes as CODEC on each of them.
CODECS = {
    "sm_80": codec_for((8, 0)),
    "sm_90": codec_for((9, 0)),
    "sm_100": codec_for((10, 0)),
    "gfx942": codec_for(None),
}
#: Types of the tensors that step and reduction take.
STEP = {
    "table": "*i64",
    "chunks": "*i32",
    "scalar_table": "*fp32",
    "key_table": "*i32",
    "values": "*i64",
    "maps": "*i64",
    "targets": "*i64",
    "folds": "*i64",
    "partials": "*fp32",
}


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel: its assembly and what can be read off it."""

    target: str
    asm: dict[str, Any]
    spills: int

    @property
    def wide_loads(self) -> int:
        """16-byte loads from global memory in the PTX."""
        return len(re.findall(r"ld\.global(?:\.[\w:]+)*\.v4\.[bu]32", self.asm.get("ptx", "")))

    @property
    def wide_stores(self) -> int:
        """16-byte stores to global memory in the PTX."""
        return len(re.findall(r"st\.global(?:\.[\w:]+)*\.v4\.[bu]32", self.asm.get("ptx", "")))

    @property
    def contractions(self) -> list[str]:
        """Fused multiply-adds in the PTX that may round otherwise than the two operations."""
        return contractions(self.asm.get("ptx", ""))


#: Bits of 0, 1 and -1 (either sign of 0), and of -0 alone: fp32, then bf16, then fp16.
_EXACT_FACTORS = {
    *(0x00000000, 0x80000000, 0x3F800000, 0xBF800000),
    *(0x0000, 0x8000, 0x3F80, 0xBF80, 0x3C00, 0xBC00),
}
_NEUTRAL_ADDENDS = {"f32": 0x80000000, "bf16": 0x8000, "f16": 0x8000}


def contractions(ptx: str) -> list[str]:
    """The fused multiply-adds of ``ptx`` that are not one operation written as two.

    ``x*1 + y``, ``x*0 + y`` and ``x*y + (-0)`` round once, as the sum or the product alone does:
    sm_80 has no other bf16 arithmetic.  A register counts as a constant where one ``mov`` and
    nothing else writes it.  Inline assembly (``runtime/kernel/ptx.py``) is nobody's
    contraction: what it fuses was written so, and is tested against what it must equal.
    """
    ptx = without_assembly(ptx)
    constants: dict[str, set[int | None]] = {}
    for line in ptx.split(";"):
        words = re.fullmatch(r"(?s).*?([a-z][\w.:]*)\s+(\{[^}]*\}|%\w+),(.*)", line)
        if words:
            value = _literal(words[3]) if words[1].startswith("mov.") else None
            for register in re.findall(r"%\w+", words[2]):
                constants.setdefault(register, set()).add(value)

    def bits(operand: str) -> int | None:
        found = constants.get(operand, {_literal(operand)})
        return next(iter(found)) if len(found) == 1 else None

    found = []
    for line in re.findall(r"\bfma\.[^;]+", ptx):
        name, _, operands = line.partition(" ")
        _, *factors, addend = (x.strip() for x in operands.split(","))
        exact = any(bits(x) in _EXACT_FACTORS for x in factors)
        if not exact and bits(addend) != _NEUTRAL_ADDENDS.get(name.rpartition(".")[2], -1):
            found.append(" ".join(line.split()))
    return found


def without_assembly(ptx: str) -> str:
    """PTX as it was compiled, without what inline assembly put there."""
    return re.sub(r"(?s)// begin inline asm.*?// end inline asm", "", ptx)


def _literal(operand: str) -> int | None:
    match = re.fullmatch(r"0[fFxX]([0-9a-fA-F]+)", operand.strip())
    return int(match[1], 16) if match else None


def compile_step(
    optimizer: type[FusedOptimizer],
    target: str,
    dtype: torch.dtype = torch.bfloat16,
    rows: Rows = Rows.FLAT,
    master: int = PLAIN,
    scaled: bool = False,
) -> Compiled:
    """Compile the step kernel of a generated class as the runtime launches it.

    ``rows``: how a tensor's rows lie; ``master``: how parameters are stored (formats.py);
    ``scaled``: with a factor for the gradients.
    Raises VerifyError where kernels are interpreted.
    """
    codec = CODECS[target] if target in TARGETS else 0
    extras = tuple(DTYPES[dtype] for _ in optimizer.program.tensors)
    totals = optimizer.program.totals
    whole = 4 if rows == Rows.FLAT and optimizer.program.staged and totals is None else 0
    mode = SUMS_TOO if totals is not None and totals.trailing else STEPS
    variant = Variant(dtype, dtype, rows, master, codec, extras, whole, mode)
    kernel, constants = step_kernel(optimizer.program, variant, scaled)
    return _compile(kernel, STEP, constants, target)


def compile_scalars(optimizer: type[FusedOptimizer], target: str) -> Compiled:
    """Compile the scalar kernel of a generated class."""
    names = ("*fp64", "*fp64", "*i64", "*fp64", "*i64", "*fp32", "*fp32", "*fp32", "*i32")
    pointers = dict(zip(scalar_kernel.arg_names, names, strict=False))
    return _compile(scalar_kernel, pointers, launch.scalar_constants(optimizer.program), target)


def compile_stages(
    optimizer: type[FusedOptimizer],
    target: str,
    shape: Sequence[int] = (256, 256),
    rows: Rows = Rows.FLAT,
) -> list[Compiled]:
    """Compile what comes before the step of a generated class that has reductions, for one bf16
    parameter of a shape: passes, folds, what derives values, and what begins matrix signs."""
    codec = CODECS[target] if target in TARGETS else 0
    whole = across(optimizer.program, shape) if rows == Rows.FLAT else 0
    extras = (GIVEN_BF16,) * len(optimizer.program.tensors)
    variant = Variant(torch.bfloat16, torch.bfloat16, rows, PLAIN, codec, extras, whole)
    count = -(-math.prod(shape) // BLOCK)
    stages = Stages(optimizer.program, torch.device("cpu"), [shape], [count], variant)
    stages.prepare(False, extras)
    found = {(x.kernel, *sorted(x.constants.items(), key=str)): x for x in stages.made}
    made = [_compile(x.kernel, STEP, x.constants, target) for x in found.values()]
    signs = any(r.kind == "msign" for r in optimizer.program.reductions)
    return made + (compile_matrices(target) if signs else [])


def compile_squares(optimizer: type[FusedOptimizer], target: str) -> Compiled:
    """Compile what sums the squares of gradients, bf16, in chunks of a generated class."""
    variant = Variant(torch.bfloat16, torch.bfloat16)
    constants = launch.square_constants(optimizer.program, variant)
    return _compile(gradients.sum_squares, STEP | {"partials": "*fp64"}, constants, target)


def compile_matrices(target: str) -> list[Compiled]:
    """Compile what goes before the products of a matrix sign."""
    numbers = {"size": "i64", "apart": "i64", "pieces": "i64"}
    pointers = {"x": "*fp32", "partials": "*fp64", "factors": "*fp32", "result": "*bf16"}
    given = {"N": matrices.PIECE, "LOOPS": matrices.LOOPS}
    kernels = (matrices._square_pieces, matrices._start)
    return [_compile(kernel, pointers | numbers, given, target) for kernel in kernels]


def compile_finder(optimizer: type[FusedOptimizer], target: str) -> Compiled:
    """Compile what looks for non-finite gradients, bf16, in chunks of a generated class.

    Raises VerifyError where kernels are interpreted.
    """
    variant = Variant(torch.bfloat16, torch.bfloat16)
    constants = launch.finder_constants(optimizer.program, variant)
    return _compile(gradients.find_nonfinite, STEP | {"flag": "*fp32"}, constants, target)


def _compile(kernel: Any, pointers: dict[str, str], given: dict[str, Any], target: str) -> Compiled:
    """``pointers``: types of tensor arguments by name; ``given``: constants and launch options."""
    if not HAS_TRITON or interpreted():
        raise VerifyError(
            "SC610",
            "kernels are interpreted in this process: unset TRITON_INTERPRET to compile them",
        )
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if target not in TARGETS:
        raise VerifyError("SC706", f"unknown target {target!r}; valid: {', '.join(TARGETS)}")
    names = kernel.arg_names
    signature = {n: pointers.get(n, "constexpr") for n in names}
    constants = {n: given[n] for n in names if n in given}
    options = {n: x for n, x in given.items() if n not in names}
    unknown = [n for n in options if n.isupper()]
    if unknown:  # a launch would refuse them
        raise VerifyError("SC390", f"{kernel.__name__} knows no {', '.join(unknown)}")
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in pointers}
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(
        source,
        target=GPUTarget(*TARGETS[target]),
        options={"num_warps": WARPS, "enable_fp_fusion": False, **options},
    )
    return Compiled(target, made.asm, _spills(made))


def cuobjdump(code: bytes, option: str) -> str:
    """What NVIDIA's cuobjdump, which Triton brings along, prints of machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(tool), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _spills(made: Any) -> int:
    """Bytes of stack per thread in NVIDIA machine code: what ptxas spilled; 0 for other targets."""
    code = made.asm.get("cubin")
    if code is None:
        return 0
    return sum(int(x) for x in re.findall(r"STACK:(\d+)", cuobjdump(code, "--dump-resource-usage")))
