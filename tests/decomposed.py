"""The language's functions as they are printed into modules, by themselves, on every backend."""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from signconv.ir.nodes import Const, Op, Ref
from signconv.lower.decompositions import functions
from signconv.lower.kernel_program import function_name
from signconv.render.environment import environment
from signconv.render.module import _function_lines
from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import launch

HEADER = """import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import ops as dev
from signconv.runtime.reference import ops as ref


"""


@dataclass(frozen=True)
class Printed:
    """One function: on tensors, and inside a kernel."""

    reference: Callable[[Tensor], Tensor]
    kernel: Any

    def in_kernel(self, x: Tensor, device: str, block: int) -> Tensor:
        out = torch.empty_like(x, device=device)
        grid = (-(-x.numel() // block),)
        codec = launch.device_codec(torch.device(device))
        _unary_kernel[grid](
            x.to(device), out, x.numel(), self.kernel, block, codec, enable_fp_fusion=False
        )
        return out.cpu()

    def on_cpu(self, x: Tensor) -> Tensor:
        """Compiled by the CPU backend; needs llvmlite."""
        from llvmlite import ir

        from signconv.runtime.cpu import compile as backend
        from signconv.runtime.cpu import pieces
        from signconv.runtime.cpu.lanes import LLVM, POINTER
        from signconv.runtime.cpu.rows import Stored
        from signconv.runtime.cpu.trace import Trace

        module, real = ir.Module("alone"), LLVM[torch.float32]
        types = [POINTER, POINTER, LLVM[torch.int64]]
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), types), "alone")
        b = ir.IRBuilder(function.append_basic_block("entry"))
        source, target, rows = function.args
        with pieces.loop(b, rows) as row:
            trace = Trace(b, backend.width())
            element = pieces.times(b, row, 32)
            given = Stored(trace, torch.float32, pieces.at(b, source, element, real))
            made = Stored(trace, torch.float32, pieces.at(b, target, element, real))
            made.copy_(self.reference(given.clone()))
            trace.emit()
        b.ret_void()
        engine, _ = backend._machine_code(str(module))
        whole = torch.cat([x, x.new_ones(-x.numel() % 32)]).contiguous()
        out = torch.empty_like(whole)
        signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        call = signature(engine.get_function_address("alone"))
        call(whole.data_ptr(), out.data_ptr(), whole.numel() // 32)
        return out[: x.numel()]


@triton.jit
def _unary_kernel(
    x_ptr, out_ptr, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr, CODEC: tl.constexpr
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=1.0)
    tl.store(out_ptr + i, FUNCTION(x, CODEC), mask=i < n)


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory()  # Triton reads a kernel's source from its file
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def printed(fn: str, *constants: float) -> Printed:
    """``fn`` as lowered expressions name it: exp, newton_root (order), real_power (high, low), …"""
    e = Op(fn, (Ref("local", "x"), *(Const(float(c)) for c in constants)))
    lines = [_function_lines(f) for f in functions([e])]
    template = environment().get_template("functions.py.j2")
    text = HEADER + "".join(
        template.render(functions=lines, dialect=dialect) for dialect in ("triton", "torch")
    )
    name = function_name(e)
    path = _folder() / f"printed{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Printed(getattr(module, f"{name}_reference"), getattr(module, name))
