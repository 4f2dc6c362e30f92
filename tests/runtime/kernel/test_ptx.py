"""The codecs in PTX, run instruction by instruction without a GPU, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from signconv.runtime.formats import FORMATS
from signconv.runtime.kernel import ptx, ptx4
from signconv.runtime.reference import ops as ref
from signconv.verification.bits import different
from tests.support.ptx import assemblies, run

SOURCE = Path(ptx.__file__).read_text(encoding="utf-8")
ASSEMBLY = assemblies(SOURCE) | assemblies(Path(ptx4.__file__).read_text(encoding="utf-8"))
N = 1 << 16


def words(x: Tensor) -> np.ndarray:
    """The 32 bits of each element."""
    return x.contiguous().view(torch.int32).numpy().view(np.uint32)


def split(x: Tensor, pack: int) -> list[np.ndarray]:
    """Elements of 32 bits as a thread has them: ``pack`` registers."""
    return list(words(x).reshape(-1, pack).T)


def packed(codes: Tensor, size: int) -> np.ndarray:
    """Elements of ``size`` bytes, 4 / size in a register."""
    return codes.contiguous().view(torch.uint8).numpy().reshape(-1, 4).copy().view(np.uint32)[:, 0]


def floats(registers: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(registers, axis=1).reshape(-1).view(np.float32).copy())


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fields(n: int, seed: int) -> Tensor:
    bits = torch.randint(-(1 << 31), 1 << 31, (n,), generator=rng(seed), dtype=torch.int64)
    bits[: n // 4], bits[n // 4 : n // 2] = -1, 0
    return bits.to(torch.int32)


#: Format: what a block's scale is multiplied with (signconv/runtime/kernel/codecs.py).
BIAS = {"e4m3": 2.0**-120, "e5m3": 2.0**-112, "e6m2": 2.0**-3}
LARGEST = {"e4m3": 448.0, "e5m3": 61440.0, "e6m2": 7.0}
formats = pytest.mark.parametrize("fmt", BIAS)


@formats
def test_decoding(fmt: str) -> None:
    """Every code, NaN among them."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    known = ref.decode_fp8(codes, fmt)
    if fmt != "e4m3":  # what no encoder writes, between the largest number and NaN
        codes = codes[known.isfinite() | (codes == 0xFF)]
        codes = codes[: len(codes) // 4 * 4] if len(codes) % 4 else codes
    got = run(ASSEMBLY[f"decode_{fmt}"], packed(codes, 1))
    assert different(floats(got), ref.decode_fp8(codes, fmt)) == 0
    last = torch.tensor([0xFF, 0, 1, 0xFF], dtype=torch.uint8)
    got = run(ASSEMBLY[f"decode_{fmt}"], packed(last, 1))
    assert floats(got).isnan().tolist() == [True, False, False, True]


@formats
def test_encoding(fmt: str) -> None:
    """Values of all binades that round, with extreme and with random fields."""
    exponent = torch.randint(-70, 17, (N,), generator=rng(1))
    x = (1 + torch.rand(N, generator=rng(2))) * 2.0**exponent
    x = x.clamp(max=LARGEST[fmt])
    x[::97] = 0.0
    x = x * torch.where(torch.rand(N, generator=rng(3)) < 0.5, -1.0, 1.0) if fmt == "e4m3" else x
    field = fields(N, 4)
    scale = torch.full((N,), BIAS[fmt])
    (got,) = run(ASSEMBLY[f"encode_{fmt}"], *split(x, 4), *split(scale, 4), *split(field, 4))
    wanted = ref.encode_fp8(x, torch.tensor(127), field, fmt)
    assert torch.equal(torch.from_numpy(got.copy()).view(torch.uint8), wanted)


def neighbours(x: Tensor) -> list[np.ndarray]:
    """Elements as the assembly of 4-bit codes has them: the first of each byte, then the second."""
    columns = words(x).reshape(-1, 8).T
    return [columns[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)]


def apart(registers: list[np.ndarray]) -> Tensor:
    """The inverse of ``neighbours``, of fp32."""
    return floats([registers[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)])


halves = pytest.mark.parametrize("fmt", ["e2m1", "e4m0"])


@halves
def test_decoding_halves(fmt: str) -> None:
    """Every pair of codes in every place, NaN alone among numbers in each."""
    layout = FORMATS[fmt].float4
    assert layout is not None
    stored = torch.arange(256, dtype=torch.int32).to(torch.uint8).repeat_interleave(4)
    alone = torch.randint(0, layout.largest + 1, (64, 8), generator=rng(20), dtype=torch.int32)
    alone[torch.arange(64), torch.arange(64) % 8] = layout.nan
    stored = torch.cat([stored, ref.pack(alone.view(-1))])
    wanted = ref.decode_fp4(ref.unpack(stored), layout)
    assert different(apart(run(ASSEMBLY[f"decode_{fmt}"], packed(stored, 1))), wanted) == 0
    assert wanted.isnan().any()


@halves
def test_encoding_halves(fmt: str) -> None:
    """Values of all binades that round, with extreme and with random fields; NaN's pattern."""
    layout = FORMATS[fmt].float4
    assert layout is not None
    exponent = torch.randint(-40, 2, (N,), generator=rng(21))
    x = (1 + torch.rand(N, generator=rng(22))) * 2.0**exponent * 2.0**-14
    top = 6 * 2.0**-14 if layout.signed else 0.5
    x = x.clamp(max=top)
    x[::97], x[1::97] = 0.0, top
    if layout.signed:
        x = x * torch.where(torch.rand(N, generator=rng(23)) < 0.5, -1.0, 1.0)
    field, byte = fields(N, 24), torch.tensor(127)
    wanted = ref.encode_fp4(x, byte, field, layout)
    x, scale = x * 2.0**-112, torch.ones(N // 2)
    nan = torch.tensor(layout.nan << (23 - layout.mantissa), dtype=torch.int32)
    x[::101], wanted[::101] = nan.view(torch.float32), layout.nan
    registers = (*neighbours(x), *split(scale, 4), *neighbours(field))
    (got,) = run(ASSEMBLY[f"encode_{fmt}"], *registers)
    assert torch.equal(torch.from_numpy(got.copy()).view(torch.uint8), ref.pack(wanted))


@pytest.mark.parametrize(("name", "pack"), [("encode_bf16", 2), ("encode_bf16_by_eight", 8)])
def test_parameters(name: str, pack: int) -> None:
    """fp32 to bf16 and back: every exponent, Inf, NaN, and numbers past the largest bf16."""
    bits = torch.randint(-(1 << 31), 1 << 31, (N,), generator=rng(5), dtype=torch.int64)
    x = bits.to(torch.int32).view(torch.float32)
    x[N // 2 :] = torch.randn(N // 2, generator=rng(11))
    x[:8] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38, 3.3895e38, 0.0, -0.0])
    field = fields(N, 6)
    got = np.stack(run(ASSEMBLY[name], *split(x, pack), *split(field, pack)), axis=1).reshape(-1)
    stored = torch.from_numpy(got).view(torch.bfloat16)
    wanted = ref.encode_bf16(x, field)
    assert torch.equal(stored.view(torch.int16), wanted.view(torch.int16))
    back = run(ASSEMBLY["decode_bf16"], packed(stored, 2))
    assert different(floats(back), ref.decode_bf16(wanted)) == 0


def test_noise_and_fused_sums() -> None:
    field = fields(N, 7)
    (got,) = run(ASSEMBLY["two_to_four"], words(field | 0x200))
    assert torch.equal(floats([got]) - 3.0, ref.sign_noise(field))
    a, b, c = (torch.randn(N, generator=rng(i)) for i in (8, 9, 10))
    (got,) = run(ASSEMBLY["fma"], *(words(x) for x in (a, b, c)))
    assert different(floats([got]), ref.fma(a, b, c)) == 0


def test_what_is_not_run_here_approximates() -> None:
    """Roots, reciprocals and conversions of the hardware are for a GPU (test_gpu.py)."""
    tried = {
        f"{way}_{fmt}" for way in ("decode", "encode") for fmt in (*BIAS, "bf16", "e2m1", "e4m0")
    }
    rest = set(ASSEMBLY) - tried - {"two_to_four", "fma", "encode_bf16_by_eight"}
    assert all(".approx." in ASSEMBLY[n].text or "satfinite" in ASSEMBLY[n].text for n in rest)
