"""FusedOptimizer as a torch.optim.Optimizer: groups, state, checkpoints, bad input."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from signconv.generated.sgd_stosign import SGDStoSign
from torch import Tensor

from signconv.pipeline import build
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.support import class_of, spec_file

CLASSES = [AdamW, AdamWStoSign, SGDStoSign]
SHAPES = [(8, 64), (33,), (5, 32), (2, 2, 32), (1,)]


def make(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=rng).to(dtype).requires_grad_() for s in SHAPES]


def give_grads(params: list[Tensor], t: int, scale: float = 1e-2) -> None:
    rng = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=rng) * scale).to(p.dtype).to(p.device)


def run(optimizer: FusedOptimizer, params: list[Tensor], steps: range) -> None:
    for t in steps:
        give_grads(params, t)
        optimizer.step()


def assert_same(a: FusedOptimizer, b: FusedOptimizer, ps: list[Tensor], qs: list[Tensor]) -> None:
    """Parameters and all state are equal bit for bit."""
    for p, q in zip(ps, qs, strict=True):
        assert different(p, q) == 0
        assert set(a.state[p]) == set(b.state[q])
        for name, value in a.state[p].items():
            assert different(value, b.state[q][name]) == 0, name


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


COPIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "as it is": lambda state: state,
    "torch.save, weights_only": through_file,
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.long), torch.bfloat16]
)
def test_a_fresh_optimizer_resumes_bit_for_bit(
    cls: type[FusedOptimizer], backend: str, way: str, dtype: torch.dtype, device: str
) -> None:
    where = device if backend == "triton" else "cpu"
    ps = [p.detach().to(where).requires_grad_() for p in make(dtype)]
    a = cls(ps, seed=9, backend=backend)
    run(a, ps, range(3))
    qs = [p.detach().clone().requires_grad_() for p in ps]
    b = cls(qs, seed=1, backend=backend)  # its own seed gives way to the checkpoint's
    b.load_state_dict(COPIES[way](a.state_dict()))
    run(a, ps, range(3, 6))
    run(b, qs, range(3, 6))
    assert_same(a, b, ps, qs)


@pytest.mark.parametrize("cls", CLASSES)
def test_deepcopy_and_pickle_go_on_alike(cls: type[FusedOptimizer]) -> None:
    ps = make()
    a = cls(ps, backend="reference")
    run(a, ps, range(2))
    qs, b = copy.deepcopy((ps, a))
    rs, c = pickle.loads(pickle.dumps((ps, a)))
    for params, optimizer in ((ps, a), (qs, b), (rs, c)):
        run(optimizer, params, range(2, 4))
    assert_same(a, b, ps, qs)
    assert_same(a, c, ps, rs)


def test_loading_does_not_alias_the_saved_state() -> None:
    ps = make()
    a = AdamWStoSign(ps, backend="reference")
    run(a, ps, range(2))
    saved = a.state_dict()
    before = saved["state"][0]["m"].clone()
    qs = make()
    b = AdamWStoSign(qs, backend="reference")
    b.load_state_dict(saved)
    run(b, qs, range(2, 4))
    assert torch.equal(saved["state"][0]["m"], before)


def _edit(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    ps = make()
    a = AdamWStoSign(ps, backend="reference")
    run(a, ps, range(1))
    state = copy.deepcopy(a.state_dict())
    change(state)
    return state


BAD_STATE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "missing key": (lambda s: s["state"][0].pop("v"), r"missing \['v'\]"),
    "other shape": (lambda s: s["state"][0].update(m=torch.zeros(3, dtype=torch.uint8)), "needs"),
    "other dtype": (lambda s: s["state"][0].update(m=torch.zeros(8, 64)), "needs torch.uint8"),
    "group count": (lambda s: s["param_groups"].append(s["param_groups"][0]), "param groups"),
    "parameter count": (lambda s: s["param_groups"][0]["params"].pop(), "parameters"),
    "no program": (lambda s: s["param_groups"][0].pop("program"), "another optimizer"),
}


@pytest.mark.parametrize("case", BAD_STATE)
def test_a_wrong_state_dict_is_refused_and_changes_nothing(case: str) -> None:
    change, words = BAD_STATE[case]
    state = _edit(change)
    qs = make()
    b = AdamWStoSign(qs, backend="reference")
    run(b, qs, range(1))
    before = copy.deepcopy(b.state_dict())
    with pytest.raises(ValueError, match=words):
        b.load_state_dict(state)
    after = b.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, entry in before["state"].items():
        for name, value in entry.items():
            assert torch.equal(after["state"][i][name], value)


def test_the_state_dict_of_another_program_is_refused_by_name() -> None:
    ps, qs = make(), make()
    a = AdamW(ps, backend="reference")
    run(a, ps, range(1))
    b = AdamWStoSign(qs, backend="reference")
    with pytest.raises(ValueError, match=f"{AdamW.program.hash}.*{AdamWStoSign.program.hash}"):
        b.load_state_dict(a.state_dict())


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": -1.0}, ValueError, r"lr = -1 is outside its range: 0 <= lr"),
    ({"lr": float("nan")}, ValueError, "lr = nan"),
    ({"lr": "fast"}, TypeError, "not a number"),
    ({"lr": torch.ones(2)}, ValueError, "2 elements"),
    ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] \(beta2\) = 1 .*beta2 < 1"),
    ({"betas": (0.9,)}, ValueError, "needs 2 numbers"),
    ({"weight_decay": -0.1}, ValueError, "0 <= weight_decay"),
    ({"eps": 1e-8}, TypeError, "stosign:eps=keep"),
    ({"weight_decy": 0.1}, TypeError, "Did you mean 'weight_decay'"),
    ({"backend": "cuda"}, ValueError, "auto, triton, cpu, reference"),
    ({"seed": -1}, ValueError, "seed = -1"),
    ({"seed": 1.5}, ValueError, "seed"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD_ARGUMENTS)
def test_bad_arguments_name_the_value_and_the_legal_range(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        AdamWStoSign(make(), **arguments)


def test_bad_group_values_are_refused_and_leave_the_groups_alone() -> None:
    optimizer = AdamWStoSign(make())
    with pytest.raises(ValueError, match="lr = -2"):
        optimizer.add_param_group({"params": [torch.zeros(3, requires_grad=True)], "lr": -2.0})
    assert len(optimizer.param_groups) == 1


def test_unsupported_parameters_say_what_to_do() -> None:
    with pytest.raises(TypeError, match="view_as_real"):
        AdamWStoSign([torch.zeros(3, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(TypeError, match=r"\.float\(\) or \.bfloat16\(\)"):
        AdamWStoSign([torch.zeros(3, dtype=torch.float16, requires_grad=True)])


def test_sparse_gradients_are_refused_with_a_way_out() -> None:
    embedding = torch.nn.Embedding(8, 32, sparse=True)
    optimizer = AdamWStoSign(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


def test_a_meta_parameter_is_refused_with_a_way_out() -> None:
    p = torch.zeros(4, device="meta", requires_grad=True)
    optimizer = AdamWStoSign([p])
    p.grad = torch.zeros(4, device="meta")
    with pytest.raises(RuntimeError, match="move the model to a real device"):
        optimizer.step()


def test_backend_triton_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from signconv.runtime.kernel import backend as module

    monkeypatch.setattr(module, "interpreted", lambda: False)
    ps = make()
    optimizer = AdamWStoSign(ps, backend="triton")
    give_grads(ps, 0)
    with pytest.raises(RuntimeError, match="backend='auto'"):
        optimizer.step()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_none_and_zero_size_gradients_do_nothing_quietly(backend: str, device: str) -> None:
    where = device if backend == "triton" else "cpu"
    full = torch.ones(4, 32, device=where, requires_grad=True)
    none = torch.ones(4, device=where, requires_grad=True)
    empty = torch.ones(0, 32, device=where, requires_grad=True)
    optimizer = AdamWStoSign([none, full, empty], backend=backend)
    full.grad, empty.grad = torch.ones_like(full), torch.ones_like(empty)
    optimizer.step()
    assert not torch.equal(full, torch.ones_like(full))
    assert torch.equal(none, torch.ones_like(none))
    assert none not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_t_is_per_parameter_and_survives_changing_gradients(backend: str, device: str) -> None:
    """Which parameters have gradients changes from step to step; each counts its own steps."""
    where = device if backend == "triton" else "cpu"
    ps = [p.detach().to(where).requires_grad_() for p in make()]
    alone = [p.detach().clone().requires_grad_() for p in ps]
    together = AdamW(ps, backend=backend)
    singles = AdamW(alone, backend="reference" if where == "cpu" else backend)
    for t in range(6):
        give_grads(ps, t)
        give_grads(alone, t)
        for i, (p, q) in enumerate(zip(ps, alone, strict=True)):
            if (t + i) % 3 == 0:
                p.grad = q.grad = None
        together.step()
        singles.step()
    counts = [int(together.state[p]["step"]) for p in ps]
    assert counts == [sum((t + i) % 3 != 0 for t in range(6)) for i in range(len(ps))]
    assert_same(together, singles, ps, alone)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_tensor_lr_and_a_scheduler_act_like_floats(backend: str, device: str) -> None:
    where = device if backend == "triton" else "cpu"
    ps = [p.detach().to(where).requires_grad_() for p in make()]
    qs = [p.detach().clone().requires_grad_() for p in ps]
    a = AdamWStoSign(ps, lr=0.5, backend=backend)
    b = AdamWStoSign(qs, lr=torch.tensor(0.5), backend=backend)
    plan = torch.optim.lr_scheduler.LambdaLR(a, lambda t: 0.5**t)
    for t in range(4):
        give_grads(ps, t)
        give_grads(qs, t)
        a.step()
        b.step()
        plan.step()
        b.param_groups[0]["lr"].mul_(0.5)
    assert_same(a, b, ps, qs)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_maximize_is_descent_on_the_negated_gradient(backend: str, device: str) -> None:
    where = device if backend == "triton" else "cpu"
    ps = [p.detach().to(where).requires_grad_() for p in make()]
    qs = [p.detach().clone().requires_grad_() for p in ps]
    a = AdamWStoSign(ps, maximize=True, backend=backend)
    b = AdamWStoSign(qs, backend=backend)
    for t in range(3):
        give_grads(ps, t)
        give_grads(qs, t)
        for q in qs:
            assert q.grad is not None
            q.grad.neg_()
        a.step()
        b.step()
    assert_same(a, b, ps, qs)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_skip_nonfinite_skips_the_whole_step_and_counts(backend: str, device: str) -> None:
    where = device if backend == "triton" else "cpu"
    ps = [p.detach().to(where).requires_grad_() for p in make()]
    groups = [{"params": ps[:2]}, {"params": ps[2:]}]
    optimizer = AdamWStoSign(groups, skip_nonfinite=True, backend=backend)
    run(optimizer, ps, range(2))
    before = [p.detach().clone() for p in ps]
    state = copy.deepcopy([optimizer.state[p] for p in ps])
    for bad in (float("nan"), float("inf"), -float("inf")):
        give_grads(ps, 7)
        assert ps[0].grad is not None
        ps[0].grad[3, 5] = bad
        optimizer.step()
    assert optimizer.skipped_steps == 3
    for p, q, entry in zip(ps, before, state, strict=True):
        assert different(p, q) == 0
        for name, value in entry.items():
            assert different(optimizer.state[p][name], value) == 0, name
    run(optimizer, ps, range(8, 9))
    assert int(optimizer.state[ps[0]]["step"]) == 3


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_grad_scaler_attributes_unscale_and_skip(backend: str, device: str) -> None:
    """torch.amp.GradScaler hands grad_scale and found_inf to optimizers that can take them."""
    where = device if backend == "triton" else "cpu"
    ps = [p.detach().to(where).requires_grad_() for p in make()]
    qs = [p.detach().clone().requires_grad_() for p in ps]
    a, b = AdamWStoSign(ps, backend=backend), AdamWStoSign(qs, backend=backend)
    give_grads(ps, 0)
    give_grads(qs, 0)
    for p in ps:
        assert p.grad is not None
        p.grad.mul_(1024.0)
    a.grad_scale = torch.tensor(1024.0, device=where)  # type: ignore[attr-defined]
    a.found_inf = torch.tensor(0.0, device=where)  # type: ignore[attr-defined]
    a.step()
    b.step()
    assert_same(a, b, ps, qs)
    a.found_inf = torch.tensor(1.0, device=where)  # type: ignore[attr-defined]
    before = [p.detach().clone() for p in ps]
    a.step()
    assert all(different(p, q) == 0 for p, q in zip(ps, before, strict=True))


def test_offsets_are_multiples_of_32_in_param_groups_order() -> None:
    ps = make()
    optimizer = AdamWStoSign(ps[:3])
    optimizer.add_param_group({"params": ps[3:]})
    give_grads(ps, 0)
    optimizer.step()
    sizes = [-(-p.numel() // 32) * 32 for p in ps]
    wanted = [sum(sizes[:i]) for i in range(len(ps))]
    assert [int(optimizer.state[p]["offset"]) for p in ps] == wanted


def test_noise_does_not_depend_on_grouping() -> None:
    ps, qs = make(), make()
    a = AdamWStoSign(ps, backend="reference")
    b = AdamWStoSign([{"params": [q]} for q in qs], backend="reference")
    run(a, ps, range(3))
    run(b, qs, range(3))
    assert_same(a, b, ps, qs)


@pytest.mark.parametrize("cls", [AdamWStoSign, LAMB], ids=lambda c: c.__name__)
def test_gradients_are_multiplied_at_the_steps_that_ask_for_it(cls: type, device: str) -> None:
    """A kernel that leaves the factor out must not be launched where one is given, nor the other
    way round: plain, maximized, scaled, both, and plain again."""
    results = []
    for backend, where in (("triton", device), ("reference", "cpu")):
        ps = [p.detach().to(where).requires_grad_() for p in make()]
        optimizer = cls(ps, backend=backend)
        for t, (maximize, scale) in enumerate(
            ((False, None), (True, None), (False, 8.0), (True, 8.0), (False, None))
        ):
            optimizer.param_groups[0]["maximize"] = maximize
            optimizer.grad_scale = None if scale is None else torch.tensor(scale, device=where)
            give_grads(ps, t)
            optimizer.step()
        results.append((optimizer, ps))
    (a, ps), (b, qs) = results
    for p, q in zip(ps, qs, strict=True):
        assert different(p, q) == 0
        for name, value in a.state[p].items():
            assert different(value, b.state[q][name]) == 0, name


def test_kernel_noise_does_not_depend_on_chunking(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    from signconv.runtime.kernel import launch

    results = []
    for rows in (4, 16):
        monkeypatch.setattr(launch, "ROWS", rows)
        monkeypatch.setattr(launch, "INTERPRETER_SHAPE", (rows, 4))
        ps = [p.detach().to(device).requires_grad_() for p in make()]
        optimizer = AdamWStoSign(ps, backend="triton")
        run(optimizer, ps, range(3))
        results.append((optimizer, ps))
    (a, ps), (b, qs) = results
    assert_same(a, b, ps, qs)


def test_the_seed_decides_the_draws() -> None:
    moves = []
    for seed in (0, 0, 1, 2**40):
        ps = make()
        start = [p.detach().clone() for p in ps]
        optimizer = AdamWStoSign(ps, seed=seed, backend="reference")
        run(optimizer, ps, range(2))
        moves.append(torch.cat([(p.detach() - s).flatten() for p, s in zip(ps, start)]))
    assert torch.equal(moves[0], moves[1])
    assert not torch.equal(moves[0], moves[2])
    assert not torch.equal(moves[0], moves[3])


def test_state_is_as_small_as_it_says() -> None:
    p = torch.zeros(64, 64, requires_grad=True)
    optimizer = AdamWStoSign([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    entry = {k: v for k, v in optimizer.state[p].items() if k not in ("step", "offset")}
    assert sum(v.numel() * v.element_size() for v in entry.values()) == 4096 * (2 + 2 / 32)


def test_closure_is_evaluated_with_gradients() -> None:
    p = torch.ones(4, 32, requires_grad=True)
    optimizer = AdamWStoSign([p])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) == 128.0
    assert not torch.equal(p, torch.ones_like(p))


@pytest.mark.parametrize("order", ["beta1 beta2 beta3", "beta3 beta1 beta2", "beta2 beta3 beta1"])
def test_betas_are_checked_by_their_place_and_not_by_their_declaration(
    order: str, tmp_path: Path
) -> None:
    ranges = {"beta1": "0.9, lt=1", "beta2": "1, le=1", "beta3": "-1, lt=0"}
    body = "\n".join(f"{name} = hyper({ranges[name]})" for name in order.split())
    body += "\nm = ema(grad, beta1)\nG = max_ema(abs(grad), beta2)\nnumerator = m * beta3 + G"
    cls = class_of(build(spec_file(tmp_path, body).spec, state="fp32"), tmp_path)
    p = torch.ones(3, requires_grad=True)
    assert cls([p]).param_groups[0]["betas"] == (0.9, 1, -1)
    with pytest.raises(ValueError, match=r"betas\[2\] \(beta3\) = 0 is outside its range"):
        cls([p], betas=(0.9, 1, 0))
