"""What only a GPU can show: launches counted at the driver, no recompilation, graph capture."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from signconv.bench.limits import compiled_keys
from signconv.pipeline import build
from signconv.pipeline.catalogue import GENERATED
from signconv.runtime.kernel import scalars, step
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import compare, different

pytestmark = pytest.mark.gpu

MODULES = [build(e.spec, convert=e.convert, state=e.state, math=e.math).module for e in GENERATED]
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


def test_launches_follow_the_type_and_place_of_a_tensor_lr() -> None:
    """A compiled kernel is launched again without asking Triton only where nothing differs."""
    held = torch.full((3,), 1e-3, device="cuda")
    rates = [1e-3, held[:1], held[1:2], held[:1].double(), held[2], 1e-3, held[1:2]]
    ps, qs = make([(4, 96), (70,)]), []
    for p in ps:
        q = p.detach().cpu().requires_grad_()
        q.grad = p.grad.cpu()
        qs.append(q)
    ours, reference = CLASSES["AdamW"](ps), CLASSES["AdamW"](qs, backend="reference")
    for lr in rates:
        ours.param_groups[0]["lr"] = lr
        reference.param_groups[0]["lr"] = lr.cpu() if isinstance(lr, Tensor) else lr
        ours.step()
        reference.step()
    for p, q in zip(ps, qs, strict=True):
        assert different(p.detach().cpu(), q.detach()) == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_parameters_on_several_gpus_are_stepped_where_they_are() -> None:
    """Triton launches on the current device; a model may be spread over others."""
    shapes = [(4, 96), (70,), (512, 64)]
    ps, qs = make(shapes), []
    for i, p in enumerate(ps):
        grad, place = p.grad, f"cuda:{i % 2}"
        ps[i] = p.detach().to(place).requires_grad_()
        ps[i].grad = grad.to(place)
        q = p.detach().cpu().requires_grad_()
        q.grad = grad.cpu()
        qs.append(q)
    ours, reference = CLASSES["AdamWStoSign"](ps), CLASSES["AdamWStoSign"](qs, backend="reference")
    for current, scale in ((0, None), (1, None), (0, 4.0)):
        ours.grad_scale = None if scale is None else torch.tensor(scale, device="cuda:0")
        reference.grad_scale = None if scale is None else torch.tensor(scale)
        with torch.cuda.device(current):
            ours.step()
        reference.step()
    for p, q in zip(ps, qs, strict=True):
        assert different(p.detach().cpu(), q.detach()) == 0


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
    # two variants: rows that are multiples of 32, and rows that end in partial blocks
    assert sorted(set(names)) == ["scalar_kernel", "step_kernel"]
    assert names.count("scalar_kernel") == 5
    assert names.count("step_kernel") == 10


def test_nothing_step_dependent_recompiles() -> None:
    ps = make([(64, 64), (64,), (3, 5)])
    cls = CLASSES["AdamWStoSign"]
    optimizer = cls(ps)
    optimizer.step()

    def compiled() -> int:
        return sum(len(compiled_keys(k)) for k in (step.step_kernel, scalars.scalar_kernel))

    before = compiled()
    assert before >= 3  # the scalar kernel, and steps of two storages
    for _ in range(40):
        optimizer.param_groups[0]["lr"] = random.uniform(1e-5, 1e-2)
        optimizer.step()
    assert compiled() == before


def twins(**options: object) -> tuple[FusedOptimizer, FusedOptimizer]:
    """Two optimizers of equal parameters and gradients: one to capture, one to step eagerly."""
    ps = make([(64, 64), (33,)])
    qs = [p.detach().clone().requires_grad_() for p in ps]
    for p, q in zip(ps, qs, strict=True):
        q.grad = p.grad.clone() if p.grad is not None else None
    lr = options.pop("lr", 0.25)
    cls = CLASSES["AdamWStoSign"]
    captured = cls(ps, lr=torch.tensor(lr, device="cuda"), **options)
    return captured, cls(qs, lr=lr, **options)


def capture(optimizer: FusedOptimizer) -> Callable[[], None]:
    """One eager step on a side stream, then ``step()`` as a graph: its replay."""
    optimizer.step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        optimizer.step()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            optimizer.step()
    torch.cuda.synchronize()
    return graph.replay


def tensors(optimizer: FusedOptimizer) -> dict[str, Tensor]:
    """Parameters and everything in ``state``, by name."""
    found = {}
    for i, p in enumerate(optimizer.param_groups[0]["params"]):
        found[f"{i}.p"] = p.detach()
        found |= {f"{i}.{name}": value for name, value in optimizer.state[p].items()}
    return found


def assert_equal(a: FusedOptimizer, b: FusedOptimizer) -> None:
    torch.cuda.synchronize()
    others = tensors(b)
    for name, value in tensors(a).items():
        assert different(value, others[name]) == 0, name


def set_gradients(optimizer: FusedOptimizer, value: float | None, seed: int = 0) -> None:
    """Fresh gradients in place, where the graph reads them; ``value`` into one element."""
    rng = torch.Generator("cuda").manual_seed(seed)
    for p in optimizer.param_groups[0]["params"]:
        p.grad.normal_(std=1e-3, generator=rng)
    if value is not None:
        optimizer.param_groups[0]["params"][0].grad[3, 5] = value


def test_a_captured_step_follows_lr_and_draws_anew_at_each_replay() -> None:
    captured, plain = twins(lr=1e-2)
    replay = capture(captured)
    plain.step()
    plain.step()
    lr = captured.param_groups[0]["lr"]
    for value in (1e-2, 5e-3, 0.25):
        lr.fill_(value)
        plain.param_groups[0]["lr"] = float(lr)
        replay()
        plain.step()
        assert_equal(captured, plain)


def test_two_replays_from_one_state_differ_in_their_noise_alone() -> None:
    """Everything but the step count is put back: what still differs was drawn anew."""
    captured, _ = twins(weight_decay=0.0)
    set_gradients(captured, None)
    replay = capture(captured)
    # A gradient unlike the last ones: |m| is then well below sqrt(v), and signs are random.
    set_gradients(captured, None, seed=1)
    before = {k: v.clone() for k, v in tensors(captured).items() if not k.endswith("step")}
    moved = []
    for _ in range(2):
        for name, value in before.items():
            tensors(captured)[name].copy_(value)
        replay()
        torch.cuda.synchronize()
        moved.append(tensors(captured)["0.p"].float() - before["0.p"].float())
    share = float((moved[0].sign() != moved[1].sign()).float().mean())
    assert 0.05 < share < 0.6, share


def test_a_captured_step_follows_a_scheduler() -> None:
    """torch's schedulers change a tensor lr in place, which is what the graph reads."""
    captured, plain = twins(lr=0.25)
    schedules = [
        torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)  # exact in fp32 and float64
        for optimizer in (captured, plain)
    ]
    replay = capture(captured)
    plain.step()
    plain.step()
    for _ in range(4):
        for schedule in schedules:
            schedule.step()
        replay()
        plain.step()
        assert_equal(captured, plain)
    assert float(captured.param_groups[0]["lr"]) == plain.param_groups[0]["lr"] == 0.25 / 16


def test_a_captured_step_skips_what_a_grad_scaler_found_infinite() -> None:
    """found_inf and grad_scale are read at every replay, and a skipped step does not count."""
    captured, plain = twins()
    for optimizer in (captured, plain):
        optimizer.found_inf = torch.zeros((), device="cuda")
        optimizer.grad_scale = torch.full((), 8.0, device="cuda")
    replay = capture(captured)
    plain.step()
    plain.step()
    for found, scale in ((0.0, 8.0), (1.0, 8.0), (0.0, 2.0), (1.0, 2.0), (0.0, 2.0)):
        before = {k: v.clone() for k, v in tensors(captured).items()}
        for optimizer in (captured, plain):
            optimizer.found_inf.fill_(found)
            optimizer.grad_scale.fill_(scale)
        replay()
        plain.step()
        assert_equal(captured, plain)
        changed = [k for k, v in tensors(captured).items() if different(v, before[k])]
        assert bool(changed) == (not found), changed
    assert int(tensors(captured)["0.step"]) == 5


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_captured_step_skips_nonfinite_gradients_and_counts(value: float) -> None:
    captured, plain = twins(skip_nonfinite=True)
    replay = capture(captured)
    plain.step()
    plain.step()
    for seed, bad in enumerate((None, value, None, value, value, None)):
        before = {k: v.clone() for k, v in tensors(captured).items()}
        for optimizer in (captured, plain):
            set_gradients(optimizer, bad, seed)
        replay()
        plain.step()
        assert_equal(captured, plain)
        changed = [k for k, v in tensors(captured).items() if different(v, before[k])]
        assert bool(changed) == (bad is None), changed
    assert captured.skipped_steps == plain.skipped_steps == 3
    assert int(tensors(captured)["0.step"]) == 5


def test_skipping_adds_launches_that_are_counted() -> None:
    """One search per storage, the flag and its count: no more than a handful, whatever the list."""
    ps = make([(64, 64)] * 40 + [(7, 33)] * 10)
    optimizer = CLASSES["AdamWStoSign"](ps, skip_nonfinite=True)
    optimizer.step()
    names = kernels_of(optimizer.step, 5)
    assert names.count("find_nonfinite") == 10
    assert len(names) <= 5 * (2 + 2 + 1 + 3), sorted(set(names))


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
