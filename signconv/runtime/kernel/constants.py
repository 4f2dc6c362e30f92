"""Constants that kernels know: formats, how codes are made, and whether kernels are interpreted.

Here alone: INTERPRETED is read when a kernel is decorated, and Triton hashes the constants that a
kernel's functions name.
"""

from __future__ import annotations

import os

from signconv.runtime import formats, program, tables
from signconv.runtime.compat import interpreter_fuses, tl

# Triton's interpreter widens bf16 subnormals wrongly (measured, 3.9), so it does that on the bits;
# on a GPU one instruction does it.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


#: Whether ``tl.fma`` rounds once.
FUSES = tl.constexpr(not INTERPRETED or interpreter_fuses())

# Formats, by the numbers that formats.py gives them.
FP32 = tl.constexpr(formats.FORMATS["fp32"].code)
BF16 = tl.constexpr(formats.FORMATS["bf16"].code)
E4M3 = tl.constexpr(formats.FORMATS["e4m3"].code)
E5M3 = tl.constexpr(formats.FORMATS["e5m3"].code)
E6M2 = tl.constexpr(formats.FORMATS["e6m2"].code)
E2M1 = tl.constexpr(formats.FORMATS["e2m1"].code)
E4M0 = tl.constexpr(formats.FORMATS["e4m0"].code)
INT8 = tl.constexpr(formats.FORMATS["int8"].code)
E4M3_RAW = tl.constexpr(formats.FORMATS["e4m3-raw"].code)
ROOT = tl.constexpr(formats.ROOT)  # + p: the p-th root in E4M3
SCALED = tl.constexpr(formats.SCALED)
LEAST_SCALE = tl.constexpr(formats.LEAST_SCALE)
HALVES = tl.constexpr(formats.HALVES)  # below ROOT: two codes to a byte

# How codes are made (a kernel's CODEC): by arithmetic that runs everywhere; by the same arithmetic
# in PTX, for NVIDIA GPUs; by that and the FP8 conversions of compute capability 8.9
ARITHMETIC = tl.constexpr(0)
PTX = tl.constexpr(1)
PTX_FP8 = tl.constexpr(2)

# How a parameter is stored.
PLAIN = tl.constexpr(formats.PLAIN)
SPLIT = tl.constexpr(formats.SPLIT)
WHOLE = tl.constexpr(formats.WHOLE)

# How an extra input per element comes.
GIVEN_FP32 = tl.constexpr(formats.GIVEN_FP32)
GIVEN_BF16 = tl.constexpr(formats.GIVEN_BF16)

# The table of tensors (tables.py), and how many numbers a row of the table of chunks has.
COLUMN_CLOCK = tl.constexpr(int(tables.Column.CLOCK))
COLUMN_ALIGNED = tl.constexpr(int(tables.Column.ALIGNED))
COLUMN_OFFSET = tl.constexpr(int(tables.Column.OFFSET))
COLUMN_NUMEL = tl.constexpr(int(tables.Column.NUMEL))
COLUMN_ROW_LENGTH = tl.constexpr(int(tables.Column.ROW_LENGTH))
COLUMN_PITCH = tl.constexpr(int(tables.Column.PITCH))
COLUMN_PARAM = tl.constexpr(int(tables.Column.PARAM))
COLUMN_GRAD = tl.constexpr(int(tables.Column.GRAD))
COLUMN_STATE = tl.constexpr(int(tables.Column.STATE))
CHUNK_ENTRY = tl.constexpr(2)

# Kinds of noise (program.py).
FRESH = tl.constexpr(program.NOISES.index("fresh"))
ANTITHETIC = tl.constexpr(program.NOISES.index("antithetic"))
GOLDEN = tl.constexpr(program.NOISES.index("golden"))

# What the step kernel does (formats.py).
STEPS = tl.constexpr(formats.STEPS)
SUMS_ALONE = tl.constexpr(formats.SUMS_ALONE)
SUMS_TOO = tl.constexpr(formats.SUMS_TOO)

# Kinds of reductions (program.py).
SUM = tl.constexpr(program.REDUCTION_KINDS.index("sum"))
NORM = tl.constexpr(program.REDUCTION_KINDS.index("norm"))
MEAN = tl.constexpr(program.REDUCTION_KINDS.index("mean"))
AMAX = tl.constexpr(program.REDUCTION_KINDS.index("amax"))
AMIN = tl.constexpr(program.REDUCTION_KINDS.index("amin"))

# How an element finds a value of a stage, and what a pass stores of a result (formats.py).
ONE = tl.constexpr(formats.ONE)
SAME = tl.constexpr(formats.SAME)
CONTIGUOUS = tl.constexpr(formats.READ_CONTIGUOUS)
WALKED = tl.constexpr(formats.READ_WALKED)
SIGN = tl.constexpr(formats.READ_SIGN)
BY_BLOCK = tl.constexpr(formats.BY_BLOCK)
BY_COLUMN = tl.constexpr(formats.BY_COLUMN)
BY_ELEMENT = tl.constexpr(formats.BY_ELEMENT)
BY_NOTHING = tl.constexpr(formats.BY_NOTHING)
# Order of strided sums (formats.py).
SEGMENT = tl.constexpr(formats.SEGMENT)
STRIDE = tl.constexpr(formats.STRIDE)
# Rows of a table of folds (stages.py).
FOLD_SOURCE = tl.constexpr(0)
FOLD_TARGET = tl.constexpr(1)
FOLD_REDUCED = tl.constexpr(2)
FOLD_BEHIND = tl.constexpr(3)
FOLD_COUNT = tl.constexpr(4)
FOLD_LENGTH = tl.constexpr(5)
FOLD_ENTRY = tl.constexpr(6)
