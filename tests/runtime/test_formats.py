"""Format objects: every number that they state is what their encoders do, on every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton
from signconv.runtime.formats import BLOCK, FORMATS, HALVES, ROOT, ROOT_ORDERS, SCALED, Format
from signconv.runtime.kernel import codecs, constants
from signconv.runtime.kernel.launch import device_codec
from signconv.verification.bits import different

N = 64 * BLOCK
CODEC = tl.constexpr(device_codec(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
CODES_SCALED = tl.constexpr(SCALED)
CODES_PACKED, CODES_ROOT = tl.constexpr(HALVES), tl.constexpr(ROOT)
each = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))


def fields(seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(-(1 << 31), 1 << 31, (N,), generator=rng).to(torch.int32)


def values(fmt: Format, seed: int = 0) -> Tensor:
    """From 1/8 to 8, of 4 bits with a sign from 1 to 4, of whole numbers the upper half of what
    there is: normal numbers beside each other.

    Positive where the kernel takes what it stores to be: unsigned codes, and roots.
    """
    rng = torch.Generator().manual_seed(seed)
    first, binades = -3.0, 6.0
    if fmt.packed and fmt.signed:
        first, binades = 0.0, 2.0
    elif fmt.int8 is not None:
        first, binades = 0.0, 0.98
    x = 2.0 ** (first + binades * torch.rand(N, generator=rng))
    signs = torch.randint(0, 2, (N,), generator=rng) * 2.0 - 1.0 if fmt.signed else 1.0
    return x * signs


def round_trip(fmt: Format, x: Tensor, field: Tensor) -> Tensor:
    return fmt.decode(*fmt.encode(x, field))


def test_codes_and_names_are_those_of_one_format() -> None:
    assert all(name == f.name for name, f in FORMATS.items())
    codes = [f.code for f in FORMATS.values()]
    assert len(set(codes)) == len(codes)
    for f in FORMATS.values():
        assert f.scaled == (f.code >= SCALED), f.name
        assert (f.order > 1) == (f.code > ROOT) and f.order in (1, *ROOT_ORDERS), f.name
        assert f.code == ROOT + f.order or f.order == 1, f.name
        assert f.packed == (HALVES <= f.code < ROOT), f.name


def test_kernels_know_them_by_the_same_codes() -> None:
    known = {
        "fp32": constants.FP32, "bf16": constants.BF16, "e4m3-raw": constants.E4M3_RAW,
        "e4m3": constants.E4M3, "e5m3": constants.E5M3,
        "e6m2": constants.E6M2, "e2m1": constants.E2M1, "e4m0": constants.E4M0,
        "int8": constants.INT8,
    }  # fmt: skip
    assert known.keys() == {f.name for f in FORMATS.values() if f.order == 1}
    assert all(constant.value == FORMATS[name].code for name, constant in known.items())
    assert (constants.SCALED.value, constants.ROOT.value) == (SCALED, ROOT)


@each
def test_bytes_are_those_of_what_is_stored(fmt: Format) -> None:
    code, scale = fmt.encode(values(fmt), fields(1))
    assert code.dtype == fmt.dtype and code.shape == (N // 2 if fmt.packed else N,)
    assert (scale is not None) == fmt.scaled
    stored = code.numel() * code.element_size()
    if scale is not None:
        assert scale.dtype == torch.uint8 and scale.shape == (N // BLOCK,)
        stored += scale.numel()
    assert stored == fmt.bytes_per_element * N


@each
def test_a_round_trip_is_as_exact_as_the_mantissa_says(fmt: Format) -> None:
    """One gap of the mantissa, of the root where there is one; half a gap to nearest."""
    x = values(fmt)
    back = round_trip(fmt, x, fields(2))
    if fmt.rounding == "exact":
        assert different(back, x) == 0
        return
    unit = 2.0 ** -(fmt.mantissa + (fmt.rounding == "nearest"))
    error = float((back / x - 1).abs().max())
    assert 0.5 < error / ((1 + unit) ** fmt.order - 1) <= 1


@each
def test_what_was_stored_once_stays(fmt: Format) -> None:
    back = round_trip(fmt, values(fmt), fields(3))
    for seed in (4, 5):
        assert different(round_trip(fmt, back, fields(seed)), back) == 0
    zeros = torch.zeros(N)
    assert different(round_trip(fmt, zeros, fields(6)), zeros) == 0


@each
def test_random_bits_are_as_many_as_are_read(fmt: Format) -> None:
    """The lower ones of a field change nothing, the lowest that count does, somewhere."""
    assert (fmt.random_bits > 0) == (fmt.rounding == "stochastic")
    x, field = values(fmt), fields(7)
    code, _ = fmt.encode(x, field)
    below = torch.tensor((1 << (32 - fmt.random_bits)) - 1).to(torch.int32)
    for other in (field & ~below, field | below):
        assert different(fmt.encode(x, other)[0], code) == 0
    if fmt.random_bits:
        assert different(fmt.encode(x, ~field)[0], code) > N // 8


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.scaled])
def test_a_block_spans_the_binades_of_its_layout(name: str) -> None:
    """Beside a maximum of 1 the smallest normal number is exact; of a root, to the power of it."""
    fmt = FORMATS[name]
    if fmt.float4 is not None:  # from the largest number down to what has a whole mantissa
        binades = (fmt.float4.largest >> fmt.float4.mantissa) - 1
    elif fmt.int8 is not None:  # down to 1
        binades = -fmt.int8.headroom
    else:
        assert fmt.float8 is not None
        binades = fmt.float8.headroom + 127 - fmt.float8.smallest
    x = torch.full((N,), 2.0 ** -(binades * fmt.order))
    x[::BLOCK] = 1.0
    assert different(round_trip(fmt, x, fields(8)), x) == 0


@triton.jit
def _round_trip_kernel(
    x_ptr, field_ptr, code_ptr, byte_ptr, back_ptr, FORMAT: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.arange(0, ROWS)[:, None]
    offsets = row * 32 + tl.arange(0, 32)[None, :]
    field = tl.load(field_ptr + offsets).to(tl.uint32, bitcast=True)
    code, byte = codecs.encode(tl.load(x_ptr + offsets), field, FORMAT, CODEC)
    byte = byte.to(tl.uint8)
    if FORMAT >= CODES_PACKED and FORMAT < CODES_ROOT:
        tl.store(code_ptr + row * 16 + tl.arange(0, 16)[None, :], code)
    else:
        tl.store(code_ptr + offsets, code)
    if FORMAT >= CODES_SCALED:
        tl.store(byte_ptr + row, byte)
    tl.store(back_ptr + offsets, codecs.decode(code, byte, FORMAT, CODEC))


@each
def test_the_kernel_stores_the_same_codes(fmt: Format, device: str) -> None:
    x, field = values(fmt, 9), fields(10)
    code, scale = fmt.encode(x, field)
    made = torch.zeros_like(code, device=device)
    bytes_ = torch.zeros(N // BLOCK, dtype=torch.uint8, device=device)
    back = torch.zeros(N, device=device)
    _round_trip_kernel[(1,)](
        x.to(device), field.to(device), made, bytes_, back, fmt.code, N // BLOCK
    )
    assert different(made, code) == 0
    assert different(bytes_, torch.zeros(N // BLOCK) if scale is None else scale) == 0
    assert different(back, fmt.decode(code, scale)) == 0
