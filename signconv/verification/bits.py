"""Kernel against reference, bit for bit; a module to run, since the interpreter needs a process.

The kernel runs on the GPU, or under Triton's interpreter on the CPU (TRITON_INTERPRET=1), or is
the CPU backend's; the reference always runs on the CPU.  Both continue from one trained state.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from signconv.errors import VerifyError
from signconv.runtime.formats import BLOCK
from signconv.runtime.kernel import launch
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.program import MomentSlot, OptimizerProgram
from signconv.runtime.reference import codecs
from signconv.runtime.reference import roots as root_codec
from signconv.verification import inputs, scalars
from signconv.verification.matrix import replayed
from signconv.verification.report import Row

WARM_UP = 30
RISE = 8.0  # of lr in the warm-up, up to four times, where few parameters move
ENOUGH = 0.9  # the share of parameters that move
VALUES = 50  # of a moment at least, scales of blocks included ...
CODES = 24  # ... and codes: three binades of FP8, in which AdaMuon's v comes to lie


def load_class(path: Path) -> Any:
    """The optimizer class that a generated file defines."""
    found = importlib.util.spec_from_file_location(f"signconv_verified_{path.stem}", path)
    if found is None or found.loader is None or not path.is_file():
        raise VerifyError("SC702", f"there is no module {path}")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        found.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a module does not end its reader
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise VerifyError("SC703", f"{path} cannot be loaded: {words}") from error
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, FusedOptimizer)
            and hasattr(value, "program")
        ):
            return value
    raise VerifyError("SC704", f"{path} defines no generated optimizer")


def shapes(chunk: int) -> list[tuple[int, ...]]:
    """Block, tail and chunk edges, rows that are and are not multiples of 32."""
    return [
        (1,), (31,), (32,), (33,), (chunk - 1,), (chunk + 1,), (chunk // 32 + 1, 32),
        (48, 64), (40, 33), (2, 3, 96), (chunk // 8, 32),
    ]  # fmt: skip


def parameters(dtype: torch.dtype, chunk: int, device: str) -> list[Tensor]:
    """One tensor per shape, one that is not contiguous and one whose pointer is not aligned."""
    rng = torch.Generator().manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng).to(dtype)

    made = [normal(*s) for s in shapes(chunk)]
    made.append(normal(64, 32).t())
    made.append(normal(chunk + 1)[1:].view(-1, 32))
    placed = []
    for p in made:
        storage = p.untyped_storage().to(device=device) if device != "cpu" else None
        if storage is not None:
            p = torch.empty(0, dtype=dtype, device=device).set_(
                storage, p.storage_offset(), p.shape, p.stride()
            )
        placed.append(p.requires_grad_())
    return placed


def step_gradients(params: list[Tensor], t: int) -> list[Tensor]:
    """Gradients over decades inside a block, with zeros, equal on every device.

    Six decades for fp32 parameters; two for bf16 ones, which steps far below 1 do not move.
    """
    made = []
    for i, p in enumerate(params):
        rng = torch.Generator().manual_seed(1000 * t + i)
        fixed = torch.Generator().manual_seed(i)
        low, decades = (-5, 6) if p.dtype == torch.float32 else (-1, 2)
        scale = 10.0 ** (low + decades * torch.rand(p.shape, generator=fixed))
        g = torch.randn(p.shape, generator=rng) * scale
        g[torch.rand(p.shape, generator=rng) < 0.01] = 0.0
        made.append(g.to(p.dtype))
    return made


@contextlib.contextmanager
def roundings() -> Iterator[dict[str, int]]:
    """Count how often the reference's stochastic rounding went up and down."""
    counts = {"up": 0, "down": 0}
    kept = codecs.encode_fp8, codecs.encode_bf16, root_codec.encode_roots

    def count(x: Tensor, y: Tensor) -> None:
        counts["up"] += int((y.abs() > x.abs()).sum())
        counts["down"] += int((y.abs() < x.abs()).sum())

    # An operand is no Tensor while the CPU backend compiles the same functions
    def fp8(x: Tensor, byte: Tensor, field: Tensor, fmt: str) -> Tensor:
        code = kept[0](x, byte, field, fmt)
        if isinstance(x, Tensor):
            count(x, codecs.decode_fp8(code, fmt) * 2.0 ** (byte - 127.0))
        return code

    def bf16(x: Tensor, field: Tensor) -> Tensor:
        code = kept[1](x, field)
        if isinstance(x, Tensor):
            count(x, codecs.decode_bf16(code))
        return code

    def roots(v: Tensor, field: Tensor, byte: Tensor, n: int) -> Tensor:
        code = kept[2](v, field, byte, n)
        if isinstance(v, Tensor):
            scale = (byte << 23).view(torch.float32)
            count(v, root_codec.power(codecs.decode_fp8(code, "e4m3") * scale, n))
        return code

    def narrow(encode: Any, decode: Any) -> Any:
        def counted(x: Tensor, byte: Tensor, field: Tensor, layout: Any) -> Tensor:
            code = encode(x, byte, field, layout)
            if isinstance(x, Tensor):
                count(x, decode(code, layout) * 2.0 ** (byte - 127.0))
            return code

        return counted

    with (
        patch.object(codecs, "encode_fp8", fp8),
        patch.object(codecs, "encode_bf16", bf16),
        patch.object(codecs, "encode_fp4", narrow(codecs.encode_fp4, codecs.decode_fp4)),
        patch.object(codecs, "encode_int8", narrow(codecs.encode_int8, codecs.decode_int8)),
        patch.object(root_codec, "encode_roots", roots),
    ):
        yield counts


def different(a: Tensor, b: Tensor) -> int:
    """Elements whose bits differ; any NaN equals any NaN."""
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    ints = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}
    if a.dtype in ints:
        kind = ints[a.dtype]
        return int(((a.view(kind) != b.view(kind)) & ~(a.isnan() & b.isnan())).sum())
    return int((a != b).sum())


def chunk_of(program: OptimizerProgram, backend: str, dtype: torch.dtype) -> int:
    """Elements that one program of the kernel takes."""
    if backend == "cpu":
        from signconv.runtime.cpu.pieces import CHUNK_ROWS

        return BLOCK * CHUNK_ROWS
    return BLOCK * launch.launch_shape(program, dtype).chunk


def compare(
    cls: Any,
    dtype: torch.dtype,
    device: str,
    steps: int,
    backend: str = "triton",
    chunk: int | None = None,
    warm_up: int = WARM_UP,
) -> Row:
    """Train with the reference, then run ``steps`` steps with both and compare every bit.

    ``chunk``: of the shapes to run; the backend's own unless given.  lr rises in the warm-up where
    that many of its steps move few parameters: those of Adadelta and RAdam are small at first, and
    parameters that stay show nothing.  Matrix signs on another device than the CPU are held within
    their bounds and are the reference's then, so that all else has to have its bits.
    """
    chunk = chunk or chunk_of(cls.program, backend, dtype)
    name = f"{str(dtype).removeprefix('torch.')} parameters"
    cpu = parameters(dtype, chunk, "cpu")
    # A seed that fits 32 bits and one that does not: Triton types them differently
    small = dtype == torch.float32 and cls.program.precision == "fp32"
    lr, seed = (1e-2, 5) if small else (1.0, 2**40 + 3)
    reference = cls(cpu, lr=lr, seed=seed, backend="reference")

    def grads(optimizer: FusedOptimizer, params: list[Tensor], t: int) -> None:
        for p, g in zip(params, step_gradients(params, t), strict=True):
            p.grad = g.to(p.device)
        optimizer.step(**inputs.passed(optimizer.program, params, t))

    moved, highest = _idle(cpu), min(RISE**4 * lr, _highest_lr(cls.program))
    for t in range(1, warm_up + 1):
        before = [p.detach().clone() for p in cpu]
        grads(reference, cpu, t)
        moved = _moved(moved, before, cpu)
        if t % steps == 0:
            if _share(moved) < (1 + ENOUGH) / 2:  # the steps that are compared may be smaller
                lr = reference.param_groups[0]["lr"] = min(RISE * lr, highest)
            moved = _idle(cpu)
    other = parameters(dtype, chunk, device)
    for p, q in zip(cpu, other, strict=True):
        q.detach().copy_(p.detach())
    kernel = cls(other, lr=lr, seed=seed, backend=backend)
    kernel.load_state_dict(reference.state_dict())
    moved = _idle(cpu)
    begin, wrong, first = time.perf_counter(), 0, ""
    apart = device != "cpu" and any(r.kind == "msign" for r in cls.program.reductions)
    signs = replayed() if apart else contextlib.nullcontext()
    with roundings() as counts, signs as replay:
        for t in range(warm_up + 1, warm_up + steps + 1):
            before = [p.detach().clone() for p in cpu]
            grads(reference, cpu, t)
            grads(kernel, other, t)
            moved = _moved(moved, before, cpu)
            for p, q in zip(cpu, other, strict=True):
                pairs = {"parameter": (p, q)}
                pairs |= {k: (v, kernel.state[q][k]) for k, v in reference.state[p].items()}
                for what, (a, b) in pairs.items():
                    n = different(a, b)
                    wrong += n
                    if n and not first:
                        first = f"; first at step {t}, shape {tuple(p.shape)}, {what}: {n} differ"
    detail = f"{wrong} of {_elements(reference, cpu)} values x {steps} steps differ{first}"
    if replay is not None:
        detail += f"; {replay.taken} matrix signs within {replay.worst:.2g} of their bounds"
        wrong += replay.unknown + (not replay.worst <= 1)
    problems = _weak(cls, reference, cpu, counts, _share(moved), dtype)
    seconds = time.perf_counter() - begin
    ok = None if problems and not wrong else wrong == 0
    detail += "; agreement proves little: " + ", ".join(problems) if problems else ""
    witness = "reference - cpu" if backend == "cpu" else "reference - kernel"
    return Row(witness, name, ok, f"{detail} ({seconds:.0f} s)")


def _highest_lr(program: OptimizerProgram) -> float:
    """What the spec allows."""
    (lr,) = [h for h in program.hypers if h.name == "lr"]
    return min(lr.le, math.nextafter(lr.lt, -math.inf))


def _idle(params: list[Tensor]) -> list[Tensor]:
    """Marks of the coordinates that moved: none."""
    return [torch.zeros(p.shape, dtype=torch.bool) for p in params]


def _moved(moved: list[Tensor], before: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """The marks, with those of a step that came from ``before``."""
    return [m | (a != p.detach()) for m, a, p in zip(moved, before, params, strict=True)]


def _share(moved: list[Tensor]) -> float:
    """The share of coordinates that moved at any step (a walk of signs may come back)."""
    return sum(int(m.sum()) for m in moved) / sum(m.numel() for m in moved)


def _elements(optimizer: FusedOptimizer, params: list[Tensor]) -> int:
    return sum(p.numel() + sum(v.numel() for v in optimizer.state[p].values()) for p in params)


def _distinct(optimizer: FusedOptimizer, params: list[Tensor], m: MomentSlot) -> tuple[int, int]:
    """How many codes of a moment there are, and how many with the scales of their blocks."""
    codes, values = [], []
    for p in params:
        entry = optimizer.state[p]
        code, scale = entry[m.name].reshape(-1), entry.get(f"{m.name}_scale")
        codes.append(code.double())
        values.append(codes[-1])
        if scale is not None:
            width = BLOCK // 2 if m.stored.packed else BLOCK
            every = scale.reshape(-1).repeat_interleave(width).double()
            values[-1] = code + 256 * codecs.trimmed(every, scale, code.numel())
    return torch.cat(codes).unique().numel(), torch.cat(values).unique().numel()


def _weak(
    cls: Any,
    optimizer: FusedOptimizer,
    params: list[Tensor],
    counts: dict[str, int],
    moved: float,
    dtype: torch.dtype,
) -> list[str]:
    """Reasons why agreement would prove little: few values, one-sided rounding, idle parameters."""
    problems = []
    for m in cls.program.moments:
        codes, values = _distinct(optimizer, params, m)
        if values < (m.values or VALUES):
            problems.append(f"{m.name} has only {values} distinct values")
        elif codes < (m.values or CODES):
            problems.append(f"{m.name} has only {codes} distinct codes")
    # What is one of few numbers by the spec's words may need no rounding: a sign has none
    many = [m.format for m in cls.program.moments if not m.values]
    stochastic = set(many) - {"fp32", "e4m3-raw"}
    rounded = stochastic or (dtype == torch.bfloat16 and cls.program.precision == "fp32")
    if rounded and not (counts["up"] and counts["down"]):
        problems.append(f"rounded up {counts['up']} times, down {counts['down']} times")
    if moved < ENOUGH:
        problems.append(f"only {moved:.0%} of the parameters moved")
    return problems


def main() -> None:
    """Print one JSON list of rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    cls = load_class(arguments.path)
    rows: list[dict[str, Any]] = [scalars.kernel_row(cls.program, arguments.device).as_dict()]
    warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, from the interpreter
    for dtype in (torch.float32, torch.bfloat16):
        rows.append(compare(cls, dtype, arguments.device, arguments.steps).as_dict())
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
