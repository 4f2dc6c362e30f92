"""How kernels are launched: tiles, registers and codecs, by program and device."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import tables
from signconv.runtime.compat import HAS_TRITON, tl
from signconv.runtime.extras import Kinds
from signconv.runtime.formats import PLAIN, SQUARE_ROWS, SQUARE_WIDTH
from signconv.runtime.kernel import constants, interpreter
from signconv.runtime.kernel.reduce import tree_sum
from signconv.runtime.program import NOISES, OptimizerProgram, Rows

#: Rows of 32 elements in a tile, stepped by one warp; measured with everything in ``launch_shape``
#: (docs/performance.md).
ROWS, WARPS = 8, 1
#: Rows at a time where masks are needed: few, so that this branch costs the other no registers.
TAIL_ROWS = 4
#: The interpreter takes 24 ms per tile whatever its size, so it gets large ones; four per program,
#: so that fetching two ahead is tested, and tails in one.
INTERPRETER_SHAPE = 16, 4


@dataclass(frozen=True)
class LaunchShape:
    """Rows of a tile, tiles of a program, and the most registers per thread (NVIDIA; None: any).

    eight: parameters are rounded eight at a time, in a branch that also keeps ptxas from moving the
    loads of the second tile behind the arithmetic of the first.  Of several tiles each is fetched
    while the two before are stepped.  Fewer registers are more programs in flight, until spilled
    ones cost more than that brings.
    """

    rows: int
    tiles: int
    registers: int | None
    eight: bool = False

    @property
    def chunk(self) -> int:
        """Rows that one program steps."""
        return self.rows * self.tiles

    def limits(self, codec: int) -> dict[str, int]:
        """Launch options of the step kernel."""
        nvidia = codec != constants.ARITHMETIC.value
        return {"maxnreg": self.registers} if nvidia and self.registers else {}


def interpreted() -> bool:
    """Whether the kernels of this process run under Triton's interpreter."""
    return HAS_TRITON and type(tree_sum).__name__ == "InterpretedFunction"


if interpreted():
    interpreter.patch_once()


def launch_shape(program: OptimizerProgram, param: torch.dtype) -> LaunchShape:
    """The fastest of those tried on an H200, by what is stored and computed per element; of whole
    numbers outside of stages the one that spills no register, which was not timed."""
    if interpreted():
        return LaunchShape(*INTERPRETER_SHAPE, None)
    formats = [m.stored for m in program.moments]
    wide = any(f.dtype.itemsize > 1 for f in formats)  # waits for bytes whatever the shape
    if wide or program.staged or program.tensors:
        return LaunchShape(ROWS, 1, None)
    if any(f.order > 1 or f.int8 is not None for f in formats):
        return LaunchShape(ROWS, 2, 72)
    if len(formats) < 2:
        return LaunchShape(ROWS, 4, 64)
    if len(formats) == 2 and param == torch.bfloat16:
        needs_more = program.noise or any(f.packed for f in formats)
        return LaunchShape(ROWS, 2, 80 if needs_more else 72, eight=True)
    return LaunchShape(ROWS, 2, 80)


#: Of a kernel that reads no values of stages.
NO_VALUES: dict[str, Any] = {
    "VALUES": 0, "MAP_COUNT": 0, "READS": (), "READ_MAPS": (), "READ_KINDS": ()
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What step and reduction are compiled for, beside the program: dtypes of parameter and
    gradient, whether rows end in partial blocks, how parameters are stored (formats.py), CODEC, how
    extra inputs come, how many blocks read values of stages together (``reading.across``), and
    whether the step sums for totals (``formats.STEPS`` and those after it)."""

    param: torch.dtype
    grad: torch.dtype
    rows: Rows = Rows.FLAT
    param_format: int = PLAIN
    codec: int = 0
    extras: Kinds = ()
    across: int = 0
    mode: int = 0


#: Constants of ``step_kernel`` alone.
OF_TOTALS = "MODE", "TOTALS", "COUNT"


def _tail(program: OptimizerProgram, shape: LaunchShape) -> int:
    """Rows at a time where masks are needed; a tile's where totals have a sum of each."""
    if interpreted():
        return shape.chunk
    return TAIL_ROWS if program.totals is None else shape.rows


def pass_shape() -> LaunchShape:
    """Of a pass over elements: more in flight where nothing is written but sums."""
    return LaunchShape(*INTERPRETER_SHAPE, None) if interpreted() else LaunchShape(ROWS, 4, None)


def tile_constants(program: OptimizerProgram, v: Variant, scaled: bool) -> dict[str, Any]:
    """Constants that step and reduction share; ``scaled``: gradients have a factor."""
    return {
        "COLUMNS": tables.columns(program),
        "OUTPUTS": len(program.outputs),
        "P_TYPE": pointer_type(v.param),
        "G_TYPE": pointer_type(v.grad),
        "P_FORMAT": v.param_format,
        "FORMATS": tuple(m.stored.code for m in program.moments),
        "APART": tuple(m.apart for m in program.moments),
        "EXTRAS": v.extras,
        "BY_ROW": v.rows == Rows.ENDING,
        "CODEC": v.codec,
        "SCALED": scaled,
        "num_warps": WARPS,
        "enable_fp_fusion": False,
    }


def step_constants(
    program: OptimizerProgram, v: Variant, scaled: bool, reading: Mapping[str, Any] = NO_VALUES
) -> dict[str, Any]:
    """Constants and launch options of ``step_kernel``; ``reading``: how it reads the values of
    stages (``reading.Layout``)."""
    shape = launch_shape(program, v.param)
    return {
        **tile_constants(program, v, scaled),
        **reading,
        "BLOCKS": v.across > 0,
        "MATH": program.kernel.math,
        "CUT": v.rows == Rows.CUT,
        "WORDS": program.words,
        "NOISE": NOISES.index(program.noise or "fresh"),
        "FIELDS": tuple(m.bits.code for m in program.moments),
        "EIGHT": shape.eight and v.param_format == PLAIN,
        "ROWS": shape.rows,
        "TAIL": _tail(program, shape),
        "TILES": shape.tiles,
        "MODE": v.mode,
        "TOTALS": program.totals.kernel if program.totals and v.mode else None,
        "COUNT": len(program.totals.names) if program.totals else 0,
        **shape.limits(v.codec),
    }


def square_constants(program: OptimizerProgram, v: Variant) -> dict[str, Any]:
    """Constants and launch options of ``sum_squares``."""
    return {
        "COLUMNS": tables.columns(program),
        "G_TYPE": pointer_type(v.grad),
        "ROWS": SQUARE_ROWS,
        "WIDTH": SQUARE_WIDTH,
        "LEVELS": SQUARE_WIDTH.bit_length() - 1,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }


def finder_constants(program: OptimizerProgram, v: Variant) -> dict[str, Any]:
    """Constants of ``find_nonfinite``."""
    shape = launch_shape(program, v.param)
    return {
        "COLUMNS": tables.columns(program),
        "G_TYPE": pointer_type(v.grad),
        "ROWS": shape.rows,
        "TILES": shape.tiles,
    }


def scalar_constants(program: OptimizerProgram, settles: bool = True) -> dict[str, Any]:
    """Constants and launch options of ``scalar_kernel``; settles: whether clocks and scalar states
    go on."""
    names = [h.name for h in program.hypers]
    return {
        "SCALARS": program.kernel.scalars,
        "HYPERS": len(names),
        "LR": names.index("lr"),
        "STATES": len(program.scalar_states),
        "OUTPUTS": len(program.outputs),
        "NORM": bool(program.norm),
        "EXTRAS": program.behind,
        "SETTLES": settles,
        "WORDS": program.words,
        "NOISE": NOISES.index(program.noise or "fresh"),
        "num_warps": 1,
        "enable_fp_fusion": False,
    }


def pointer_type(dtype: torch.dtype) -> Any:
    """Triton's type of a parameter or gradient."""
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float32


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Where launches go to ``device``: Triton launches on the current device, whichever the
    pointers are of."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


class Launcher:
    """A kernel with its grid and its constants: through Triton the first time, then the compiled
    kernel itself.

    Triton compares constants, types, alignments and the kernel's globals at every launch, about
    20 µs; here none of them can change but the tensors' dtype and alignment, which are the key.
    Triton's own switches (debugging, instrumentation) count when a kernel is first launched.
    """

    def __init__(self, kernel: Any, programs: int, constants: Mapping[str, Any]) -> None:
        self.kernel, self.grid = kernel, (programs, 1, 1)
        self.constants = dict(constants)
        self.known: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on the current device and stream; ``tensors`` are the kernel's first arguments."""
        key = tuple((t.dtype, t.data_ptr() % 16) for t in tensors)
        found = self.known.get(key)
        if found is not None:
            run, rest = found
            run(*tensors, *rest)
            return
        made = self.kernel[self.grid](*tensors, **self.constants)
        if made is not None:  # the interpreter compiles nothing
            names = self.kernel.arg_names[len(tensors) :]
            self.known[key] = made[self.grid], tuple(self.constants[n] for n in names)


def codec_for(capability: tuple[int, int] | None) -> int:
    """CODEC of the kernels for a CUDA compute capability; None is any other GPU."""
    if capability is None or capability < (8, 0) or interpreted():
        return int(constants.ARITHMETIC.value)
    return int((constants.PTX_FP8 if capability >= (8, 9) else constants.PTX).value)


def device_codec(device: torch.device) -> int:
    """CODEC of the kernels on a device of this machine."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return codec_for(torch.cuda.get_device_capability(device) if nvidia else None)
