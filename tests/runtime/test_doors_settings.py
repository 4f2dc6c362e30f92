"""torch's process-wide and per-thread settings change no bit of a step, and break nothing."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from signconv.runtime import settings
from signconv.verification.bits import different
from tests.support import ROOT, generated_classes, python
from tests.support.doors import BACKENDS, SETTINGS, Situation, settle

#: Reductions, roots, scalar states, scales; a single one where kernels are interpreted.
CLASSES = ("adamw_stosign", "cautious_adamw", "lamb", "nadam", "s3")
SHAPES = [(4, 32), (5,)]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _flush() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3 if before != 3 else 2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def within(name: str) -> Any:
    """The setting of a situation, as a context."""
    return {
        "default dtype bf16": lambda: _default_dtype(torch.bfloat16),
        "default dtype fp16": lambda: _default_dtype(torch.float16),
        "default dtype fp64": lambda: _default_dtype(torch.float64),
        "default device": lambda: torch.device("meta"),
        "flush denormal": _flush,
        "deterministic": _deterministic,
        "no grad": torch.no_grad,
        "inference mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "threads": _threads,
    }[name]()


def data(seed: int, shape: tuple[int, ...], least: float) -> Tensor:
    """Normal numbers; some so small that flushing would change what is made of them."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng, dtype=torch.float32)
    return torch.where(torch.arange(x.numel()).view(shape) % 3 == 0, x * least, x)


def trained(stem: str, backend: str, setting: str | None, **options: Any) -> list[Any]:
    """Construction, two steps, a checkpoint, and one more step from it; the setting is on during
    all but the second step."""
    cls = generated_classes()[stem]
    starts = [data(0, s, 1e-38) for s in SHAPES]
    grads = [[data(t, s, 1e-20) for s in SHAPES] for t in range(1, 4)]

    def on() -> Any:
        return ExitStack() if setting is None else within(setting)

    ps = [nn.Parameter(x.clone()) for x in starts]
    with on():
        opt = cls(ps, lr=0.01, seed=3, backend=backend, **options)
    for t in range(3):
        for p, g in zip(ps, grads[t], strict=True):
            p.grad = g.clone()
        with ExitStack() if t == 1 else on():
            opt.step()
        if t == 1:
            with on():
                saved = copy.deepcopy(opt.state_dict())
                opt = cls(ps, lr=0.01, seed=3, backend=backend, **options)
                opt.load_state_dict(saved)
    return [[p.detach() for p in ps], [dict(opt.state[p]) for p in ps]]


def same(a: list[Any], b: list[Any]) -> bool:
    return not any(different(x, y) for x, y in zip(a[0], b[0], strict=True)) and not any(
        different(e[k], f[k]) for e, f in zip(a[1], b[1], strict=True) for k in f
    )


_wanted: dict[str, list[Any]] = {}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("s", SETTINGS, ids=lambda s: s.name)
def test_a_setting_changes_no_bit(s: Situation, backend: str, device: str) -> None:
    def act() -> None:
        for stem in CLASSES if backend != "triton" else ("cautious_adamw",):
            if stem not in _wanted:
                _wanted[stem] = trained(stem, "reference", None)
            assert same(trained(stem, backend, s.name), _wanted[stem]), stem

    settle(s, backend, act)


FLUSHING = """
import sys, torch
torch.set_num_threads(2)
when = sys.argv[1]
if when != "never" and when != "late":
    torch.set_flush_denormal(True)
torch.ones(1 << 20) * 1.0  # torch's other threads start here, with what this one has set
torch.set_flush_denormal(when in ("early", "late"))
from tests.runtime import test_doors_settings as here
here.SHAPES = [(2048, 32)]
torch.set_flush_denormal(False)
torch.set_num_threads(1)  # this thread's own numbers
inputs = [here.data(s, here.SHAPES[0], 1e-38) for s in range(2)]
torch.set_num_threads(2)
torch.set_flush_denormal(when in ("early", "late"))
import hashlib
made = hashlib.sha256()
for backend in ("auto", "reference"):
    p = torch.nn.Parameter(inputs[0].clone())
    p.grad = inputs[1].clone()
    opt = here.generated_classes()["adamw_stosign"]([p], lr=1e-38, seed=3, backend=backend)
    opt.step()
    for x in (p.detach(), *opt.state[p].values()):
        made.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    assert settings_flush() == (when in ("early", "late"))
print(made.hexdigest())
""".replace("settings_flush", "here.settings.flushes")


@pytest.mark.long
def test_threads_that_flush_change_no_bit() -> None:
    """Flushing is a thread's own, and goes to the threads that it starts: turned on before torch's
    other threads start, or after, or off again by the one that started them."""
    found = {}
    for when in ("never", "early", "late", "others"):
        done = python("-c", FLUSHING, when)
        assert done.returncode == 0, done.stderr
        found[when] = done.stdout
    assert len({*found.values()}) == 1, found


def test_flushing_is_seen_and_given_back() -> None:
    assert not settings.flushes()
    with _flush():
        assert settings.flushes()
        assert settings.unaffected(settings.flushes)() is False
        assert settings.flushes()
    assert not settings.flushes()


# ---------------------------------------------------------------- a device without float64


class NoFloat64(TorchDispatchMode):
    """The CPU as a device without float64: what comes from its tensors is on it, by any operation,
    until it is copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()
        self.kept: list[Tensor] = []

    def hold(self, x: Tensor) -> None:
        self.places.add(x.untyped_storage()._cdata)
        self.kept.append(x)

    def on(self, x: object) -> bool:
        return isinstance(x, Tensor) and x.untyped_storage()._cdata in self.places

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = f(*args, **(kwargs or {}))
        given = tree_leaves((args, kwargs))
        wide = [x for x in (*given, *tree_leaves(made)) if isinstance(x, Tensor)]
        if any(map(self.on, given)):
            into = f is torch.ops.aten.copy_.default
            if not into and any(x.dtype == torch.float64 for x in wide):
                raise TypeError("this device has no float64")
            for x in tree_leaves(made) if not into else ():
                if isinstance(x, Tensor):
                    self.hold(x)
        return made


@pytest.mark.parametrize("stem", CLASSES)
def test_a_device_without_float64_steps_on_the_host(
    stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, and float64 nowhere on the device, in whatever way it might come there."""
    if stem not in _wanted:
        _wanted[stem] = trained(stem, "reference", None)
    mode = NoFloat64()
    host: list[Tensor] = []
    from signconv.runtime import dense
    from signconv.runtime.reference import backend as reference

    def lacks(d: torch.device) -> bool:
        return False

    def copied(x: Tensor, d: torch.device | None = None) -> Tensor:
        made = torch.empty(x.shape, dtype=x.dtype, device="cpu")
        host.append(made.copy_(x))
        return made

    monkeypatch.setattr(reference, "has_float64", lacks)
    monkeypatch.setattr(dense, "as_it_lies", lambda x, d=None: d is None and x.is_contiguous())
    monkeypatch.setattr(dense, "plain_copy", copied)
    monkeypatch.setattr(reference, "to_host", copied)
    cls = generated_classes()[stem]
    ps = [nn.Parameter(data(0, s, 1e-38)) for s in SHAPES]
    opt = cls(ps, lr=0.01, seed=3, backend="reference")
    for t in range(1, 4):
        for p, s in zip(ps, SHAPES, strict=True):
            p.grad = data(t, s, 1e-20)
            mode.hold(p.detach())
            mode.hold(p.grad)
            for name, x in opt.state.get(p, {}).items():
                if x.dim():
                    mode.hold(x)
                assert name not in ("step",) or x.device.type == "cpu"
        with mode:
            opt.step()
    assert host
    assert same([[p.detach() for p in ps], [dict(opt.state[p]) for p in ps]], _wanted[stem])
    with mode, pytest.raises(TypeError, match="no float64"):
        _ = ps[0].detach().to(torch.float64)
    with mode, pytest.raises(TypeError, match="no float64"):
        _ = ps[0].detach().sqrt().double()


def test_numbers_of_a_device_without_float64_lie_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the meta device, which is no CPU: clocks and scalar states, made and loaded."""
    from signconv.runtime import state as states

    monkeypatch.setattr(states, "has_float64", lambda device: False)
    program = generated_classes()["nadam"].program
    p = nn.Parameter(torch.zeros(4, 32, device="meta"))
    made = states.create(program, p, None, 0)
    saved = {n: torch.zeros(x.shape, dtype=x.dtype, device="cpu") for n, x in made.items()}
    taken = states.take(program, p, saved, 0, None)
    for entry in (made, taken):
        for name, x in entry.items():
            assert x.device.type == ("meta" if x.dim() else "cpu"), name
        assert entry["mu_product"].dtype == torch.float64


# ---------------------------------------------------------------- the code itself

#: Where a tensor is made of nothing, or of numbers.
CONSTRUCTORS = {
    "tensor", "empty", "zeros", "ones", "full", "arange", "rand", "randn", "randint", "eye",
    "linspace", "logspace", "empty_strided", "scalar_tensor", "as_tensor", "asarray",
}  # fmt: skip


def bare(source: str) -> list[int]:
    """Lines where torch makes a tensor without dtype or device, or chooses between two numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            continue
        given = {k.arg for k in node.keywords}
        if node.func.attr in CONSTRUCTORS and not {"dtype", "device"} <= given:
            found.append(node.lineno)
        numbers = [a for a in node.args[1:] if node.func.attr == "where" and _number(a)]
        if len(numbers) == 2 and any(map(_real, numbers)):
            found.append(node.lineno)
    return found


def _number(a: ast.expr) -> bool:
    try:
        return isinstance(
            eval(compile(ast.Expression(a), "", "eval"), {"torch": torch}), int | float
        )
    except NameError:
        return False


def _real(a: ast.expr) -> bool:
    return isinstance(eval(compile(ast.Expression(a), "", "eval"), {"torch": torch}), float)


FILES = [
    *sorted((ROOT / "signconv" / "runtime").rglob("*.py")),
    *sorted((ROOT / "generated").glob("*.py")),
]


def test_no_tensor_takes_its_dtype_or_device_from_a_default() -> None:
    found = [f"{p.relative_to(ROOT)}:{line}" for p in FILES for line in bare(p.read_text())]
    assert not found
    assert len(FILES) > 60


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("torch.zeros(3)", 1), ("torch.tensor(x, dtype=d)", 1), ("torch.full(s, 1, device=d)", 1),
        ("torch.where(c, 1.0, -2.0**3)", 1), ("torch.where(c, -torch.inf, 1)", 1),
        ("torch.arange(n, dtype=a, device=b)", 0), ("torch.zeros_like(x)", 0),
        ("torch.where(c, 1, 2)", 0), ("torch.where(c, x, 2.0)", 0), ("tl.zeros(3)", 0),
    ],
)  # fmt: skip
def test_a_default_would_be_found(line: str, count: int) -> None:
    assert len(bare(line)) == count


def test_files_are_read() -> None:
    assert Path(settings.__file__) in FILES
