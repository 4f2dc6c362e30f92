"""The kernel's two branches as a GPU takes them, under the interpreter: 8 rows, tails by 4.

Elsewhere the interpreter gets large tiles, and a tail is one tile.
"""

import re

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lion import Lion

from signconv.runtime.compat import tl, triton
from signconv.runtime.formats import BLOCK
from signconv.runtime.kernel import backend, launch
from signconv.runtime.kernel import ops as dev
from signconv.runtime.tables import Column
from signconv.verification.bits import compare
from tests.support import ROOT


@pytest.fixture
def small_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows per program and per tail as on a GPU."""
    assert backend.interpreted is launch.interpreted  # which decides whether a kernel runs here
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    return device


@pytest.mark.parametrize("cls", [AdamWStoSign, Lion], ids=lambda c: c.__name__)
def test_tails_of_several_tiles(cls: type, small_tiles: str) -> None:
    rows = launch.launch_shape(cls.program, torch.float32).chunk
    assert rows > launch.TAIL_ROWS
    row = compare(cls, torch.float32, small_tiles, 1, chunk=BLOCK * rows)
    assert row.ok, row.detail


def test_the_interpreter_takes_no_bound_of_a_loop_from_a_tensor() -> None:
    """Triton 3.6's cannot, with NumPy 2.4 (both are in our bounds): every loop of a kernel ends
    at a constant, or at what ``extent`` makes one there; generated functions have none."""
    rooms = [ROOT / f"signconv/runtime/kernel/{name}.py" for name in ("step", "gradients")]
    kernels = "".join(path.read_text(encoding="utf-8") for path in rooms)
    bounds = re.findall(r"in range\((.*)\):", kernels)
    assert bounds == [
        "0, ops.extent(left, TILES * ROWS * 32), TAIL * 32",
        "0, ops.extent(left, ROWS * WIDTH), WIDTH",
    ]
    paths = sorted((ROOT / "generated").glob("*.py"))
    assert len(paths) > 20
    for path in paths:
        assert "in range(" not in path.read_text(encoding="utf-8"), path.name


@triton.jit
def _extent_kernel(left_ptr, out_ptr):
    tl.store(out_ptr, dev.extent(tl.load(left_ptr), 64))


@pytest.mark.parametrize("left", [1, 63, 64, 65, 2**40])
def test_extent_reaches_the_end(left: int, device: str) -> None:
    out = torch.zeros(1, dtype=torch.int32, device=device)
    _extent_kernel[(1,)](torch.tensor([left], device=device), out)
    assert min(left, 64) <= int(out) <= 64


def test_a_pointer_that_is_not_aligned_takes_the_masked_branch(device: str) -> None:
    """The table says so: what a full tile promises about its pointers must be true."""
    aligned, moved = (torch.ones(33 * 32 + 1, device=device) for _ in range(2))
    params = [aligned[:-1].view(33, 32), moved[1:].view(33, 32), torch.ones(64, device=device)]
    params = [p.detach().requires_grad_() for p in params]
    optimizer = AdamWStoSign(params, backend="triton")
    for p in params:
        p.grad = torch.ones_like(p)
    params[2].grad = torch.ones(65, device=device)[1:]
    optimizer.step()
    (group,) = optimizer.backend_for(params[0].device)._engines.values()
    found = {}
    for bucket in group.buckets:
        aligned = bucket.table[:, Column.ALIGNED].tolist()
        found |= dict(zip(map(id, bucket.members), aligned, strict=True))
    assert [found[id(p)] for p in params] == [1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_behind_a_tensor_is_written(dtype: torch.dtype, device: str) -> None:
    """Parameter, codes and scales in the middle of larger buffers, which stay as they were."""
    buffers = []

    def guarded(x: torch.Tensor) -> torch.Tensor:
        n = x.numel()
        buffer = torch.full((n + 4096,), 77, dtype=x.dtype, device=x.device)
        buffer[:n] = x.reshape(-1)
        buffers.append((buffer, n))
        return buffer[:n].view(x.shape)

    shapes = [(33,), (5, 32), (64,), (65, 3), (67, 32)]
    params = [guarded(torch.ones(s, dtype=dtype, device=device)).requires_grad_() for s in shapes]
    optimizer = AdamWStoSign(params, lr=0.5, backend="triton")
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        for p in params:
            for name in ("m", "m_scale", "v", "v_scale"):
                if name in optimizer.state[p]:
                    optimizer.state[p][name] = guarded(optimizer.state[p][name])
    assert len(buffers) > 20
    for buffer, n in buffers:
        assert (buffer[n:] == 77).all()
    assert all((p != 1).any() for p in params)
