"""The PyTorch half of the runtime: the same functions as ``kernel.ops``, on whole tensors.

Written for truth, not for speed: every operation is one IEEE binary32 or integer operation, so
that the results equal the kernel's bit for bit.  Tensors are flat; codecs with
block scales take whole blocks, which ``padded`` makes of rows that are no multiple of 32.

The CPU backend compiles these functions by calling them on ``cpu.lanes.Lanes``, which answers
torch's functions; those few that cannot be read off row by row ask it first, by torch's own
protocol (``torch.overrides``).
"""

from __future__ import annotations

from signconv.runtime.reference.arithmetic import (
    divided,
    divisor_sqrt,
    either,
    fma,
    maximum,
    mean_ratio,
    minimum,
    nonneg_maximum,
    quotient,
    ratio,
    reciprocal,
    sign,
    sqrt,
)
from signconv.runtime.reference.codecs import (
    bf16_nearest,
    block_scale,
    decode_bf16,
    decode_fp4,
    decode_fp8,
    encode_bf16,
    encode_fp4,
    encode_fp8,
    encode_fp8_nearest,
    fp4_scale,
    pack,
    padded,
    scales_of,
    trimmed,
    unpack,
)
from signconv.runtime.reference.memory import (
    join_master,
    load_apart,
    load_float,
    load_moment,
    load_param,
    row_check,
    split_master,
    store_float,
    store_moment,
    store_param,
)
from signconv.runtime.reference.random_bits import (
    Word,
    draw,
    draw_keys,
    draw_words,
    element_numbers,
    mix32,
    sign_noise,
    step_keys,
)
from signconv.runtime.reference.reduce import (
    mean_of_sum,
    norm_of_sum,
    tree_sum,
)
from signconv.runtime.reference.roots import power
from signconv.runtime.reference.scalars import (
    divide64,
    exp64,
    log64,
    max64,
    min64,
    mod64,
    power64,
    real_power64,
    sqrt64,
    tanh64,
)

__all__ = [
    "Word",
    "bf16_nearest",
    "block_scale",
    "decode_bf16",
    "decode_fp4",
    "decode_fp8",
    "divide64",
    "divided",
    "divisor_sqrt",
    "draw",
    "draw_keys",
    "draw_words",
    "either",
    "element_numbers",
    "encode_bf16",
    "encode_fp4",
    "encode_fp8",
    "encode_fp8_nearest",
    "exp64",
    "fma",
    "fp4_scale",
    "join_master",
    "load_apart",
    "load_float",
    "load_moment",
    "load_param",
    "log64",
    "max64",
    "maximum",
    "mean_of_sum",
    "mean_ratio",
    "min64",
    "minimum",
    "mix32",
    "mod64",
    "nonneg_maximum",
    "norm_of_sum",
    "pack",
    "padded",
    "power",
    "power64",
    "quotient",
    "ratio",
    "real_power64",
    "reciprocal",
    "row_check",
    "scales_of",
    "sign",
    "sign_noise",
    "split_master",
    "sqrt",
    "sqrt64",
    "step_keys",
    "store_float",
    "store_moment",
    "store_param",
    "tanh64",
    "tree_sum",
    "trimmed",
    "unpack",
]
