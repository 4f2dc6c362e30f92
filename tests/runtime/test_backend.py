"""What runs a step: one interface, and the same bits behind it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from signconv.generated.nadam import NAdam
from signconv.generated.s3gd_fp8raw_mathbf16 import S3GDFP8RAWMathBF16
from torch import Tensor

from signconv.runtime import backend as backends
from signconv.runtime.backend import BACKENDS, NAMES, Backend, Task, choose
from signconv.runtime.cpu import backend as cpu
from signconv.runtime.kernel import backend as kernel
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference.backend import ReferenceBackend
from signconv.verification.bits import different
from tests.support import ROOT

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
#: A sign with noise, sums over tensors, scalar states, codes without scales in bf16 arithmetic.
CLASSES = [AdamWStoSign, LAMB, NAdam, S3GDFP8RAWMathBF16]


@pytest.fixture(params=["triton", "cpu"])
def other(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend beside the reference and where it runs."""
    if request.param == "cpu":
        pytest.importorskip("llvmlite")
        return "cpu", "cpu"
    return "triton", request.getfixturevalue("device")


# ---------------------------------------------------------------- which one


def test_every_backend_is_a_class_of_the_interface_under_its_name() -> None:
    assert ("auto", *BACKENDS) == NAMES
    for name in BACKENDS:
        found = backends._load(name)
        assert issubclass(found, Backend) and found.name == name
        assert not found.__abstractmethods__


@pytest.mark.parametrize(
    ("device", "triton", "llvm", "chosen"),
    [
        (CPU, True, True, "cpu"),
        (CPU, False, True, "cpu"),
        (CPU, True, False, "reference"),
        (CUDA, True, True, "triton"),
        (CUDA, False, True, "reference"),
        (MPS, True, True, "reference"),
    ],
)
@pytest.mark.filterwarnings("ignore:signconv steps on the PyTorch reference:UserWarning")
def test_auto_takes_the_first_that_may(
    device: torch.device, triton: bool, llvm: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the interpreter, in which these tests run."""
    monkeypatch.setattr(kernel, "HAS_TRITON", triton)
    monkeypatch.setattr(cpu, "HAS_LLVM", llvm)
    assert choose("auto", device).name == chosen


@pytest.mark.parametrize(
    ("name", "device", "triton", "llvm", "words"),
    [
        ("triton", CPU, True, True, r"cannot run on cpu: .*backend='auto' \[SC601\]$"),
        ("triton", CUDA, False, True, r"cannot run on cuda:0: .* \[SC601\]$"),
        ("triton", MPS, True, True, r"cannot run on mps: .* \[SC601\]$"),
        ("cpu", CUDA, True, True, r"cannot run on cuda:0: leave backend='auto' \[SC602\]$"),
        ("cpu", CUDA, True, False, r"\[SC602\]$"),
        ("cpu", CPU, True, False, r"needs llvmlite: .* \[SC603\]$"),
    ],
)
def test_what_cannot_run_there_is_refused(
    name: str,
    device: torch.device,
    triton: bool,
    llvm: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "HAS_TRITON", triton)
    monkeypatch.setattr(kernel, "interpreted", lambda: False)
    monkeypatch.setattr(cpu, "HAS_LLVM", llvm)
    with pytest.raises(RuntimeError, match=words):
        choose(name, device)
    assert not backends._load(name).automatic(device)


def test_what_can_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "HAS_TRITON", True)
    monkeypatch.setattr(kernel, "interpreted", lambda: False)
    monkeypatch.setattr(cpu, "HAS_LLVM", True)
    for name, devices in {"triton": [CUDA], "cpu": [CPU], "reference": [CPU, CUDA, MPS]}.items():
        for device in devices:
            assert choose(name, device).name == name
    monkeypatch.setattr(kernel, "interpreted", lambda: True)
    assert choose("triton", CPU).name == "triton"


def test_a_gpu_without_float64_is_not_triton_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some of Intel's; the reference steps there by way of the CPU."""
    xpu = torch.device("xpu", 0)
    monkeypatch.setattr(kernel, "HAS_TRITON", True)
    monkeypatch.setattr(kernel, "interpreted", lambda: False)
    for has, chosen in ((True, "triton"), (False, "reference")):
        monkeypatch.setattr(kernel, "has_float64", lambda device, has=has: has)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert choose("auto", xpu).name == chosen
    with pytest.raises(RuntimeError, match=r"a GPU that has float64; leave .* \[SC601\]$"):
        choose("triton", xpu)


def test_a_backend_is_made_once_per_optimizer() -> None:
    p = torch.ones(4, requires_grad=True)
    a, b = AdamW([p], backend="reference"), AdamW([p], backend="reference")
    assert a.backend_for(CPU) is a.backend_for(CPU) is a.backend_for(MPS)
    assert a.backend_for(CPU) is not b.backend_for(CPU)
    assert a.backend_for(CPU).program is AdamW.program


# ---------------------------------------------------------------- the optimizer knows the interface


def test_the_optimizer_names_no_backend() -> None:
    """Neither imports a part of one, nor compares with a name, nor asks what it is."""
    tree = ast.parse((ROOT / "signconv/runtime/optimizer.py").read_text(encoding="utf-8"))
    imported = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert len(imported) > 5
    folders = ("kernel", "cpu", "reference")
    assert not [
        m for m in imported if m.startswith(tuple(f"signconv.runtime.{f}" for f in folders))
    ]
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert not texts & BACKENDS.keys()
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    classes = {cls for _, cls in BACKENDS.values()}
    assert "Backend" in names and not names & {*classes, *folders}


class Spy(ReferenceBackend):
    """Steps as the reference does and says what it was asked."""

    said: list[tuple[str, Any]] = []

    def prepare(self, task: Task) -> None:
        self.said.append(("prepare", task.key))
        super().prepare(task)

    def find_nonfinite(self, task: Task, flag: Tensor) -> None:
        self.said.append(("find", task.key))
        super().find_nonfinite(task, flag)

    def step(self, task: Task, skip: Tensor | None, grad_scale: Tensor | None) -> None:
        self.said.append(("step", task.key))
        super().step(task, skip, grad_scale)


def test_all_groups_are_prepared_and_searched_before_one_is_stepped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "choose", lambda name, device: Spy)
    monkeypatch.setattr(Spy, "said", [])
    a, b = (torch.ones(4, requires_grad=True) for _ in range(2))
    optimizer = AdamW([{"params": [a]}, {"params": [b]}], skip_nonfinite=True)
    for p in (a, b):
        p.grad = torch.ones(4)
    optimizer.step()
    keys = [(0, CPU), (1, CPU)]
    assert Spy.said == [(what, key) for what in ("prepare", "find", "step") for key in keys]
    Spy.said.clear()
    optimizer.step_parameter(1, b)
    assert [what for what, _ in Spy.said] == ["prepare", "step"]
    assert all(key is b for _, key in Spy.said)


# ---------------------------------------------------------------- the same bits


def tensors(dtype: torch.dtype, device: str) -> list[Tensor]:
    """Blocks, a tail, one element, and strided ones: transposed, a slice of columns, of all."""
    rng = torch.Generator().manual_seed(5)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng).to(dtype).to(device)

    made = [normal(5, 64), normal(70), normal(1), normal(64, 32).t(), normal(4, 40)[:, 3:35]]
    made.append(normal(6, 32, 2)[..., 1])
    return [p.detach().requires_grad_() for p in made]


def around(p: Tensor) -> Tensor:
    """The matrix [4, 40] that the slice of columns of ``tensors`` was cut from."""
    return p.detach().as_strided((4, 40), (40, 1), 0)


def give(params: list[Tensor], t: int) -> None:
    """Gradients; some of them strided where the parameter is not, and the other way round."""
    rng = torch.Generator().manual_seed(100 + t)
    for i, p in enumerate(params):
        g = (torch.randn(p.shape, generator=rng) * 0.3).to(p.dtype).to(p.device)
        p.grad = g.t().contiguous().t() if i in (0, 4) else g


def assert_same(a: FusedOptimizer, ps: list[Tensor], b: FusedOptimizer, qs: list[Tensor]) -> None:
    for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
        assert different(p, q) == 0, i
        assert a.state[p].keys() == b.state[q].keys()
        for name, value in a.state[p].items():
            assert different(value, b.state[q][name]) == 0, (i, name)


def pair(
    cls: type[FusedOptimizer], dtype: torch.dtype, other: tuple[str, str], **options: Any
) -> tuple[FusedOptimizer, list[Tensor], FusedOptimizer, list[Tensor]]:
    name, where = other
    ps, qs = tensors(dtype, where), tensors(dtype, "cpu")
    return cls(ps, backend=name, **options), ps, cls(qs, backend="reference", **options), qs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_a_step_gives_the_same_bits(
    cls: type[FusedOptimizer], dtype: torch.dtype, other: tuple[str, str]
) -> None:
    """Of a list, strided tensors in it; the second step by what was kept of the first."""
    a, ps, b, qs = pair(cls, dtype, other, lr=0.1)
    before = [q.detach().clone() for q in qs]
    for t in range(2):
        give(ps, t)
        give(qs, t)
        a.step()
        b.step()
    assert_same(a, ps, b, qs)
    assert all(different(q, old) for q, old in zip(qs, before, strict=True))


@pytest.mark.parametrize("master", [None, "split"])
@pytest.mark.parametrize("cls", [AdamWStoSign, LAMB], ids=lambda c: c.__name__)
def test_one_parameter_at_a_time_gives_the_same_bits(
    cls: type[FusedOptimizer], master: str | None, other: tuple[str, str]
) -> None:
    """As gradient release steps them, in the order in which backward meets them."""
    a, ps, b, qs = pair(cls, torch.bfloat16, other, lr=0.1, master=master)
    for t in range(2):
        give(ps, t)
        give(qs, t)
        for p in reversed(ps):
            a.step_parameter(0, p)
        b.step()
    assert_same(a, ps, b, qs)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_tensors_are_stepped_as_contiguous_ones(
    name: str, dtype: torch.dtype, device: str
) -> None:
    """On every backend: what they share is the same wherever it is wrong."""
    if name == "cpu":
        pytest.importorskip("llvmlite")
    where = device if name == "triton" else "cpu"
    ps = tensors(dtype, where)
    qs = [p.detach().contiguous().requires_grad_() for p in ps]
    a, b = AdamWStoSign(ps, lr=0.1, backend=name), AdamWStoSign(qs, lr=0.1, backend=name)
    for t in range(2):
        give(ps, t)
        for p, q in zip(ps, qs, strict=True):
            assert p.grad is not None
            q.grad = p.grad.contiguous()
        a.step()
        b.step()
    assert_same(a, ps, b, qs)
    fresh = tensors(dtype, where)
    assert all(different(p, q) for p, q in zip(ps, fresh, strict=True))
    kept, whole = around(fresh[4]), around(ps[4])
    for columns in (slice(0, 3), slice(35, 40)):
        assert different(whole[:, columns], kept[:, columns]) == 0


# ---------------------------------------------------------------- each method


def direct(name: str, where: str) -> tuple[Backend, Task]:
    """A backend of its own and a task with state, as an optimizer would make them."""
    params = tensors(torch.float32, where)
    give(params, 0)
    maker = AdamWStoSign(params, backend="reference")
    state = {p: maker._new_state(p, None) for p in params}
    task = Task("anything", maker.param_groups[0], params, state)
    return choose(name, params[0].device)(AdamWStoSign.program), task


def place(name: str, device: str) -> str:
    if name == "cpu":
        pytest.importorskip("llvmlite")
    return device if name == "triton" else "cpu"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_skipped_step_moves_nothing_and_counts_for_nothing(name: str, device: str) -> None:
    backend, task = direct(name, place(name, device))
    before = [p.detach().clone() for p in task.params]
    steps: list[Callable[[], Tensor]] = [lambda p=p: task.state[p]["step"] for p in task.params]
    for skip, count in ((1.0, 0), (0.0, 1), (2.0, 1)):
        backend.prepare(task)  # copies of strided tensors are made for one step
        backend.step(task, torch.tensor(skip, device=before[0].device), None)
        assert [int(step()) for step in steps] == [count] * len(steps)
        moved = [different(p, old) > 0 for p, old in zip(task.params, before, strict=True)]
        assert moved == [count == 1] * len(steps)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_flag_is_raised_by_one_bad_gradient_and_stays(name: str, bad: float, device: str) -> None:
    backend, task = direct(name, place(name, device))
    backend.prepare(task)
    flag = torch.zeros((), device=task.params[0].device)
    backend.find_nonfinite(task, flag)
    assert float(flag) == 0
    grad = task.params[1].grad
    assert grad is not None
    kept = grad[69].clone()
    grad[69] = bad
    backend.find_nonfinite(task, flag)
    assert float(flag) == 1
    grad[69] = kept
    backend.find_nonfinite(task, flag)
    assert float(flag) == 1, "a flag is never lowered: other tasks raise the same one"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_tensor_that_no_longer_fits_its_state_is_refused_before_any_moves(
    name: str, device: str
) -> None:
    where = place(name, device)
    ps = tensors(torch.float32, where)
    optimizer = AdamWStoSign(ps, backend=name)
    give(ps, 0)
    optimizer.step()
    before = [p.detach().clone() for p in ps[:-1]]
    ps[-1].data = torch.ones(3, 32, device=where)
    give(ps, 1)
    with pytest.raises(RuntimeError, match=r"its data was replaced.*\[SC418\]"):
        optimizer.step()
    assert all(different(p, old) == 0 for p, old in zip(ps, before, strict=False))
    assert {int(optimizer.state[p]["step"]) for p in ps} == {1}


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_are_divided_by_a_scale_and_negated_to_maximize(name: str, device: str) -> None:
    """4 is a power of two: nothing is rounded by it."""
    where = place(name, device)
    sides = []
    for scale, sign in ((1.0, 1.0), (4.0, -1.0)):
        ps = tensors(torch.float32, where)
        optimizer = AdamWStoSign(ps, backend=name, maximize=sign < 0, lr=0.1)
        optimizer.grad_scale = torch.tensor(scale, device=where)  # type: ignore[attr-defined]
        give(ps, 0)
        for p in ps:
            assert p.grad is not None
            p.grad.mul_(scale * sign)
        optimizer.step()
        sides.append((optimizer, ps))
    (a, ps), (b, qs) = sides
    assert_same(a, ps, b, qs)


def test_only_a_prepared_group_is_followed(other: tuple[str, str]) -> None:
    name, where = other
    ps = [torch.ones(4, 32, device=where, requires_grad=True)]
    optimizer = AdamWStoSign(ps, backend=name)
    backend = optimizer.backend_for(ps[0].device)
    assert backend.followed(optimizer.param_groups) == {}
    ps[0].grad = torch.ones_like(ps[0])
    optimizer.step_parameter(0, ps[0])
    assert backend.followed(optimizer.param_groups) == {}, "one parameter's task is no group's"
    optimizer.step()
    found = backend.followed(optimizer.param_groups)
    assert found == ({0: ps[0].device} if name == "triton" else {})
    ps[0].grad = None
    assert backend.followed(optimizer.param_groups) == {}
