"""What goes wrong in a training run ends in the right numbers or in a clear word."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.nadam import NAdam
from torch import Tensor

from signconv.pipeline.catalogue import Entry
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference.ops import unpack
from signconv.verification.bits import different
from tests.support.bounds import LEAST, STEPS, UNSCALED, UNSCALED_UNTIL, allowed
from tests.support.entries import class_for, core_first

SHAPES = ((4, 64), (33,), (64,))
both = pytest.mark.parametrize("backend", ["reference", "triton"])
every = pytest.mark.parametrize("entry", core_first())
#: Every generated optimizer on the reference, and on a GPU, where there is one, on the kernel.
backends = pytest.mark.parametrize(
    "backend", ["reference", pytest.param("triton", marks=pytest.mark.gpu)]
)


def where(backend: str, device: str) -> str:
    return device if backend == "triton" else "cpu"


def parameters(device: str = "cpu") -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=rng).to(device).requires_grad_() for s in SHAPES]


def gradients(t: int, scale: float = 1.0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(t)
    return [torch.randn(s, generator=rng) * scale for s in SHAPES]


def step(optimizer: FusedOptimizer, params: list[Tensor], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.to(p.device)
    optimizer.step()


def snapshot(optimizer: FusedOptimizer, params: list[Tensor]) -> Any:
    return copy.deepcopy(([p.detach().cpu() for p in params], optimizer.state_dict()))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and different(a, b) == 0
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# ---------------------------------------------------------------- non-finite and huge gradients


@backends
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@every
def test_a_nonfinite_element_harms_itself_alone(
    entry: Entry, bad: float, backend: str, device: str
) -> None:
    """All others are bit for bit as if its gradient had been 0: parameters, codes and scales."""
    cls = class_for(entry)
    if cls.program.reductions or cls.program.totals:
        pytest.skip("a norm or a mean reads the whole tensor, a sum over all of them every one")
    runs = []
    for value in (0.0, bad):
        params = parameters(where(backend, device))
        optimizer = cls(params, backend=backend)
        for t in range(1, 5):
            grads = gradients(t)
            if t == 2:
                grads[0][1, 7] = grads[1][3] = value
            step(optimizer, params, grads)
        runs.append((optimizer, params))
    (clean, ps), (poisoned, qs) = runs
    for i, at in ((0, 64 + 7), (1, 3), (2, None)):
        pairs = {"p": (ps[i].detach(), qs[i].detach())}
        for name, x in clean.state[ps[i]].items():
            pairs[name] = (x, poisoned.state[qs[i]][name])
        halves = {m.name for m in cls.program.moments if m.stored.packed}
        for name, (a, b) in pairs.items():
            a, b = a.reshape(-1).clone(), b.reshape(-1).clone()
            if name in halves and a.dtype == torch.uint8:
                a, b = unpack(a)[: ps[i].numel()], unpack(b)[: ps[i].numel()]
            if at is not None and a.numel() == ps[i].numel():
                a[at] = b[at] = 0
            assert different(a, b) == 0, name
    if bad != bad:
        assert qs[0][1, 7].isnan()
        assert qs[1][3].isnan()


@backends
@every
def test_a_nonfinite_tensor_harms_itself_alone(entry: Entry, backend: str, device: str) -> None:
    """The others are bit for bit as if its gradient had been 0, it as if the others were bad too;
    NaN shows.
    """
    cls = class_for(entry)
    if cls.program.totals:
        pytest.skip("a sum over all tensors reads every one")
    runs = {}
    values = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}
    everywhere = {f"all {name}": value for name, value in values.items()}
    for name, value in {"zero": 0.0, **values, **everywhere}.items():
        params = parameters(where(backend, device))
        optimizer = cls(params, backend=backend)
        for t in range(1, 5):
            grads = gradients(t)
            for g in [] if t != 2 else grads if name.startswith("all") else grads[:1]:
                g.fill_(value)
            step(optimizer, params, grads)
        runs[name] = (params, [optimizer.state[p] for p in params])
    for name in values:
        for i in (1, 2):
            assert same(runs[name][0][i].detach(), runs["zero"][0][i].detach())
            assert same(runs[name][1][i], runs["zero"][1][i])
        assert same(runs[name][0][0].detach(), runs[f"all {name}"][0][0].detach())
        assert same(runs[name][1][0], runs[f"all {name}"][1][0])
    assert runs["nan"][0][0].isnan().all()
    assert all(p.isnan().all() for p in runs["all nan"][0])


def make_huge(grads: list[Tensor], place: str) -> None:
    """Gradients of 1e-5 to 1e6, in one element of two tensors, in one tensor, in all."""
    if place == "one element":
        grads[0][1, 7] = grads[1][5] = 1e6
    else:
        for g in grads[:1] if place == "one tensor" else grads:
            g *= 1e11


@backends
@pytest.mark.parametrize(
    "place",
    ["one element", pytest.param("one tensor", marks=pytest.mark.long), "all tensors"],
)
@every
def test_huge_finite_gradients_stay_in_range(
    entry: Entry, place: str, backend: str, device: str
) -> None:
    """1e6 among 1e-5: precision is lost in a block, and no step leaves the optimizer's bound."""
    cls = class_for(entry)
    params = parameters(where(backend, device))
    free = (
        {"weight_decay": 0.0} if any(h.name == "weight_decay" for h in cls.program.hypers) else {}
    )
    optimizer = cls(params, lr=1e-3, backend=backend, **free)
    largest = 0.0
    for t in range(1, STEPS + 1):
        grads = gradients(t, 1e-5)
        if t in (3, 4, 9):
            make_huge(grads, place)
        before = [p.detach().clone() for p in params]
        step(optimizer, params, grads)
        for p, old in zip(params, before, strict=True):
            assert p.isfinite().all()
            if t > UNSCALED_UNTIL.get(entry.spec, 0):
                largest = max(largest, float((p.detach() - old).abs().max()) / 1e-3)
    unscaled = entry.spec in UNSCALED and entry.convert != "stosign"
    assert largest > LEAST.get(entry.spec, 0.1) or unscaled
    if not unscaled:
        unit = 2.0**-24 if cls.program.precision == "fp32" else 2.0**-8
        rounded = unit * max(float(p.detach().abs().max()) for p in params) / 1e-3
        assert largest <= allowed(entry) + rounded


@pytest.mark.parametrize("backend", ["reference", "triton", "cpu"])
@pytest.mark.parametrize("where_bad", ["one element", "one tensor", "all tensors"])
def test_skip_nonfinite_counts_and_changes_nothing(
    where_bad: str, backend: str, device: str
) -> None:
    if backend == "cpu":
        pytest.importorskip("llvmlite")
    params = parameters(where(backend, device))
    optimizer = AdamWStoSign(params, backend=backend, skip_nonfinite=True)
    step(optimizer, params, gradients(1))
    before = snapshot(optimizer, params)
    for count, bad in enumerate((torch.nan, torch.inf), 1):
        grads = gradients(2)
        if where_bad == "one element":
            grads[1][17] = bad
        for g in {"one tensor": grads[:1], "all tensors": grads}.get(where_bad, []):
            g.fill_(bad)
        step(optimizer, params, grads)
        assert optimizer.skipped_steps == count
        assert same(snapshot(optimizer, params), before)
    huge = [g * 1e30 for g in gradients(2)]
    step(optimizer, params, huge)  # huge and finite: a step like any other
    assert optimizer.skipped_steps == 2
    assert not same(snapshot(optimizer, params), before)


# ---------------------------------------------------------------- checkpoints


def test_a_truncated_checkpoint_changes_nothing() -> None:
    """torch.load refuses the file, wherever it was cut; the optimizer goes on as it was."""
    params = parameters()
    optimizer = AdamWStoSign(params, backend="reference")
    step(optimizer, params, gradients(1))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    whole, before = buffer.getvalue(), snapshot(optimizer, params)
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        with pytest.raises((RuntimeError, EOFError, ValueError)):
            optimizer.load_state_dict(torch.load(io.BytesIO(whole[:length]), weights_only=True))
        assert same(snapshot(optimizer, params), before)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no groups": (lambda s: s.pop("param_groups"), "no 'param_groups', only 'state'"),
    "no state": (lambda s: s.pop("state"), "no 'state', only 'param_groups'"),
    "another dict": (lambda s: (s.clear(), s.update(model=1)), "no 'state', only 'model'"),
    "a group without params": (
        lambda s: s["param_groups"][0].pop("params"),
        r"lacks \['params'\]",
    ),
    "a moment as a list": (lambda s: s["state"][0].update(m=[1]), "m is "),
    "a scale of another size": (
        lambda s: s["state"][0].update(m_scale=torch.zeros(3, dtype=torch.uint8)),
        r"m_scale is torch.uint8 \[3\], needs torch.uint8 \[4, 2\]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_state_dict_is_refused_in_words(case: str) -> None:
    params = parameters()
    optimizer = AdamWStoSign(params, backend="reference")
    step(optimizer, params, gradients(1))
    state, before = copy.deepcopy(optimizer.state_dict()), snapshot(optimizer, params)
    change, words = BROKEN[case]
    change(state)
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    assert same(snapshot(optimizer, params), before)


# ---------------------------------------------------------------- out of memory


@both
@pytest.mark.parametrize("cls", [AdamWStoSign, NAdam], ids=lambda c: c.__name__)
def test_out_of_memory_at_any_allocation_can_be_retried(
    cls: Any, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every torch.zeros, empty and full of the first step fails once, for one run each."""
    wanted = parameters(where(backend, device))
    clean = cls(wanted, backend=backend)
    step(clean, wanted, gradients(1))
    plain = {name: getattr(torch, name) for name in ("zeros", "empty", "full", "stack")}
    failing = 1
    while True:
        params = parameters(where(backend, device))
        optimizer = cls(params, backend=backend)
        before, calls = snapshot(optimizer, params), 0

        def counted(name: str, failing: int = failing) -> Callable[..., Tensor]:
            def made(*a: Any, **k: Any) -> Tensor:
                nonlocal calls
                calls += 1
                if calls == failing:
                    raise torch.OutOfMemoryError("simulated")
                return plain[name](*a, **k)

            return made

        with monkeypatch.context() as patch:
            for name in plain:
                patch.setattr(torch, name, counted(name))
            try:
                step(optimizer, params, gradients(1))
                break
            except torch.OutOfMemoryError:
                pass
        after = snapshot(optimizer, params)
        assert same(after[0], before[0])
        if not after[1]["state"]:
            assert same(after[1], before[1])
        step(optimizer, params, gradients(1))
        assert same(snapshot(optimizer, params), snapshot(clean, wanted)), failing
        failing += 1
    assert failing > 6


def test_state_is_all_or_nothing_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = AdamWStoSign(params, backend="reference")
    plain, calls = torch.zeros, 0

    def zeros(*a: Any, **k: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:  # the second tensor's: the first has all of its own
            raise torch.OutOfMemoryError("simulated")
        return plain(*a, **k)

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(torch.OutOfMemoryError):
        step(optimizer, params, gradients(1))
    assert not optimizer.state


# ---------------------------------------------------------------- a step after a failed one


@both
def test_a_step_after_an_exception_in_backward(backend: str, device: str) -> None:
    """The closure's exception reaches the caller, nothing moved, and the next step is whole."""
    params = parameters(where(backend, device))
    optimizer = AdamWStoSign(params, backend=backend)
    step(optimizer, params, gradients(1))
    before = snapshot(optimizer, params)

    def fail(_: Tensor) -> None:
        raise RuntimeError("in backward")

    def closure() -> Tensor:
        optimizer.zero_grad()
        hidden = params[0].sum() * 1.0
        hidden.register_hook(fail)
        loss = params[2].square().sum() + hidden
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="in backward"):
        optimizer.step(closure)
    assert same(snapshot(optimizer, params), before)
    twin = parameters(where(backend, device))
    other = AdamWStoSign(twin, backend=backend)
    for t in (1, 2):
        step(other, twin, gradients(t))
    step(optimizer, params, gradients(2))
    assert same(snapshot(optimizer, params), snapshot(other, twin))


# ---------------------------------------------------------------- data replaced between steps


def test_a_model_converted_between_steps_steps_like_the_reference(device: str) -> None:
    """model.bfloat16() keeps the parameters' identity and changes their dtype."""
    runs = []
    for backend in ("reference", "triton"):
        params = parameters(where(backend, device))
        optimizer = AdamW(params, backend=backend)
        step(optimizer, params, gradients(1))
        for p in params:
            p.grad, p.data = None, p.data.bfloat16()
        step(optimizer, params, [g.bfloat16() for g in gradients(2)])
        assert params[0].dtype == torch.bfloat16
        runs.append(snapshot(optimizer, params))
    assert same(runs[0], runs[1])


def test_gradients_of_another_dtype_between_steps(device: str) -> None:
    runs = []
    for backend in ("reference", "triton"):
        params = parameters(where(backend, device))
        if not hasattr(params[0], "grad_dtype"):
            pytest.skip(f"torch {torch.__version__} holds gradients to the parameter's dtype")
        optimizer = AdamW(params, backend=backend)
        step(optimizer, params, gradients(1))
        for p in params:
            p.grad, p.grad_dtype = None, None
        step(optimizer, params, [g.bfloat16() for g in gradients(2)])
        assert params[0].grad.dtype == torch.bfloat16
        runs.append(snapshot(optimizer, params))
    assert same(runs[0], runs[1])


@both
def test_a_parameter_of_another_shape_is_refused(backend: str, device: str) -> None:
    params = parameters(where(backend, device))
    optimizer = AdamW(params, backend=backend)
    step(optimizer, params, gradients(1))
    params[0].grad, params[0].data = None, torch.zeros(8, 64, device=where(backend, device))
    with pytest.raises(RuntimeError, match=r"shape \[8, 64\] and its optimizer state \[4, 64\]"):
        step(optimizer, params, [torch.ones(8, 64), *gradients(2)[1:]])
