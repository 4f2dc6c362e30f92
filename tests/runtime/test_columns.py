"""Some columns of a tensor, stepped as what stands in for them does it: the bits of the whole."""

from __future__ import annotations

import pytest
import torch
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.adamw_stosign_golden import AdamWStoSignGolden
from torch import Tensor, nn

from signconv.runtime.compat import HAS_LLVM, HAS_TRITON
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.program import Rows, rows_of
from signconv.verification.bits import different
from tests.support.runs import built

BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(not HAS_LLVM, reason="needs the extra cpu")),
    pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")),
]
CLASSES = {
    "fp8": AdamWStoSign,
    "golden": AdamWStoSignGolden,
    "fp4": AdamWFP4,
    "fp32": built("adamw", "stosign", "fp32"),
}
#: Whole chunks and tails, several tensors' worth of rows, one row, and a third dimension.
SHAPES = [(48, 512), (7, 128), (1, 96), (5, 2, 64)]


def run(cls: type[FusedOptimizer], backend: str, device: str, part: slice | None) -> list[Tensor]:
    """The parameters after three steps; with a ``part`` those columns alone, where they lie."""
    rng = torch.Generator().manual_seed(1)

    def drawn(scale: float) -> list[Tensor]:
        made = [torch.randn(s, generator=rng).mul(scale).bfloat16() for s in SHAPES]
        return [x[:, cut(x)].contiguous().to(device) for x in made]

    def cut(x: Tensor) -> slice:
        if part is None:
            return slice(None)
        each = x.shape[1] // 32 if x.dim() == 2 else x.shape[1]
        first, end = (n * each // 8 for n in (part.start, part.stop))
        return slice(first * 32, end * 32) if x.dim() == 2 else slice(first, end)

    params = [nn.Parameter(x) for x in drawn(1.0)]
    optimizer = cls(params, lr=0.01, seed=3, backend=backend)
    optimizer._complete({p: optimizer._new_state(p, None) for p in params if p.numel()})
    for p, shape in zip(params, SHAPES, strict=True):
        whole = torch.empty(shape, device="meta")
        if part is None or not p.numel():
            continue
        first = int(cut(whole).start or 0) * whole.stride(1)
        before = sum(torch.Size(s).numel() for s in SHAPES[: SHAPES.index(shape)])
        entry = optimizer.state[p]
        entry["offset"] = torch.tensor(before + first)
        entry["pitch"] = torch.tensor(whole.stride(0))
    for _ in range(3):
        for p, g in zip(params, drawn(0.1), strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach().cpu() for p in params]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_are_those_of_the_whole(backend: str, name: str, device: str) -> None:
    if backend == "cpu" and device != "cpu":
        pytest.skip("the CPU's backend")
    whole = run(CLASSES[name], "reference", "cpu", None)
    for part in (slice(0, 5), slice(5, 8)):
        for p, q in zip(run(CLASSES[name], backend, device, part), whole, strict=True):
            columns = q.shape[1] // 32 if q.dim() == 2 else q.shape[1]
            first, end = (n * columns // 8 for n in (part.start, part.stop))
            block = 32 if q.dim() == 2 else 1
            assert different(p, q[:, first * block : end * block]) == 0, (part, q.shape)


def test_rows_are_found_by_what_stands_in() -> None:
    program, fp32 = AdamWStoSign.program, CLASSES["fp32"].program
    zero, odd = torch.tensor(0), torch.tensor(33)
    p, row = torch.empty(4, 64), torch.empty(4, 33)
    assert rows_of(p, {"offset": zero}, program) is Rows.FLAT
    assert rows_of(p, {"offset": zero, "pitch": torch.tensor(128)}, program) is Rows.CUT
    assert rows_of(p[:1], {"offset": zero, "pitch": torch.tensor(128)}, program) is Rows.FLAT
    assert rows_of(p, {"offset": zero, "pitch": torch.tensor(129)}, fp32) is Rows.ENDING
    assert rows_of(p, {"offset": odd}, fp32) is Rows.ENDING
    assert rows_of(row, {"offset": zero}, program) is Rows.ENDING
    assert rows_of(row, {"offset": zero}, fp32) is Rows.FLAT
