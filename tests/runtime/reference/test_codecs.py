"""FP8 and bf16 codes by integer arithmetic: exact decoding, rounding, block scales, storage.
(Moments stored as roots: test_roots.py.)

What to compare with comes from elsewhere: torch's float8 dtypes, or sums over all 65,536 random
halves.  Where a test samples, its docstring says why its threshold is right; seeds are fixed.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton
from signconv.runtime.formats import BLOCK, FORMATS, LEAST_SCALE, Format
from signconv.runtime.kernel import ops as dev
from signconv.runtime.kernel.constants import E5M3, E6M2
from signconv.runtime.kernel.launch import device_codec
from signconv.runtime.reference import ops as ref
from signconv.verification.bits import different

Rows = Callable[[int], int]

FP8 = ("e4m3", "e5m3", "e6m2")
SIGNED = ("e4m3", "e5m2")
#: Formats that a kernel encodes and decodes.
STORED = ("e4m3", "e4m3-raw", "e5m3", "e6m2")
TORCH_DTYPE = {
    "e4m3": torch.float8_e4m3fn,
    "e4m3-raw": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "e5m3": 61440.0, "e6m2": 7.0}
LARGEST_CODE = {"e4m3": 0x7E, "e5m2": 0x7B, "e5m3": 0xF7, "e6m2": 0xFB}
#: Bits of the magnitude, and of the block's maximum its code with mantissa 0.
SIZE = {"e4m3": 0x7F, "e5m3": 0xFF, "e6m2": 0xFF}
TOP = {"e4m3": 0x70, "e5m3": 0xE8, "e6m2": 0xF4}
MANTISSA = {"e4m3": 3, "e5m3": 3, "e6m2": 2}
SMALLEST_NORMAL = {"e4m3": 2.0**-6, "e5m2": 2.0**-14, "e5m3": 2.0**-14, "e6m2": 2.0**-60}
LARGEST_FLOAT = torch.finfo(torch.float32).max
UNIT = torch.tensor(127)  # the byte of scale 1
ALL_HALVES = torch.arange(1 << 16, dtype=torch.int32)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def magnitudes(fmt: str) -> Tensor:
    """The finite values >= 0 of a format, by code, as torch's own dtype has them: E5M3 has the bits
    of an fp16 below its sign, E6M2 is ((1 + m/4) * 2^e - 1) * 2^-60."""
    if fmt == "e2m1":  # OCP MXFP4's, times 2^-14
        return torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) * 2.0**-14
    if fmt == "int8":
        return torch.arange(128, dtype=torch.float32)
    if fmt == "e4m0":
        return torch.tensor([0.0, *(2.0**k for k in range(-14, 0))])
    codes = torch.arange(LARGEST_CODE[fmt] + 1, dtype=torch.uint8)
    if fmt == "e5m3":
        return (codes.to(torch.int16) << 7).view(torch.float16).to(torch.float32)
    if fmt == "e6m2":
        values = [((1 + c % 4 / 4) * 2.0 ** (c // 4) - 1) * 2.0**-60 for c in codes.tolist()]
        return torch.tensor(values, dtype=torch.float64).to(torch.float32)
    return codes.view(TORCH_DTYPE[fmt]).to(torch.float32)


def signed(x: Tensor, fmt: str) -> Tensor:
    """Magnitudes where the format has no sign."""
    return x if fmt.removesuffix("-raw") in SIGNED else x.abs()


def boundaries(fmt: str) -> Tensor:
    """Every value and every midpoint between two values, with its float neighbours; both signs
    where there are two."""
    values = magnitudes(fmt)
    points = torch.cat([values, (values[1:] + values[:-1]) / 2])  # exact in fp32
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    points = torch.cat([points, torch.nextafter(points, up), torch.nextafter(points, down)])
    points = points[(points >= 0) & (points <= LARGEST[fmt])]
    return torch.cat([points, -points]) if fmt in SIGNED else points


def spread(fmt: str, n: int, seed: int) -> Tensor:
    """Random bits in all binades in which the format rounds: from 2^-8 of its smallest value up."""
    low = int(torch.frexp(torch.tensor(magnitudes(fmt)[1].item()))[1]) + 126 - 8
    high = int(torch.frexp(torch.tensor(LARGEST[fmt]))[1]) + 126
    exponent = torch.randint(low, high + 1, (n,), generator=rng(seed), dtype=torch.int32)
    rest = torch.randint(0, 1 << 24, (n,), generator=rng(seed + 1), dtype=torch.int32)
    x = ((exponent << 23) | (rest & 0x7FFFFF) | ((rest >> 23) << 31)).view(torch.float32)
    return signed(x.clamp(-LARGEST[fmt], LARGEST[fmt]), fmt)


def field(half: Tensor) -> Tensor:
    """The field whose upper 16 bits are ``half``, in the middle of what may follow."""
    return (half << 16) | 0x8000


def random_fields(n: int, seed: int) -> Tensor:
    bits = torch.randint(-(1 << 31), 1 << 31, (n,), generator=rng(seed), dtype=torch.int64)
    return bits.to(torch.int32)


def over_all_halves(x: Tensor, encode: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Codes [len(x), 65536] of every x with every upper half of the field."""
    many = x[:, None].expand(-1, 1 << 16).reshape(-1)
    halves = ALL_HALVES[None, :].expand(len(x), -1).reshape(-1)
    return encode(many, field(halves)).view(len(x), -1)


# ---------------------------------------------------------------- kernels around the Triton half

#: The codec that a step of this machine runs: on an NVIDIA GPU that in PTX.
CODEC = tl.constexpr(device_codec(torch.device("cuda" if torch.cuda.is_available() else "cpu")))


@triton.jit
def _decode_kernel(code_ptr, x_ptr, n, FORMAT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(code_ptr + i, mask=i < n, other=0)
    tl.store(x_ptr + i, dev.decode_fp8(code, FORMAT, CODEC), mask=i < n)


@triton.jit
def _encode_kernel(x_ptr, field_ptr, code_ptr, n, FORMAT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    field = tl.load(field_ptr + i, mask=i < n, other=0).to(tl.uint32, bitcast=True)
    scale = 0.125 if FORMAT == E6M2 else 7.52316384526264e-37
    scale = 1.925929944387236e-34 if FORMAT == E5M3 else scale
    code = dev.encode_fp8(x, scale, field, FORMAT, CODEC)
    tl.store(code_ptr + i, code, mask=i < n)


@triton.jit
def _nearest_kernel(x_ptr, code_ptr, n, FORMAT: tl.constexpr, BLOCK: tl.constexpr):  # E4M3
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    tl.store(code_ptr + i, dev.encode_fp8_nearest(x), mask=i < n)


@triton.jit
def _store_kernel(
    x_ptr, field_ptr, code_ptr, scale_ptr, n,
    FORMAT: tl.constexpr, ROWS: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * (ROWS * 32)
    at = dev.places(start, n, n, n, ROWS, False, False)
    first, offsets, mask, row, row_mask, halves, half_mask, _ = at
    x = dev.widen(dev.load(x_ptr + start, offsets, mask, FULL), CODEC)
    field = tl.load(field_ptr + start + offsets, mask=mask, other=0).to(tl.uint32, bitcast=True)
    dev.store_moment(
        code_ptr, scale_ptr, first, offsets, x, field, mask, row, row_mask, halves, half_mask,
        FORMAT, FULL, CODEC,
    )  # fmt: skip


@triton.jit
def _load_kernel(
    code_ptr, scale_ptr, x_ptr, n, FORMAT: tl.constexpr, ROWS: tl.constexpr, FULL: tl.constexpr
):
    start = tl.program_id(0).to(tl.int64) * (ROWS * 32)
    at = dev.places(start, n, n, n, ROWS, False, False)
    first, offsets, mask, row, row_mask, halves, half_mask, _ = at
    code, byte = dev.fetch_moment(
        code_ptr, scale_ptr, first, offsets, mask, row, row_mask, halves, half_mask, FORMAT, FULL
    )
    x = dev.decode(code, byte, FORMAT, CODEC)
    tl.store(x_ptr + start + offsets, x, mask=mask)


@triton.jit
def _param_kernel(in_ptr, field_ptr, out_ptr, n, ROWS: tl.constexpr, FULL: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * (ROWS * 32)
    offsets = tl.arange(0, ROWS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    mask = offsets < n - start
    x = dev.widen(dev.load(in_ptr + start, offsets, mask, FULL), CODEC)
    field = tl.load(field_ptr + start + offsets, mask=mask, other=0).to(tl.uint32, bitcast=True)
    dev.store_float(out_ptr + start, offsets, x, field, mask, FULL, CODEC)


def elementwise(kernel, out: Tensor, *args: Tensor, fmt: str, rows: Rows, device: str) -> Tensor:
    """Run one of the flat kernels and bring the result back."""
    n = out.numel()
    block = 32 * rows(n)
    placed = out.to(device)
    grid = (-(-n // block),)
    kernel[grid](*(a.to(device) for a in args), placed, n, FORMATS[fmt].code, block)
    return placed.cpu()


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("fmt", TORCH_DTYPE)
def test_every_code_decodes_as_torchs_dtype(fmt: str) -> None:
    """Exact, all 256 codes, E5M2's Inf included, which no encoder here ever writes."""
    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(TORCH_DTYPE[fmt]).to(torch.float32)
    assert different(ref.decode_fp8(codes, fmt), theirs) == 0


@pytest.mark.parametrize("fmt", ["e5m3", "e6m2"])
def test_every_unsigned_code_decodes_as_its_definition(fmt: str) -> None:
    values = magnitudes(fmt)
    got = ref.decode_fp8(torch.arange(256, dtype=torch.uint8), fmt)
    assert different(got[: len(values)], values) == 0
    assert bool(got[len(values) :].isnan().all())
    assert bool((values[1:] > values[:-1]).all())


@pytest.mark.parametrize("fmt", STORED)
def test_kernel_decodes_every_code_alike(fmt: str, device: str, tile_rows: Rows) -> None:
    """Of unsigned codes between the largest number and NaN, which no encoder writes, the first is
    Inf in kernels and NaN in the reference."""
    codes = torch.arange(256, dtype=torch.uint8)
    out = torch.empty(256)
    got = elementwise(_decode_kernel, out, codes, fmt=fmt, rows=tile_rows, device=device)
    if fmt not in TORCH_DTYPE:
        never = LARGEST_CODE[fmt] + 1
        assert got[never] == torch.inf
        got[never] = torch.nan
    assert different(got, ref.decode_fp8(codes, fmt)) == 0


# ---------------------------------------------------------------- nearest encoding


@pytest.mark.parametrize("fmt", SIGNED)
def test_nearest_equals_torch_at_every_boundary(fmt: str) -> None:
    """A monotone encoder that agrees at each midpoint and both its neighbours agrees everywhere.

    Only up to the largest value: beyond it torch saturates or not, by version and dtype.
    """
    x = boundaries(fmt)
    theirs = x.to(TORCH_DTYPE[fmt]).view(torch.uint8)
    assert torch.equal(ref.encode_fp8_nearest(x, fmt), theirs)


@pytest.mark.parametrize("fmt", SIGNED)
def test_nearest_equals_torch_on_random_bits(fmt: str) -> None:
    """10^7 values in every binade that rounds: a fault on one value in 10^6 escapes with e^-10."""
    x = spread(fmt, 10**7, seed=1)
    theirs = x.to(TORCH_DTYPE[fmt]).view(torch.uint8)
    assert torch.equal(ref.encode_fp8_nearest(x, fmt), theirs)


@pytest.mark.parametrize("fmt", SIGNED)
def test_nearest_saturates_and_stores_nan(fmt: str) -> None:
    most = LARGEST[fmt]
    x = torch.tensor([most * 1.0001, most * 1.07, most * 2, 1e30, LARGEST_FLOAT])
    for sign, bit in ((1, 0), (-1, 0x80)):
        assert set(ref.encode_fp8_nearest(sign * x, fmt).tolist()) == {LARGEST_CODE[fmt] | bit}
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan])
    assert (ref.encode_fp8_nearest(special, fmt) & 0x7F).tolist() == [0x7F] * 4


def test_kernel_encodes_nearest_alike(device: str, tile_rows: Rows) -> None:
    fmt = "e4m3"
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, LARGEST_FLOAT, -1e5, 1e-45])
    x = torch.cat([boundaries(fmt), special, spread(fmt, 100_000, seed=2)])
    out = torch.empty(x.shape, dtype=torch.uint8)
    got = elementwise(_nearest_kernel, out, x, fmt=fmt, rows=tile_rows, device=device)
    assert torch.equal(got, ref.encode_fp8_nearest(x, fmt))


# ---------------------------------------------------------------- stochastic encoding


@pytest.mark.parametrize("fmt", FP8)
def test_only_the_two_neighbours_occur(fmt: str) -> None:
    """10^6 values with random fields, and every boundary with the two extreme fields."""
    edge = boundaries(fmt)
    x = torch.cat([spread(fmt, 10**6, seed=3), edge, edge])
    low, high = torch.zeros(len(edge)), torch.full((len(edge),), -1)
    fields = torch.cat([random_fields(10**6, seed=4), low.int(), high.int()])
    table = magnitudes(fmt)
    below = torch.searchsorted(table, x.abs(), right=True) - 1
    above = below + (table[below] < x.abs())
    code = ref.encode_fp8(x, UNIT, fields, fmt).to(torch.int64)
    if fmt in SIGNED:
        assert torch.equal(code >> 7, (x.view(torch.int32) < 0).to(torch.int64))
        code = code & 0x7F
    assert bool(((code == below) | (code == above)).all())
    assert bool((code == below).any()) and bool((code > below).any())


@pytest.mark.parametrize("fmt", FP8)
def test_representable_values_never_move(fmt: str) -> None:
    """Exact: every finite code with all 65,536 halves."""
    for first in range(0, LARGEST_CODE[fmt] + 1, 16):
        codes = torch.arange(first, min(first + 16, LARGEST_CODE[fmt] + 1), dtype=torch.uint8)
        codes = torch.cat([codes, codes | 0x80]) if fmt in SIGNED else codes
        x = ref.decode_fp8(codes, fmt)
        got = over_all_halves(x, lambda x, f: ref.encode_fp8(x, UNIT, f, fmt))
        assert bool((got == codes[:, None]).all())


def mean_bound(x: Tensor, fmt: str) -> Tensor:
    """How far the mean over all halves may lie from x.

    With fraction f of the gap between its neighbours, x is rounded up by the halves h for which
    (h + 1/2)/2^16 + f >= 1: floor(2^16 f + 1/2) of 2^16.  That probability is within 2^-17 of f,
    so the mean is within 2^-17 of the gap.  Below the smallest normal s, x is first added to s in
    fp32, which moves it by at most half an ulp of s, 2^-24 s; E6M2 adds s everywhere.
    """
    table = magnitudes(fmt).to(torch.float64)
    below = torch.searchsorted(table, x.abs().to(torch.float64), right=True) - 1
    gap = (table[1:] - table[:-1])[below.clamp(max=len(table) - 2)]
    smallest = SMALLEST_NORMAL[fmt]
    lift = torch.where(x.abs() < smallest, 2.0**-24 * smallest, 0.0)
    if fmt == "e6m2":  # once more when 2^-60 is taken off again
        lift = 2.0**-23 * (x.to(torch.float64) + smallest)
    return 2.0**-17 * gap + lift


@pytest.mark.parametrize("kind", ["all binades", "subnormal"])
@pytest.mark.parametrize("fmt", FP8)
def test_mean_over_all_halves_is_the_value(fmt: str, kind: str) -> None:
    """Exact sums, so no false alarms; a truncated field is off by up to twice the bound."""
    if kind == "subnormal":
        x = torch.rand(128, generator=rng(5)) * SMALLEST_NORMAL[fmt]
        x[:64] *= -1 if fmt in SIGNED else 1
    else:
        x = spread(fmt, 256, seed=6)
    codes = over_all_halves(x, lambda x, f: ref.encode_fp8(x, UNIT, f, fmt))
    mean = ref.decode_fp8(codes.view(-1), fmt).view(len(x), -1).to(torch.float64).mean(dim=1)
    error = (mean - x.to(torch.float64)).abs()
    bound = mean_bound(x, fmt)
    worst = int((error - bound).argmax())
    assert bool((error <= bound).all()), (x[worst], error[worst], bound[worst])
    assert float((error / bound).max()) > 0.5  # the bound is not idle


@pytest.mark.parametrize("fmt", FP8)
def test_overflow_saturates_and_special_values_store_nan(fmt: str) -> None:
    most = LARGEST[fmt]
    x = torch.tensor([most, most * 1.01, most * 1.2, most * 3, 1e30, LARGEST_FLOAT])
    for each in (0, 0x7FFFFFFF, -1):
        h = torch.full(x.shape, each, dtype=torch.int32)
        assert set(ref.encode_fp8(x, UNIT, h, fmt).tolist()) == {LARGEST_CODE[fmt]}
        if fmt in SIGNED:
            assert set(ref.encode_fp8(-x, UNIT, h, fmt).tolist()) == {LARGEST_CODE[fmt] | 0x80}
        special = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan])
        assert bool(ref.decode_fp8(ref.encode_fp8(special, UNIT, h[:4], fmt), fmt).isnan().all())


@pytest.mark.parametrize("fmt", STORED)
def test_kernel_encodes_stochastically_alike(fmt: str, device: str, tile_rows: Rows) -> None:
    """Where the kernel's own encoder is defined: no overflow, and no sign where there is none."""
    edge = boundaries(fmt.removesuffix("-raw"))
    x = torch.cat([edge, edge, spread(fmt.removesuffix("-raw"), 100_000, seed=7)])
    fields = random_fields(len(x), seed=8)
    fields[: len(edge)] = -1
    fields[len(edge) : 2 * len(edge)] = 0
    out = torch.empty(x.shape, dtype=torch.uint8)
    got = elementwise(_encode_kernel, out, x, fields, fmt=fmt, rows=tile_rows, device=device)
    assert torch.equal(got, ref.encode_fp8(x, UNIT, fields, fmt))


# ---------------------------------------------------------------- bf16


def bf16_values() -> Tensor:
    """Random bits of both signs, subnormals and the extremes, all finite."""
    bits = torch.randint(-(1 << 31), 1 << 31, (200,), generator=rng(9), dtype=torch.int64)
    x = bits.to(torch.int32).view(torch.float32)
    tiny = torch.randint(1, 1 << 23, (40,), generator=rng(10), dtype=torch.int32)
    tiny = tiny.view(torch.float32)
    return torch.cat([x[x.isfinite() & (x.abs() < 3e38)], tiny, -tiny, torch.zeros(1)])


def test_bf16_mean_over_all_halves_is_exactly_the_value() -> None:
    """Exact: 16 random bits are all the bits that are dropped; sums relative to x are exact."""
    x = bf16_values()
    got = ref.decode_bf16(over_all_halves(x, ref.encode_bf16))
    step = (got.to(torch.float64) - x[:, None].to(torch.float64)).sum(dim=1)
    assert bool((step == 0).all())
    two = torch.stack([got.amin(dim=1), got.amax(dim=1)], dim=1)
    assert bool(((got == two[:, :1]) | (got == two[:, 1:])).all())
    codes = two.abs().view(torch.int32) >> 16
    assert bool(((codes[:, 0] - codes[:, 1]).abs() <= 1).all())


def test_bf16_values_never_move_and_special_values_stay() -> None:
    """Every one of the 65,536 bf16 patterns, with the extreme and two middle halves."""
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    value = patterns.view(torch.bfloat16)
    for half in (0, 1, 0x8000, 0xFFFF):
        h = torch.full(value.shape, half, dtype=torch.int32)
        assert different(ref.encode_bf16(ref.decode_bf16(value), h), value) == 0
        most = torch.tensor([LARGEST_FLOAT, -LARGEST_FLOAT])
        top = torch.finfo(torch.bfloat16).max
        assert ref.encode_bf16(most, h[:2]).tolist() == [top, -top]


def test_bf16_decodes_as_torch() -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    value = patterns.view(torch.bfloat16)
    assert different(ref.decode_bf16(value), value.to(torch.float32)) == 0


def test_bf16_nearest_equals_torch() -> None:
    """Exact: every bf16 pattern, with the dropped half at both ends and around the midpoint."""
    upper = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | lower).view(torch.float32)
        assert different(ref.bf16_nearest(x), x.to(torch.bfloat16).to(torch.float32)) == 0


# ---------------------------------------------------------------- block scales


def decades(n: int, seed: int) -> Tensor:
    """Normal values over six decades inside every block."""
    scale = 10.0 ** (-6 * torch.rand(n, generator=rng(seed)))
    return torch.randn(n, generator=rng(seed + 1)) * scale


@pytest.mark.parametrize("fmt", FP8)
def test_headroom_is_one_binade(fmt: str) -> None:
    """Every exponent of the block's maximum, mantissas all zeros and all ones, any rounding.

    The maximum lands in the binade below the format's last one, or is rounded up to its end: it
    never saturates (headroom), and no binade is wasted.
    """
    exponent = torch.arange(0, 255, dtype=torch.int32).repeat(2)
    mantissa = torch.tensor([0, 0x7FFFFF], dtype=torch.int32).repeat_interleave(255)
    largest = ((exponent << 23) | mantissa).view(torch.float32)
    x = (decades(510 * 32, seed=11).view(510, 32).clamp(-1, 1) * largest[:, None]).view(-1)
    x = signed(x, fmt)
    x[::32] = largest
    byte = ref.block_scale(x, fmt)
    assert int(byte.min()) == LEAST_SCALE and int(byte.max()) < 255
    for half in (0, 0xFFFF):
        h = torch.full(x.shape, half, dtype=torch.int32)
        code = torch.empty(x.shape, dtype=torch.uint8)
        scale = torch.empty(510, dtype=torch.uint8)
        ref.store_moment(code, scale, x, h, FORMATS[fmt])
        assert torch.equal(scale, byte.to(torch.uint8))
        end = TOP[fmt] + (1 << MANTISSA[fmt])
        assert int((code & SIZE[fmt]).max()) <= end < LARGEST_CODE[fmt]
        headroom = {"e4m3": 7, "e5m3": 14, "e6m2": 1}[fmt]
        clear = exponent >= headroom + LEAST_SCALE  # below, the scale stays at 2^-120
        assert int((code[::32] & SIZE[fmt])[clear].min()) == TOP[fmt]
        assert bool(ref.load_moment(code, scale, FORMATS[fmt]).isfinite().all())


@pytest.mark.parametrize("fmt", FP8)
def test_blocks_of_zeros_and_of_special_values(fmt: str) -> None:
    """The scale comes from the finite values; a non-finite element harms itself alone."""
    nan, inf = torch.nan, torch.inf
    plain = signed(torch.randn(32, generator=rng(12)).clamp(-2, 2), fmt)
    plain[0] = 3.0
    rows = plain.repeat(7, 1)
    rows[0], rows[1], rows[2, 5], rows[3, 5], rows[4] = 0.0, nan, inf, nan, -0.0
    rows[5] = inf
    rows[6, :16], rows[6, 16:] = inf, nan
    rows[6, 7] = 3.0
    byte = ref.block_scale(rows.view(-1), fmt)
    common = int(ref.block_scale(plain, fmt))
    least = LEAST_SCALE
    assert byte.tolist() == [least, least, common, common, least, least, common]
    code = torch.empty(7 * 32, dtype=torch.uint8)
    scale = torch.empty(7, dtype=torch.uint8)
    fields = random_fields(32, seed=13)
    ref.store_moment(code, scale, rows.view(-1), fields.repeat(7), FORMATS[fmt])
    back = ref.load_moment(code, scale, FORMATS[fmt]).view(7, 32)
    assert torch.equal(back.isnan(), ~rows.isfinite())
    assert bool((back[0] == 0).all()) and different(back[4], signed(rows[4], fmt)) == 0
    alone = torch.empty(32, dtype=torch.uint8)
    ref.store_moment(alone, scale[:1].clone(), plain, fields, FORMATS[fmt])
    others = torch.arange(32) != 5
    for damaged in (2, 3):
        assert torch.equal(code.view(7, 32)[damaged][others], alone[others])


@pytest.mark.parametrize("fmt", FP8)
def test_blocks_of_subnormal_floats(fmt: str) -> None:
    """The smallest scale, 2^-120, times the smallest code is still a float: nothing underflows."""
    step = max(2.0**-120 * float(magnitudes(fmt)[1]), 2.0**-149)
    x = torch.arange(64, dtype=torch.float64) * step * 0.9
    x = torch.cat([x, x + 2.0**-127]).to(torch.float32)
    code = torch.empty(x.shape, dtype=torch.uint8)
    scale = torch.empty(4, dtype=torch.uint8)
    for each in (0, 0x7FFFFFFF, -1):
        h = torch.full(x.shape, each, dtype=torch.int32)
        ref.store_moment(code, scale, x, h, FORMATS[fmt])
        assert scale.tolist() == [LEAST_SCALE] * 4
        back = ref.load_moment(code, scale, FORMATS[fmt])
        limit = (x.abs() * 2.0 ** -MANTISSA[fmt]).clamp(min=step)
        assert bool(((back - x).abs() <= limit).all())
        assert float(back.abs().max()) > 0


@pytest.mark.parametrize("fmt", FP8)
def test_scale_equivariance(fmt: str) -> None:
    """Exact: times 2^k, codes stay and scale bytes shift by k, from 2^60 down to below 1e-30."""
    x = signed(decades(256, seed=14), fmt)
    fields = random_fields(256, seed=15)
    code = torch.empty(256, dtype=torch.uint8)
    scale = torch.empty(8, dtype=torch.uint8)
    ref.store_moment(code, scale, x, fields, FORMATS[fmt])
    assert len(code.unique()) > (60 if MANTISSA[fmt] == 3 else 40)
    for k in range(-100, 61):
        other, other_scale = torch.empty_like(code), torch.empty_like(scale)
        ref.store_moment(other, other_scale, x * 2.0**k, fields, FORMATS[fmt])
        assert torch.equal(other, code), k
        assert torch.equal(other_scale.int(), scale.int() + k), k
        back = ref.load_moment(other, other_scale, FORMATS[fmt])
        assert torch.equal(back * 2.0**-k, ref.load_moment(code, scale, FORMATS[fmt])), k


# ---------------------------------------------------------------- storage


def empty_storage(n: int, fmt: Format) -> tuple[Tensor, Tensor | None]:
    scale = torch.zeros(n // 32, dtype=torch.uint8) if fmt.scaled else None
    return torch.zeros(n // 2 if fmt.packed else n, dtype=fmt.dtype), scale


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.order == 1])
def test_round_trip_keeps_the_precision_of_the_format(name: str) -> None:
    """Exact bounds: one gap of the format, relative to the value or to the block's maximum; half
    a gap for raw codes, which are rounded to nearest.

    The change in magnitude has a z-score within 5 (false alarms 6e-7); cut off, it is -66.
    """
    fmt = FORMATS[name]
    x = decades(1 << 16, seed=16)
    x = x if fmt.signed else x.abs()
    stored, scale = empty_storage(len(x), fmt)
    ref.store_moment(stored, scale, x, random_fields(len(x), seed=17), fmt)
    back = ref.load_moment(stored, scale, fmt)
    if name == "fp32":
        assert torch.equal(back, x)
        return
    relative = 2.0 ** -(fmt.mantissa + (fmt.rounding == "nearest"))
    limit = x.abs() * relative
    if name != "bf16":
        smallest = float(magnitudes(name.removesuffix("-raw"))[1]) / (1 if fmt.scaled else 2)
        unit = torch.ones(len(x) // 32) if scale is None else 2.0 ** (scale.float() - 127)
        limit = torch.maximum(limit, smallest * unit.repeat_interleave(32))
    error = (back - x).abs()
    assert bool((error <= limit).all())
    assert float((error / limit).max()) > 0.9
    longer = (back.abs() - x.abs()).to(torch.float64)
    if name != "e4m3-raw":
        assert abs(float(longer.sum() / longer.square().sum().sqrt())) < 5


@pytest.mark.parametrize("fmt", FP8)
def test_decoded_blocks_are_stored_as_they_were(fmt: str) -> None:
    """Exact: a load and a store with any rounding change neither codes nor scales."""
    end = TOP[fmt] + (1 << MANTISSA[fmt])
    code = torch.randint(0, end, (64 * 32,), generator=rng(18), dtype=torch.int32)
    code[::32] = torch.arange(64, dtype=torch.int32) % 4 + TOP[fmt]
    if fmt in SIGNED:
        code = code | (random_fields(64 * 32, seed=19) & 0x80)
    code = code.to(torch.uint8)
    scale = torch.arange(60, 124, dtype=torch.int32).to(torch.uint8)
    x = ref.load_moment(code, scale, FORMATS[fmt])
    for each in (0, 0x7FFFFFFF, -1):
        again, again_scale = torch.empty_like(code), torch.empty_like(scale)
        h = torch.full(x.shape, each, dtype=torch.int32)
        ref.store_moment(again, again_scale, x, h, FORMATS[fmt])
        assert torch.equal(again, code) and torch.equal(again_scale, scale)


def test_fresh_state_is_zero() -> None:
    """State starts as zero bytes, scales included; they must decode to +0, not to NaN."""
    for fmt in FORMATS.values():
        stored, scale = empty_storage(64, fmt)
        assert different(ref.load_moment(stored, scale, fmt), torch.zeros(64)) == 0


def hard_values(n: int) -> Tensor:
    """Six decades with zeros, Inf, NaN, subnormals and blocks that hold nothing else."""
    x = decades(n, seed=20)
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-39, LARGEST_FLOAT, 448.0, 1e5]
    )
    place = torch.randint(0, n, (n // 16,), generator=rng(21))
    x[place] = special.repeat(-(-len(place) // len(special)))[: len(place)]
    x[32:64], x[64:96], x[96:128] = 0.0, torch.nan, -torch.inf
    x[128:160] = torch.arange(32) * 1e-45
    x[160:192] *= LARGEST_FLOAT / 8
    # Whole numbers end at 127: the scale of the first block is the next one's half
    x[192:224].clamp_(-1, 1)[7] = 127.0
    x[224:256].clamp_(-1, 1)[7] = -127.0 * (1 + 2.0**-23)
    return x


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy, on Inf and NaN
@pytest.mark.parametrize("hard", [True, False], ids=["all numbers", "ordinary ones"])
@pytest.mark.parametrize("full", [True, False], ids=["full tiles", "masked"])
@pytest.mark.parametrize("name", FORMATS)
def test_kernel_stores_and_loads_alike(
    name: str, full: bool, hard: bool, device: str, tile_rows: Rows
) -> None:
    """What is not finite or has no scale takes a branch of its own, with all of its tile."""
    fmt = FORMATS[name]
    n = 4096 if full else 4096 - 64 - (0 if fmt.scaled else 13)
    x, fields = hard_values(n), random_fields(n, seed=22)
    x = x if hard else torch.where(x.abs() < 2.0**100, x, 0.0)
    if not fmt.signed:
        x = torch.where(x.isnan(), x, x.abs())  # holds what is never negative; a NaN has any sign
    stored, scale = empty_storage(n, fmt)
    ref.store_moment(stored, scale, x, fields, fmt)
    back = ref.load_moment(stored, scale, fmt)

    rows = tile_rows(n)
    grid = (-(-n // (32 * rows)),)
    # Room behind the end, to see that a masked store leaves it alone
    room = torch.full((stored.nbytes + 64,), 0xAA, dtype=torch.uint8, device=device)
    scales = torch.full((n // 32 + 4,), 0xAA, dtype=torch.uint8, device=device)
    _store_kernel[grid](x.to(device), fields.to(device), room, scales, n, fmt.code, rows, full)
    size = stored.nbytes
    kernel_stored = room[:size].cpu().view(fmt.dtype)
    assert different(kernel_stored, stored) == 0
    assert bool((room[size:] == 0xAA).all())
    used = 0
    if scale is not None:
        used = len(scale)
        assert torch.equal(scales[:used].cpu(), scale)
    assert bool((scales[used:] == 0xAA).all())

    got = torch.full((n + 64,), 7.0, device=device)
    _load_kernel[grid](room, scales, got, n, fmt.code, rows, full)
    assert different(got[:n], back) == 0
    assert bool((got[n:] == 7.0).all())


@pytest.mark.parametrize("full", [True, False], ids=["full tiles", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_kernel_reads_and_writes_parameters_alike(
    dtype: torch.dtype, full: bool, device: str, tile_rows: Rows
) -> None:
    """fp32 to fp32 and to bf16, bf16 to bf16; the first is a copy."""
    n = 4096 if full else 4001
    x, fields = hard_values(n), random_fields(n, seed=23)
    for source in {torch.float32, dtype}:
        given = x.to(source)
        expected = torch.empty(n, dtype=dtype)
        ref.store_float(expected, ref.load_float(given), fields)
        if source == dtype:
            assert different(expected, given) == 0
        rows = tile_rows(n)
        out = torch.full((n + 64,), 7.0, dtype=dtype, device=device)
        _param_kernel[(-(-n // (32 * rows)),)](
            given.to(device), fields.to(device), out, n, rows, full
        )
        assert different(out[:n], expected) == 0
        assert bool((out[n:] == 7.0).all())


@pytest.mark.parametrize("fmt", [*FP8, "int8", "e2m1", "e4m0"])
def test_a_coefficient_may_take_the_scale(fmt: str) -> None:
    """(coefficient * scale) * code is coefficient * (scale * code), in a product and in a sum, for
    every code in every block that an encoder writes: not one coefficient from 2^-6 rounds."""
    form = FORMATS[fmt]
    layout = form.float4 or form.int8
    least = layout.least if layout else LEAST_SCALE
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    if not form.packed:
        codes = codes[form.codec.codes(codes).isfinite()]
    codes = codes[: len(codes) // BLOCK * BLOCK].repeat(255 - least)
    numel = codes.numel() * (2 if form.packed else 1)
    bytes_ = torch.arange(least, 255, dtype=torch.int32).to(torch.uint8)
    scale = bytes_.repeat_interleave(numel // BLOCK // len(bytes_))
    code, factor = ref.load_apart(codes, scale, form, numel)
    whole = ref.load_moment(codes, scale, form, numel)
    written = whole.isfinite()  # no encoder writes what overflows
    if fmt == "e6m2":  # and this one reaches below fp32
        written &= (whole > 2.0**-126) | (code == 0)
    code, factor, whole = code[written], factor[written], whole[written]
    addend = torch.randn(len(whole), generator=rng(31)) * whole.abs()
    for number in (0.0, 2.0**-6, 0.1, 0.9, 0.999, 1 - 2.0**-24, 1.0, 0.5000000596046448):
        c = torch.tensor(number)
        assert different(c * factor * code, c * whole) == 0, number
        assert different(ref.fma(c * factor, code, addend), ref.fma(c, whole, addend)) == 0, number
