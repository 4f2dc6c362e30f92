"""The Triton half of the runtime: what kernels and generated modules call.

Every function has a twin of the same name in ``reference.ops``, and in the room of the same name
(``kernel.arithmetic`` and ``reference.arithmetic``, and so on), equal bit for bit.
"""

from __future__ import annotations

from signconv.runtime.kernel.arithmetic import (
    divide,
    divided,
    maximum,
    mean_ratio,
    minimum,
    nonneg_maximum,
    quotient,
    ratio,
    sign,
    signed,
    sqrt,
)
from signconv.runtime.kernel.codecs import (
    bf16_nearest,
    decode,
    decode_fp8,
    encode,
    encode_bf16,
    encode_blocks,
    encode_fp8,
    encode_fp8_nearest,
    encode_root_blocks,
    widen,
)
from signconv.runtime.kernel.memory import (
    decode_param,
    extent,
    fetch_moment,
    join_master,
    load,
    row_check,
    split_master,
    store_float,
    store_moment,
    store_param,
)
from signconv.runtime.kernel.random_bits import (
    draw_keys,
    high_field,
    low_field,
    mix32,
    random_bits,
    sign_noise,
    store_keys,
)
from signconv.runtime.kernel.reduce import (
    mean_of_sum,
    norm_of_sum,
    store_partial,
    tree_sum,
)
from signconv.runtime.kernel.roots import power
from signconv.runtime.kernel.scalars import (
    exp64,
    log64,
    power64,
    real_power64,
)

__all__ = [
    "bf16_nearest",
    "decode",
    "decode_fp8",
    "decode_param",
    "divide",
    "divided",
    "draw_keys",
    "encode",
    "encode_bf16",
    "encode_blocks",
    "encode_fp8",
    "encode_fp8_nearest",
    "encode_root_blocks",
    "exp64",
    "extent",
    "fetch_moment",
    "high_field",
    "join_master",
    "load",
    "log64",
    "low_field",
    "maximum",
    "mean_of_sum",
    "mean_ratio",
    "minimum",
    "mix32",
    "nonneg_maximum",
    "norm_of_sum",
    "power",
    "power64",
    "quotient",
    "random_bits",
    "ratio",
    "real_power64",
    "row_check",
    "sign",
    "sign_noise",
    "signed",
    "split_master",
    "sqrt",
    "store_float",
    "store_keys",
    "store_moment",
    "store_param",
    "store_partial",
    "tree_sum",
    "widen",
]
