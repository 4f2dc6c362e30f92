"""Rows that are no multiple of 32 end in a block of their own, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import signconv
from signconv.runtime.compat import HAS_LLVM
from signconv.runtime.inspect import inspect
from signconv.runtime.reference.memory import load_moment
from signconv.verification.bits import different
from tests.support import class_of, spec_file

LENGTHS = (1, 3, 5, 8, 31, 33, 63, 100)
KINDS = {
    "adamw fp8": ("adamw", None, "fp8"),
    "adamw fp4": ("adamw", None, "fp4"),
    "golden fp4": ("adamw", "stosign:noise=golden", "fp4"),
    "antithetic mixed": ("adamw", "stosign:noise=antithetic", "m=fp4,v=bf16"),
    "s3": ("s3", None, "fp8"),
    "lamb": ("lamb", None, "fp8"),
}
BACKENDS = ("reference", "cpu", "triton")


def kind_of(name: str) -> type:
    spec, convert, state = KINDS[name]
    return signconv.compile(spec, convert=convert, state=state)


def gradient(shape: tuple[int, ...], t: int, device: str) -> torch.Tensor:
    rng = torch.Generator().manual_seed(100 + t)
    return torch.randn(shape, generator=rng).to(device)


def renumber(optimizer, offsets: dict[int, int]) -> None:
    """Let elements of parameters count from other numbers on, as a checkpoint would say it."""
    saved = optimizer.state_dict()
    for i, offset in offsets.items():
        saved["state"][i]["offset"] = torch.tensor(offset)
    optimizer.load_state_dict(saved)


def available(backend: str) -> None:
    if backend == "cpu" and not HAS_LLVM:
        pytest.skip("llvmlite is not installed")


def start(shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32):
    return torch.nn.Parameter(gradient(shape, -1, device).to(dtype))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows", [None, 1, 4])
def test_shapes_and_bytes(rows: int | None, length: int) -> None:
    shape = (length,) if rows is None else (rows, length)
    p = torch.nn.Parameter(torch.ones(shape))
    p.grad = torch.ones_like(p)
    optimizer = kind_of("adamw fp4")([p])
    optimizer.step()
    halves, blocks = -(-length // 2), -(-length // 32)
    entry = optimizer.state[p]
    for name in ("m", "v"):
        assert entry[name].shape == (*shape[:-1], halves) and entry[name].dtype == torch.uint8
        assert entry[f"{name}_scale"].shape == (*shape[:-1], blocks)


def test_bytes_of_a_low_rank_adapter() -> None:
    """Rows of 8: half a byte each, and a scale for eight."""
    p = torch.nn.Parameter(torch.ones(1024, 8))
    p.grad = torch.ones_like(p)
    for name, size in (("adamw fp4", 1.25), ("adamw fp8", 2.25)):
        optimizer = kind_of(name)([p])
        optimizer.step()
        held = sum(x.nbytes for x in optimizer.state[p].values() if x.dim())
        assert held / p.numel() == size
        assert not any("row of" in r.note for r in inspect(optimizer).rows)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_backends_agree(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    """Bit for bit, of elements whose numbers cross 2^32 too."""
    available(backend)
    where = device if backend == "triton" else "cpu"
    rows = 600 if backend == "cpu" else 70  # several chunks; the interpreter is slow
    shapes = [(3, 1), (2, 100), (37, 2), (101,), (2, 3, 11), (1,), (rows, 33), (2 * rows + 1, 3)]
    found = []
    for b in ("reference", backend):
        params = [start(s, where, dtype) for s in shapes]
        optimizer = kind_of(name)(params, lr=0.01, backend=b, seed=1)
        for t in range(3):
            for p in params:
                p.grad = gradient(tuple(p.shape), t, where).to(dtype)
            optimizer.step()
            if t == 0:
                renumber(optimizer, {1: 2**32 - 40, 0: 2**33 - 1})
        found.append((params, optimizer))
    (ps, wanted), (qs, got) = found
    for p, q in zip(ps, qs, strict=True):
        assert different(p.detach(), q.detach()) == 0, p.shape
        for key, x in wanted.state[p].items():
            assert different(x, got.state[q][key]) == 0, (key, p.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["adamw fp8", "golden fp4", "antithetic mixed"])
@pytest.mark.parametrize("length", [5, 33])
def test_a_row_is_what_it_would_be_alone(length: int, name: str, backend: str, device: str) -> None:
    """A matrix, and its rows as parameters of their own whose elements have the same numbers."""
    available(backend)
    where = device if backend == "triton" else "cpu"
    whole = start((4, length), where)
    rows = [torch.nn.Parameter(x.detach().clone()) for x in whole]
    together, alone = (kind_of(name)(x, lr=0.01, backend=backend, seed=1) for x in ([whole], rows))
    for t in range(3):
        whole.grad = gradient((4, length), t, where)
        for r, x in enumerate(rows):
            x.grad = whole.grad[r].clone()
            if t == 0:  # the state is there once a step was taken: this one moves nothing
                x.grad.zero_()
        if t == 0:
            whole.grad.zero_()
        together.step()
        alone.step()
        if t == 0:
            renumber(alone, {r: length * r for r in range(4)})
    for r, x in enumerate(rows):
        assert different(whole[r].detach(), x.detach()) == 0
        for key, value in alone.state[x].items():
            if value.dim():
                assert different(together.state[whole][key][r].contiguous(), value) == 0, key


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state", ["fp8", "fp4"])
def test_what_is_no_element_has_no_part_in_a_scale(
    state: str, backend: str, tmp_path: Path, device: str
) -> None:
    """Where there is no gradient this m is 0.1; where there is one, it is -1e-7."""
    available(backend)
    where = device if backend == "triton" else "cpu"
    body = "m = ema(where(grad < 0, -1e-6, 1), 0.9)\nnumerator = m"
    built = signconv.build(spec_file(tmp_path, body).spec, state=f"m={state}")
    p = torch.nn.Parameter(torch.zeros(3, 5, device=where))
    optimizer = class_of(built, tmp_path)([p], lr=1.0, backend=backend)
    p.grad = -torch.ones_like(p)
    optimizer.step()
    entry = optimizer.state[p]
    (m,) = optimizer.program.moments
    codes, scale = entry["m"].cpu(), entry["m_scale"].cpu()
    stored = load_moment(codes, scale, m.stored, 15)
    assert bool(((stored + 1e-7).abs() < 4e-8).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_block_has_a_scale_of_its_own(backend: str, device: str) -> None:
    """One element of 1e-6 behind 32 of 1e6: it keeps its precision."""
    available(backend)
    where = device if backend == "triton" else "cpu"
    p = torch.nn.Parameter(torch.zeros(2, 33, device=where))
    optimizer = kind_of("adamw fp8")([p], backend=backend)
    p.grad = torch.full_like(p, 1e6)
    p.grad[:, 32] = 1e-6
    optimizer.step()
    entry = optimizer.state[p]
    for m, exact in zip(optimizer.program.moments, (1e-7, 1e-15), strict=True):
        stored = load_moment(entry[m.name].cpu(), entry[f"{m.name}_scale"].cpu(), m.stored, 66)
        last = stored.view(2, 33)[:, 32]
        assert bool(((last - exact).abs() < exact / 8).all()), m.name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 5), (40, 7), (2, 33), (5,)])
def test_nothing_behind_a_tensor_is_touched(
    shape: tuple[int, ...], backend: str, device: str
) -> None:
    """A row's last block may be read and written as a whole one, but not past the tensor's end."""
    available(backend)
    where = device if backend == "triton" else "cpu"
    numel = torch.Size(shape).numel()
    room = torch.full((numel + 64,), 7.0, device=where)
    p = torch.nn.Parameter(room[:numel].view(shape))
    optimizer = kind_of("adamw fp4")([p], lr=0.1, backend=backend)
    p.grad = torch.ones_like(p)
    optimizer.step()
    entry = optimizer.state[p]
    codes = torch.full((entry["m"].numel() + 64,), 0x55, dtype=torch.uint8, device=where)
    codes[: entry["m"].numel()] = entry["m"].reshape(-1)
    entry["m"] = codes[: entry["m"].numel()].view(entry["m"].shape)
    optimizer.step()
    assert bool((room[numel:] == 7).all()) and bool((room[:numel] != 7).all())
    assert bool((codes[entry["m"].numel() :] == 0x55).all())
