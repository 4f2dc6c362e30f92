"""Triton's interpreter: what ``patch_once`` leaves out changes nothing and is given back."""

from __future__ import annotations

import pytest
import torch

from signconv import compile
from signconv.dsl import Optimizer
from signconv.runtime.compat import tl, triton
from signconv.runtime.kernel import interpreter, launch
from signconv.verification.bits import different

if not launch.interpreted():
    pytest.skip("kernels are compiled in this process", allow_module_level=True)

from triton.runtime import interpreter as tritons


@triton.jit
def _twice(x):
    return x + x


@triton.jit
def _kernel(x_ptr):
    i = tl.arange(0, 32)
    tl.store(x_ptr + i, _twice(_twice(tl.load(x_ptr + i))))


@triton.jit
def _broken(x_ptr):
    tl.store(x_ptr, _twice(tl.load(x_ptr)) / no_such_name)  # noqa: F821


def test_the_language_is_replaced_once_per_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    if not interpreter.patch_once():
        pytest.skip("this Triton's interpreter is another one")
    calls: list[object] = []
    replace = tritons._patch_builtin
    monkeypatch.setattr(tritons, "_patch_builtin", lambda *a: (calls.append(a[0]), replace(*a))[1])
    x = torch.ones(32)
    before = tl.load, tl.core.tensor.__add__
    counts = []
    for _ in range(2):
        calls.clear()
        _kernel[(1,)](x)
        counts.append(calls.count(tl))
    assert torch.equal(x, torch.full((32,), 16.0))
    assert counts == [1, 1]
    with pytest.raises(tritons.InterpreterError):
        _broken[(1,)](x)
    _kernel[(1,)](x)
    assert torch.equal(x, torch.full((32,), 64.0))
    assert (tl.load, tl.core.tensor.__add__) == before


class MinusZeros(Optimizer):
    """-0 as a literal, elementwise and in scalars, and as the rest of a division."""

    lr = hyper(0.01, ge=0)  # noqa: F821
    first = where(grad > 0, grad, -0.0) * grad  # noqa: F821
    second = grad * where(t > 1, -0.0, lr)  # noqa: F821
    update = sign(grad / (t % -2)) + (first + second) + 1 / (grad * -0.0)  # noqa: F821


def test_minus_zero_does_not_depend_on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its pull request 11426 Triton takes a literal -0.0 for 0."""
    semantic = tl.semantic.TritonSemantic
    kept = semantic.scalar_constant
    monkeypatch.setattr(
        semantic, "scalar_constant", lambda s, x, dtype: kept(s, 0.0 if x == 0 else x, dtype)
    )
    cls = compile(MinusZeros)
    runs = []
    for backend in ("reference", "triton"):
        p = torch.nn.Parameter(torch.ones(65))
        optimizer = cls([p], backend=backend)
        for t in range(4):
            p.grad = torch.linspace(-1, 1, 65).roll(t)
            optimizer.step()
        runs.append(p.detach())
    assert different(*runs) == 0


def test_integers_are_not_computed_again_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton does so for an assertion that only its debugging makes."""
    assert interpreter.patch_once()
    compared: list[str] = []
    semantic = type(tritons.interpreter_semantic)
    less_equal = semantic.less_equal
    monkeypatch.setattr(semantic, "less_equal", lambda *a: (compared.append(""), less_equal(*a))[1])
    x = torch.full((32,), 2**30, dtype=torch.int32)
    _kernel[(1,)](x)
    assert torch.equal(x, torch.zeros(32, dtype=torch.int32))  # 2**32 wraps around
    assert not compared
