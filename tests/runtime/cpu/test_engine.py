"""The CPU backend: every bit of the reference, whatever the storage, the threads and the shape."""

from __future__ import annotations

import ctypes
import inspect
import multiprocessing
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="the CPU backend needs llvmlite")

from llvmlite import ir
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB

from signconv.pipeline import build
from signconv.pipeline.catalogue import GENERATED, Entry
from signconv.runtime import compat
from signconv.runtime.cpu import backend as cpu_backend
from signconv.runtime.cpu import compile as cpu_compile
from signconv.runtime.cpu import engine as cpu_engine
from signconv.runtime.cpu import threads as cpu_threads
from signconv.runtime.cpu.lanes import Lanes
from signconv.runtime.cpu.trace import Trace
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import ops as reference_ops
from signconv.verification import bits, differential
from signconv.verification.bits import different
from tests.render.test_generated import effort
from tests.support import built_class, class_of, python
from tests.support.entries import class_for, core_first, marks, path_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
#: Elements; the shapes around it cross blocks, rows and tails.  A chunk has 16,384.
SMALL = 512


@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("entry", core_first())
def test_every_generated_optimizer_equals_its_reference(entry: Entry, turn: int) -> None:
    """fp32 and bf16 parameters by turns; the other, and all that are no kind of their own, in
    `make test-long`."""
    dtype = (torch.bfloat16, torch.float32)[(GENERATED.index(entry) + turn) % 2]
    cls = class_for(entry)
    row = bits.compare(cls, dtype, "cpu", backend="cpu", chunk=SMALL, **effort(entry, turn))
    assert row.witness == "reference - cpu"
    assert row.ok, f"{row.subject}: {row.detail}"


def either_width() -> Iterator[object]:
    """fp32 and bf16 parameters by turns; the other in `make test-long`."""
    for i, e in enumerate((Entry("adamw", "stosign"), Entry("s3"), Entry("lamb"))):
        for j, wide in enumerate((8, 32)):
            for k, dtype in enumerate((torch.float32, torch.bfloat16)):
                name = f"{e.label}-{wide}-{('fp32', 'bf16')[k]}"
                yield pytest.param(e, wide, dtype, id=name, marks=marks((i + j + k) % 2 == 0))


@pytest.mark.parametrize(("entry", "wide", "dtype"), [*either_width()])
def test_either_width(
    entry: Entry, wide: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of AVX2 and of AVX-512, whichever this machine has."""
    monkeypatch.setattr(cpu_compile, "width", lambda: wide)
    cls = class_for(entry)
    row = bits.compare(cls, dtype, "cpu", 2, backend="cpu", chunk=SMALL, warm_up=10)
    assert row.ok, row.detail


def test_a_piece_per_thread_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the number of threads changed, and with pieces that are no power of two."""
    monkeypatch.setattr(cpu_engine, "CHUNK_ROWS", 2)
    shapes = [(37, 64), (5,), (700,)]
    results = []
    for threads in ([1, 1], [3, 5], [5, 2]):
        torch.manual_seed(0)
        ps = [torch.randn(s).requires_grad_() for s in shapes]
        optimizer = AdamWStoSign(ps, backend="cpu")
        pieces = []
        for count in threads:
            monkeypatch.setattr(torch, "get_num_threads", lambda n=count: n)
            for p in ps:
                p.grad = torch.randn(p.shape)
            optimizer.step()
            (engine,) = optimizer.backend_for(ps[0].device)._engines.values()
            pieces.append([b.rows for b in engine.buckets])
        assert pieces[0] != pieces[1] or threads[0] == threads[1]
        results.append((ps, optimizer))
    (ps, first), *others = results
    for qs, other in others:
        for p, q in zip(ps, qs, strict=True):
            assert different(p, q) == 0
            for name, value in first.state[p].items():
                assert different(value, other.state[q][name]) == 0


@pytest.mark.parametrize("convert", [None, "stosign", "soft:p=3,nesterov"])
@pytest.mark.parametrize("state", ["fp32", "bf16"])
def test_other_storage(convert: str | None, state: str, tmp_path: Path) -> None:
    cls = class_of(build("adamw", convert=convert, state=state), tmp_path)
    row = bits.compare(cls, torch.float32, "cpu", 3, backend="cpu", chunk=SMALL)
    assert row.ok, row.detail


def test_verify_compares_chunks_too() -> None:
    """As `signconv verify` runs it, with shapes around a chunk's edge."""
    rows = differential.cpu_rows(path_of(Entry("adamw", "stosign")), steps=1)
    assert [r.subject for r in rows] == ["float32 parameters", "bfloat16 parameters"]
    assert all(r.ok for r in rows), rows


def pair(
    cls: type[FusedOptimizer], tensors: list[Tensor], **options: Any
) -> tuple[list[tuple[FusedOptimizer, list[Tensor]]], Callable[[int], None]]:
    """The same parameters under both backends, and a step with the same gradients."""
    sides = []
    for backend in ("reference", "cpu"):
        params = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
        sides.append((cls(params, backend=backend, **options), params))

    def step(t: int) -> None:
        for optimizer, params in sides:
            rng = torch.Generator().manual_seed(t)
            for p in params:
                p.grad = torch.randn(p.shape, generator=rng).to(p.dtype) * 1e-2
            optimizer.step()

    return sides, step


def assert_equal(sides: list[tuple[FusedOptimizer, list[Tensor]]]) -> None:
    (a, ps), (b, qs) = sides
    for p, q in zip(ps, qs, strict=True):
        assert different(p, q) == 0
        for name, value in a.state[p].items():
            assert different(value, b.state[q][name]) == 0, name


@pytest.mark.parametrize("numel", [1, 31, 32, 33, 16_383, 16_384, 16_385, 16_416, 40_001])
def test_sums_over_a_tensor(numel: int) -> None:
    """Rows, chunks, and what is left of either, in the tree of a reduction."""
    sides, step = pair(LAMB, [torch.randn(numel, generator=torch.Generator().manual_seed(1))])
    for t in range(2):
        step(t)
    assert_equal(sides)


def test_torchs_switches() -> None:
    """maximize, a gradient scale, a skipped step, an lr that is a tensor."""
    tensors = [torch.randn(8, 64), torch.randn(33)]
    sides, step = pair(AdamWStoSign, tensors, lr=torch.tensor(1e-2), maximize=True)
    for found in (0.0, 1.0, 0.0):
        for optimizer, _ in sides:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
        step(int(found))
    assert_equal(sides)
    assert all(int(entry["step"]) == 2 for entry in sides[1][0].state.values())


def test_nonfinite_gradients() -> None:
    """NaN and Inf harm the same elements, and a guarded step is left out whole."""
    sides, step = pair(AdamWStoSign, [torch.randn(4, 64)])
    step(0)
    for optimizer, (p,) in sides:
        p.grad = torch.full_like(p, 0.5)
        p.grad[1, 2], p.grad[2, 3], p.grad[3, 4], p.grad[3, 5] = torch.nan, torch.inf, 1e10, -1e-42
        optimizer.step()
    step(1)
    assert_equal(sides)
    assert int(sides[1][1][0].isnan().sum()) == 2
    guarded = AdamWStoSign([torch.ones(32).requires_grad_()], backend="cpu", skip_nonfinite=True)
    (p,) = guarded.param_groups[0]["params"]
    p.grad = torch.full_like(p, torch.inf)
    guarded.step()
    assert guarded.skipped_steps == 1
    assert bool((p == 1).all())


def test_layouts_and_groups() -> None:
    """Not contiguous, not aligned, mixed dtypes, empty; steps of different age; a second group."""
    tensors = [torch.randn(64, 32).t(), torch.randn(33)[1:], torch.zeros(0), torch.randn(2, 3, 32)]
    tensors.append(torch.randn(4, 64).to(torch.bfloat16))
    sides, step = pair(AdamWStoSign, tensors)
    for t in range(2):
        step(t)
    late = torch.randn(3, 32)
    for optimizer, params in sides:
        params.append(late.clone().requires_grad_())
        optimizer.add_param_group({"params": params[-1:], "lr": 0.1})
    for t in range(2, 4):
        step(t)
    assert_equal(sides)


def test_backends_take_turns() -> None:
    """State is the same thing to both: a step of one follows a step of the other."""
    sides, step = pair(AdamWStoSign, [torch.randn(4, 64)])
    for t, backend in enumerate(("cpu", "reference", "cpu", "reference")):
        sides[1][0].backend = backend
        step(t)
    assert_equal(sides)


F32 = torch.float32
#: Functions of p and g (fp32) whose torch meaning has corners: name -> function.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": lambda p, g: torch.maximum(p, g),
    "minimum": lambda p, g: torch.minimum(p, g),
    "reference_ops.maximum": reference_ops.maximum,
    "reference_ops.minimum": reference_ops.minimum,
    "clamp": lambda p, g: p.clamp(min=-1.0, max=0.5),
    "sqrt": lambda p, g: reference_ops.sqrt(p),
    "ratio": reference_ops.ratio,
    "not equal": lambda p, g: torch.where(p != g, p, 2.0),
    "not (less)": lambda p, g: torch.where(~(p < g), 1.0, 0.0),
    "where of numbers": lambda p, g: torch.where(p < g, 150, 127).to(F32),
    "floor": lambda p, g: torch.floor(p) - g,
    "floor division": lambda p, g: torch.div(p.view(torch.int32), 3, rounding_mode="floor").to(F32),
    "by a negative": lambda p, g: torch.div(p.view(torch.int32), -7, rounding_mode="floor").to(F32),
    "signed shift": lambda p, g: (p.view(torch.int32) >> 3).to(F32),
    "bytes": lambda p, g: (p.view(torch.int32).to(torch.uint8) >> 2).to(F32),
    "bytes compare": lambda p, g: torch.where(p.view(torch.int32).to(torch.uint8) >= 0x80, p, g),
    "16 bits": lambda p, g: p.view(torch.int32).to(torch.int16).to(torch.int32).to(F32),
    "bool to int": lambda p, g: (p > g).to(torch.int32).to(F32),
    "int and long": lambda p, g: (p.view(torch.int32) - torch.where(p > g, 3, 4)).to(F32),
    "int and float": lambda p, g: (p.view(torch.int32) >> 8) * 0.1,
    "int abs": lambda p, g: (p.view(torch.int32) >> 1).abs().to(F32),
    "negative": lambda p, g: -p,
    "number first": lambda p, g: 1.0 - 3.0 * p,
    "double": lambda p, g: (p.to(torch.float64) * 0.1).to(F32),
    "full_like": lambda p, g: torch.full_like(p, 0.1) + torch.zeros_like(p) + torch.ones_like(g),
    "a tensor": lambda p, g: torch.tensor(0.3) * p + torch.tensor(0.7),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_means_what_it_does_in_torch(operation: str) -> None:
    """On special values, in a program that does nothing else."""
    specials = [0.0, -0.0, 1.0, -1.0, torch.nan, torch.inf, -torch.inf, 1e-42, -1e-42, 3e38, 2.5]
    p, g = torch.meshgrid(torch.tensor(specials), torch.tensor(specials), indexing="ij")
    rng = torch.Generator().manual_seed(0)
    extra = torch.randn(2, 200, generator=rng) * 10.0 ** torch.randint(-3, 4, (2, 200))
    p, g = torch.cat((p.flatten(), extra[0])), torch.cat((g.flatten(), extra[1]))

    def math(p: Tensor, g: Tensor, moments: Any, *_: Any) -> Any:
        return OPERATIONS[operation](p, g), moments

    step = replace(AdamWStoSign.program.reference, math=math)
    whole = tuple(replace(m, apart=False) for m in AdamWStoSign.program.moments)
    program = replace(AdamWStoSign.program, reference=step, moments=whole)
    cls = type("Operation", (AdamWStoSign,), {"program": program})
    results = []
    for backend in ("reference", "cpu"):
        x = p.clone().requires_grad_()
        x.grad = g
        cls([x], backend=backend).step()
        results.append(x.detach())
    assert different(*results) == 0
    assert different(results[0], p) > 0


# ---------------------------------------------------------------- threads


def test_helpers_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Python threads: a helper that is slower than its caller is done on return."""
    monkeypatch.setattr(cpu_threads, "openmp", lambda: None)
    me, done, both = threading.get_ident(), [], threading.Barrier(2, timeout=60)

    def work(_: int) -> None:
        both.wait()
        slow = threading.get_ident() != me
        threading.Event().wait(0.3 if slow else 0.0)
        done.append(slow)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    cpu_threads.in_parallel(address, (ctypes.c_int64 * 1)(), 2)
    assert done == [False, True]


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One, two, five; torch's team or Python threads."""
    start = torch.randn(200_001, generator=torch.Generator().manual_seed(0))
    results = []
    for threads, team in ((1, True), (2, True), (5, True), (2, False)):
        if not team:
            monkeypatch.setattr(cpu_threads, "openmp", lambda: None)
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        p = start.clone().requires_grad_()
        optimizer = LAMB([p], backend="cpu")
        for t in range(2):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
            optimizer.step()
        results.append(p.detach())
    assert all(different(results[0], x) == 0 for x in results[1:])


@pytest.mark.parametrize("team", [True, False], ids=["torch's team", "Python threads"])
def test_two_optimizers_at_once(team: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps from two Python threads do not meet."""
    if not team:
        monkeypatch.setattr(cpu_threads, "openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def train(out: list[Tensor]) -> None:
        p = torch.ones(100_000).requires_grad_()
        optimizer = AdamWStoSign([p], backend="cpu")
        p.grad = torch.linspace(-1, 1, p.numel())
        for _ in range(20):
            optimizer.step()
        out.append(p.detach())

    results: list[Tensor] = []
    workers = [threading.Thread(target=train, args=(results,)) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    train(results)
    assert len(results) == 4
    assert all(different(results[0], x) == 0 for x in results[1:])


def _stepped() -> float:
    p = torch.ones(100_000).requires_grad_()
    p.grad = torch.ones_like(p)
    AdamWStoSign([p], lr=0.25, backend="cpu", weight_decay=0.0).step()
    return float(p.detach().sum())


FORK = f"""
import multiprocessing
import torch
from signconv.generated.adamw_stosign import AdamWStoSign

{inspect.getsource(_stepped)}
torch.set_num_threads(1)  # torch's own operations hang in a child whose parent had a team
torch.get_num_threads = lambda: 2
print(_stepped())
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply_async(_stepped).get(timeout=60))
"""


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork"
)
def test_a_forked_child_steps() -> None:
    """After its parent has used threads, which the child does not inherit."""
    done = python("-c", FORK)
    assert done.returncode == 0, done.stderr[-2000:]
    mine, childs = done.stdout.split()
    assert mine == childs


# ---------------------------------------------------------------- code


@pytest.mark.parametrize("spec", ["adamw", "cautious_adamw"])
def test_machine_code(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors; multiply-adds are fused where the program says so, and the compiler fuses none."""
    sources: list[str] = []
    compiled = cpu_compile._machine_code
    monkeypatch.setattr(
        cpu_compile, "_machine_code", lambda ir: (sources.append(ir), compiled(ir))[1]
    )
    monkeypatch.setattr(cpu_compile, "_compiled", {})
    program = class_for(Entry(spec, None)).program
    code = cpu_compile.kernels(
        program, cpu_compile.Variant(torch.float32, torch.float32, False)
    ).assembly
    if "%xmm" not in code:
        pytest.skip("reads x86 assembly")
    assert "llvm.fma." in sources[0]
    assert not re.search(r"= f(add|sub|mul) (fast|contract|reassoc)|llvm.fmuladd", sources[0])
    packed, scalar = code.count("mulps"), code.count("mulss")
    assert packed > 10 * scalar
    registers = 4 if cpu_compile.width() == 8 else 2  # that a row of 32 takes
    assert code.count("sqrtps") >= registers and "sqrtss" not in code


FUNCTIONS = """
beta = hyper(0.9, ge=0, lt=1)
m = ema(grad, beta)
wave = tanh(m) + exp(-abs(m)) - log(1 + m**2) / (1 + sqrt(abs(m)))
bent = sign(m) * root(m**2, 3) + root(m**2, 5) * abs(m)**1.5
update = where(m > 0, clip(wave, -1, 1), max(min(wave, 0.5), -0.25)) + bent
"""


@pytest.mark.parametrize("state", ["fp32", "fp8"])
def test_every_function_of_the_language(state: str, tmp_path: Path) -> None:
    cls = built_class(tmp_path, FUNCTIONS, state=state)
    row = bits.compare(cls, torch.float32, "cpu", 3, backend="cpu", chunk=SMALL)
    assert row.ok, row.detail


def test_an_unknown_operation_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not a wrong number, and not a traceback from LLVM."""
    monkeypatch.setattr(reference_ops, "sign", torch.erfinv)
    cls = built_class(tmp_path, "update = grad + sign(grad)")
    p = torch.ones(32).requires_grad_()
    p.grad = torch.ones(32)
    with pytest.raises(NotImplementedError, match=r"erfinv.*backend='reference'"):
        cls([p], backend="cpu").step()


def test_a_branch_on_a_value_is_refused() -> None:
    x = Trace(ir.IRBuilder(), 8).constant(1.0, torch.float32)
    assert isinstance(x, Lanes)
    with pytest.raises(NotImplementedError, match="branch"):
        bool(x > 0)


# ---------------------------------------------------------------- without llvmlite


def test_without_llvmlite_the_reference_steps_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_backend, "HAS_LLVM", False)
    compat.warn_once.cache_clear()
    monkeypatch.setattr(cpu_engine, "CpuEngine", None)
    p = torch.ones(32).requires_grad_()
    p.grad = torch.ones(32)
    optimizer = AdamWStoSign([p])
    with pytest.warns(UserWarning, match=r"pip install 'signconv\[cpu\]'") as said:
        optimizer.step()
    assert [w.filename for w in said] == [__file__]  # the user's line, not one of this library
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        AdamWStoSign([p]).step()
    with pytest.raises(RuntimeError, match=r"backend='cpu' needs llvmlite.*signconv\[cpu\]"):
        AdamWStoSign([p], backend="cpu").step()


def test_a_scalar_state_keeps_the_sign_of_zero(tmp_path: Path) -> None:
    """Also beside a parameter at the same step whose state is the other zero."""
    cls = built_class(
        tmp_path,
        "s = state(init=0.0)\ns.next = s.prev * -1.0\nupdate = where(1 / s > 0, 0.5, 1.0) * grad",
    )
    runs = []
    for backend in ("reference", "cpu"):
        ps = [torch.ones(33, 7, requires_grad=True), torch.ones(5, requires_grad=True)]
        optimizer = cls(ps, backend=backend)
        found = []
        for t in range(5):
            for p in ps[: 1 + (t > 0)]:
                p.grad = torch.ones_like(p)
            optimizer.step()
            for entry in optimizer.state.values():
                entry["step"].fill_(9)
                found.append(entry["s"].clone())
        runs.append([*(p.detach() for p in ps), *found])
    assert not any(different(a, b) for a, b in zip(*runs, strict=True))
    assert {bool(x.signbit()) for x in runs[0][2:]} == {False, True}
