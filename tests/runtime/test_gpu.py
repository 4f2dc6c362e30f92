"""What only a GPU can show: launches counted at the driver, no recompilation, graph capture."""

from __future__ import annotations

import importlib
import random

import pytest
import torch
from torch import Tensor

from signconv.catalogue import GENERATED
from signconv.pipeline import build
from signconv.verify.bits import compare, different

pytestmark = pytest.mark.gpu

MODULES = [build(e.spec, e.convert, e.state, math=e.math).module for e in GENERATED]
CLASSES = {
    m.class_name: getattr(
        importlib.import_module(f"signconv.generated.{m.file_name[:-3]}"), m.class_name
    )
    for m in MODULES
}


def make(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    ps = [torch.randn(s, device="cuda").to(dtype).requires_grad_() for s in shapes]
    for p in ps:
        p.grad = torch.randn_like(p) * 1e-3
    return ps


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_on_the_gpu_equals_the_reference_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    row = compare(CLASSES[name], dtype, "cuda", 3)
    assert row.ok, row.detail


def kernels_of(step: object, times: int) -> list[str]:
    """Names of the kernels the driver ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(times):
            step()  # type: ignore[operator]
        torch.cuda.synchronize()
    return [
        e.name
        for e in profile.events()
        if e.device_type == torch.autograd.DeviceType.CUDA and "mem" not in e.name.lower()
    ]


def test_one_launch_for_all_tensors_of_a_storage_plus_the_scalar_kernel() -> None:
    ps = make([(64, 64)] * 40 + [(7, 33)] * 10)
    optimizer = CLASSES["AdamWStoSign"](ps)
    optimizer.step()
    names = kernels_of(optimizer.step, 5)
    # two storages: FP8 where rows are multiples of 32, bf16 elsewhere
    assert sorted(set(names)) == ["_scalar_kernel", "_step_kernel"]
    assert names.count("_scalar_kernel") == 5
    assert names.count("_step_kernel") == 10


def test_nothing_step_dependent_recompiles() -> None:
    ps = make([(64, 64), (64,), (3, 5)])
    cls = CLASSES["AdamWStoSign"]
    optimizer = cls(ps)
    optimizer.step()

    def compiled() -> int:
        kernels = (cls.program.step_kernel, cls.program.scalar_kernel)
        return sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())

    before = compiled()
    for _ in range(40):
        optimizer.param_groups[0]["lr"] = random.uniform(1e-5, 1e-2)
        optimizer.step()
    assert compiled() == before


def test_a_captured_step_follows_lr_and_draws_anew_at_each_replay() -> None:
    ps, qs = make([(64, 64), (33,)]), []
    qs = [p.detach().clone().requires_grad_() for p in ps]
    for p, q in zip(ps, qs, strict=True):
        q.grad = p.grad.clone() if p.grad is not None else None
    lr = torch.tensor(1e-2, device="cuda")
    captured = CLASSES["AdamWStoSign"](ps, lr=lr)
    plain = CLASSES["AdamWStoSign"](qs, lr=1e-2)
    captured.step()
    plain.step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        captured.step()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            captured.step()
    plain.step()
    for value in (1e-2, 5e-3, 0.25):
        lr.fill_(value)
        plain.param_groups[0]["lr"] = float(lr)
        graph.replay()
        plain.step()
    torch.cuda.synchronize()
    for p, q in zip(ps, qs, strict=True):
        assert different(p, q) == 0
        for name, value in captured.state[p].items():
            assert different(value, plain.state[q][name]) == 0, name


def test_a_step_makes_no_hidden_temporaries() -> None:
    ps = make([(1024, 1024), (512, 4096)])
    optimizer = CLASSES["AdamWStoSign"](ps)
    optimizer.step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 4096


def test_a_large_tensor_beyond_int32_elements() -> None:
    """2^31 + 64 elements: offsets inside a tensor need 64 bits."""
    n = 2**31 + 64
    p = torch.zeros(n // 64, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
    p.grad = torch.ones_like(p)
    optimizer = CLASSES["SGDStoSign"]([p], lr=0.5)
    optimizer.step()
    tail = p.detach().view(-1)[-128:].cpu()
    assert torch.equal(tail, torch.full((128,), -0.5, dtype=torch.bfloat16))
    assert int((p.detach() == 0).sum()) == 0
