"""The torch.optim contract, clause by clause, for every generated optimizer.

On the reference; on "auto", the CPU backend here, one of every kind (the others in
`make test-long`); two on the kernel in the interpreter.

tests/runtime/test_optimizer.py holds what needs one class only: bad arguments, refusals, backends.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer

from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.support import generated_classes
from tests.support.entries import CORE, entry_of, first_move, marks

CLASSES = generated_classes()
#: Slow in the interpreter: tests/render compares every class there.
ON_KERNEL = ("adamw_stosign", "nadam")
_CASES = [(n, b) for n in CLASSES for b in ("auto", "reference")]
_CASES += [(n, "triton") for n in ON_KERNEL]


def _each(thin: bool) -> pytest.MarkDecorator:
    cases = [
        pytest.param(
            (CLASSES[n], b),
            id=f"{n}-{b}",
            marks=marks(entry_of(CLASSES[n]) in CORE or (b == "reference" and not thin)),
        )
        for n, b in _CASES
    ]
    return pytest.mark.parametrize("cls", cases, indirect=True)


every = _each(thin=False)
#: For what takes many steps: a class of every kind in `make test`, the others in `make test-long`.
some = _each(thin=True)
_backend = ["reference"]


@pytest.fixture
def cls(request: pytest.FixtureRequest) -> type[FusedOptimizer]:
    """A generated class; ``new`` makes it on the backend beside it."""
    found, _backend[0] = request.param
    if _backend[0] == "triton" and request.getfixturevalue("device") != "cpu":
        pytest.skip("the interpreter's test: parameters are on the CPU")
    return found


SHAPES = ((4, 32), (7,))


def make(dtype: torch.dtype = torch.float32, shapes: Iterable[Any] = SHAPES) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=rng).to(dtype).requires_grad_() for s in shapes]


def give(params: list[Tensor], t: int) -> None:
    rng = torch.Generator().manual_seed(100 + t)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=rng) * 1e-2).to(p.dtype)


def run(optimizer: Optimizer, params: list[Tensor], steps: Iterable[int]) -> None:
    for t in steps:
        give(params, t)
        optimizer.step()


def new(cls: type[FusedOptimizer], params: Any, **options: Any) -> FusedOptimizer:
    return cls(params, backend=_backend[0], **options)


def copies(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone().requires_grad_() for p in params]


def unequal(a: FusedOptimizer, b: FusedOptimizer, ps: list[Tensor], qs: list[Tensor]) -> list[str]:
    """Parameters and states that differ in a bit."""
    found = []
    for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
        if different(p, q):
            found.append(f"parameter {i}")
        if set(a.state[p]) != set(b.state[q]):
            found.append(f"keys of {i}")
        found += [f"{i} {n}" for n, x in a.state[p].items() if different(x, b.state[q][n])]
    return found


# ---------------------------------------------------------------- groups, learning rates


@some
def test_groups_have_their_own_hyperparameters(cls: type[FusedOptimizer]) -> None:
    """A group with lr 0 stays, the other steps as it does alone; a late group joins both."""
    ps = make(torch.bfloat16, [(4, 32)] * 3)
    ps = [p.detach().float().requires_grad_() for p in ps]  # --math bf16 rounds what it reads
    start = copies(ps)
    optimizer = new(cls, [{"params": [ps[0]]}, {"params": [ps[1]], "lr": 0.0}])
    run(optimizer, ps[:2], range(2))
    alone = copies(start[:1])
    run(new(cls, alone), alone, range(2))
    assert different(ps[0], alone[0]) == 0
    assert torch.equal(ps[1], start[1])
    optimizer.add_param_group({"params": [ps[2]], "lr": 1e-3})
    run(optimizer, ps, range(2, 4))
    assert torch.equal(ps[1], start[1])
    assert not torch.equal(ps[2], start[2])
    assert [int(optimizer.state[p]["step"]) for p in ps] == [4, 4, 2]
    assert [int(optimizer.state[p]["offset"]) for p in ps] == [0, 128, 256]


Scheduler = Callable[[Optimizer], Any]
SCHEDULERS: dict[str, Scheduler] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.7),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, 6, cycle_momentum=False),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 2)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}
ABSTRACT = {"LRScheduler"}


def test_every_scheduler_that_torch_has_is_here() -> None:
    found = {
        n
        for n, c in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(c, lr_scheduler.LRScheduler) and not n.startswith("_")
    }
    assert found - ABSTRACT - {"SWALR"} == set(SCHEDULERS)


@some
def test_schedulers_act_like_a_learning_rate_set_by_hand(cls: type[FusedOptimizer]) -> None:
    """The plan that torch.optim.SGD gets from the same scheduler, written into the group."""
    some = ("LambdaLR",) if _backend[0] == "triton" else tuple(SCHEDULERS)
    for name, make_scheduler in SCHEDULERS.items():
        if name not in some:
            continue
        ps = make(shapes=[(33,)])
        qs = copies(ps)
        guide = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
        a, b = new(cls, ps, lr=3e-3), new(cls, qs, lr=3e-3)
        plan, wanted = make_scheduler(a), make_scheduler(guide)
        seen = set()
        for t in range(3):
            b.param_groups[0]["lr"] = guide.param_groups[0]["lr"]
            seen.add(b.param_groups[0]["lr"])
            run(a, ps, [t])
            run(b, qs, [t])
            guide.step()
            for s in (plan, wanted):
                s.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        assert len(seen) > 1, name
        assert unequal(a, b, ps, qs) == [], name


@every
def test_schedulers_that_cycle_momentum_reach_the_betas(cls: type[FusedOptimizer]) -> None:
    ps = make()
    optimizer = new(cls, ps)
    if not {"betas", "momentum"} & set(optimizer.defaults):
        with pytest.raises(ValueError, match="must support momentum"):
            lr_scheduler.OneCycleLR(optimizer, 1e-2, 6)
        return
    plan = lr_scheduler.OneCycleLR(optimizer, 1e-2, 6)
    seen = set()
    for t in range(5):
        group = optimizer.param_groups[0]
        seen.add(group["betas"][0] if "betas" in group else group["momentum"])
        run(optimizer, ps, [t])
        plan.step()
    assert len(seen) == 5


@every
def test_averaged_weights_take_turns_with_the_optimizer(cls: type[FusedOptimizer]) -> None:
    """SWALR, which anneals from the optimizer's rate, and AveragedModel."""
    model = nn.Linear(32, 4)
    optimizer = new(cls, model.parameters())
    averaged = torch.optim.swa_utils.AveragedModel(model)
    plan = torch.optim.swa_utils.SWALR(optimizer, swa_lr=1e-4, anneal_epochs=2)
    for _ in range(3):
        model(torch.ones(2, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        plan.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert all(p.isfinite().all() for p in averaged.parameters())


@some
def test_a_tensor_lr_acts_like_a_float(cls: type[FusedOptimizer]) -> None:
    ps = make()
    qs = copies(ps)
    a, b = new(cls, ps, lr=2.0**-8), new(cls, qs, lr=torch.tensor(2.0**-8))
    for t in range(3):
        run(a, ps, [t])
        run(b, qs, [t])
        a.param_groups[0]["lr"] *= 0.5
        b.param_groups[0]["lr"].mul_(0.5)
    assert unequal(a, b, ps, qs) == []


# ---------------------------------------------------------------- the step


@every
def test_closures_maximize_and_zero_grad(cls: type[FusedOptimizer]) -> None:
    (p,) = make(shapes=[(4, 32)])
    q = p.detach().clone().requires_grad_()
    down, up = new(cls, [p]), new(cls, [q], maximize=True)
    for optimizer, x, sign in ((down, p, 1.0), (up, q, -1.0)):

        def closure(optimizer: Any = optimizer, x: Tensor = x, sign: float = sign) -> Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sign * (x - 3).square().sum()
            loss.backward()
            return loss

        first = closure().item()
        assert optimizer.step(closure).item() == first
    assert unequal(down, up, [p], [q]) == []
    down.zero_grad(set_to_none=False)
    assert p.grad is not None and not p.grad.any()
    down.zero_grad()
    assert p.grad is None


@every
def test_hooks_of_steps_and_state_dicts_run_in_order(cls: type[FusedOptimizer]) -> None:
    ps = make()
    optimizer = new(cls, ps)
    seen: list[str] = []
    registered = [
        optimizer.register_step_pre_hook(lambda o, a, k: seen.append("pre")),
        optimizer.register_step_post_hook(lambda o, a, k: seen.append("post")),
        optimizer.register_state_dict_pre_hook(lambda o: seen.append("state pre")),
        optimizer.register_state_dict_post_hook(lambda o, s: seen.append("state post")),
        optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append("load pre")),
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append("load post")),
    ]
    run(optimizer, ps, [0])
    optimizer.load_state_dict(optimizer.state_dict())
    wanted = ["pre", "post", "state pre", "state post", "load pre", "load post"]
    assert seen == wanted
    for hook in registered:
        hook.remove()
    run(optimizer, ps, [1])
    assert seen == wanted


@every
def test_nothing_moves_without_gradients_or_elements(cls: type[FusedOptimizer]) -> None:
    ps = make(shapes=[(4, 32), (0, 32), (4, 32)])
    start = copies(ps)
    optimizer = new(cls, ps)
    optimizer.step()
    assert not optimizer.state
    for t in range(1, first_move(cls) + 1):
        give(ps, t)
        ps[0].grad = None
        optimizer.step()
        assert torch.equal(ps[0], start[0])
        assert torch.equal(ps[2], start[2]) is (t < first_move(cls))
    assert set(optimizer.state) == {ps[2]}


@every
def test_strides_change_nothing(cls: type[FusedOptimizer]) -> None:
    """Transposed and expanded parameters and gradients step like contiguous ones."""
    (p,) = make(shapes=[(6, 32)])
    q = p.detach().t().contiguous().t().requires_grad_()
    assert not q.is_contiguous()
    a, b = new(cls, [p]), new(cls, [q])
    for t in range(3):
        rng = torch.Generator().manual_seed(t)
        p.grad = torch.randn(6, 32, generator=rng)
        q.grad = p.grad.t().contiguous().t()
        if t == 2:
            row = torch.randn(1, 32, generator=rng)
            p.grad, q.grad = row.repeat(6, 1), row.expand(6, 32)
        a.step()
        b.step()
    assert unequal(a, b, [p], [q]) == []


@every
def test_tied_parameters_step_once(cls: type[FusedOptimizer]) -> None:
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    model[1].weight = model[0].weight
    alone = model[0].weight.detach().clone().requires_grad_()
    a, b = new(cls, model.parameters()), new(cls, [alone])
    for _ in range(2):
        x = torch.linspace(-1, 1, 64).view(2, 32)
        model(x).square().sum().backward()
        nn.functional.linear(nn.functional.linear(x, alone), alone).square().sum().backward()
        a.step()
        b.step()
        a.zero_grad()
        b.zero_grad()
    assert unequal(a, b, [model[0].weight], [alone]) == []
    assert int(a.state[model[0].weight]["step"]) == 2


@some
def test_gradients_may_be_scaled_clipped_and_accumulated(cls: type[FusedOptimizer]) -> None:
    """GradScaler with its power of two, and sums of two backwards, give the plain bits."""
    ps = make()
    plain, scaled, clipped, fed, summed = (copies(ps) for _ in range(5))
    optimizers = [new(cls, x) for x in (plain, scaled, clipped, fed, summed)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    targets = [torch.full_like(p, 2.0) for p in ps]

    def loss(params: list[Tensor]) -> Tensor:
        return sum(((p - q).square().sum() for p, q in zip(params, targets)), torch.zeros(()))

    for _ in range(2):
        for o in optimizers:
            o.zero_grad()
        loss(plain).backward()
        optimizers[0].step()
        scaler.scale(loss(scaled)).backward()
        scaler.step(optimizers[1])
        scaler.update()
        loss(clipped).backward()
        nn.utils.clip_grad_norm_(clipped, 0.5)
        optimizers[2].step()
        for p, q in zip(fed, clipped, strict=True):
            p.grad = q.grad.clone()  # type: ignore[union-attr]
        optimizers[3].step()
        (0.5 * loss(summed)).backward()
        (0.5 * loss(summed)).backward()
        optimizers[4].step()
    assert unequal(optimizers[0], optimizers[1], plain, scaled) == []
    assert unequal(optimizers[2], optimizers[3], clipped, fed) == []
    assert unequal(optimizers[0], optimizers[4], plain, summed) == []
    before = copies(scaled)
    optimizers[1].zero_grad()
    scaler.scale(loss(scaled) * float("inf")).backward()
    scaler.step(optimizers[1])
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(scaled, before, strict=True))
    assert int(optimizers[1].state[scaled[0]]["step"]) == 2
    assert scaler.get_scale() == 2.0**9


# ---------------------------------------------------------------- copies and checkpoints


def _file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@some
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_way_of_copying_goes_on_alike(cls: type[FusedOptimizer], dtype: torch.dtype) -> None:
    """A file read with weights_only, deepcopy, pickle."""
    ps = make(dtype)
    a = new(cls, ps, seed=5)
    run(a, ps, range(2))
    qs = copies(ps)
    b = new(cls, qs)
    for _ in range(2):  # torch adds to the defaults when it loads
        b.load_state_dict(_file(a.state_dict()))
    rs, c = copy.deepcopy((ps, a))
    ss, d = pickle.loads(pickle.dumps((ps, a)))
    run(a, ps, range(2, 4))
    for optimizer, params in ((b, qs), (c, rs), (d, ss)):
        run(optimizer, params, range(2, 4))
        assert unequal(a, optimizer, ps, params) == []


@every
def test_state_is_made_of_plain_tensors_for_safetensors(
    cls: type[FusedOptimizer], tmp_path: Path
) -> None:
    """Flat names to contiguous tensors that share no memory, and back."""
    numpy = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    ps = make()
    a = new(cls, ps)
    run(a, ps, range(2))
    saved = a.state_dict()
    flat = {f"{i}.{n}": x.clone() for i, e in saved["state"].items() for n, x in e.items()}
    assert all(type(x) is Tensor for x in flat.values())
    numpy.save_file(flat, tmp_path / "state.safetensors")
    back: dict[int, dict[str, Tensor]] = {}
    for key, x in numpy.load_file(tmp_path / "state.safetensors").items():
        index, name = key.split(".")
        back.setdefault(int(index), {})[name] = x
    qs = copies(ps)
    b = new(cls, qs)
    b.load_state_dict({"state": back, "param_groups": saved["param_groups"]})
    run(a, ps, [2])
    run(b, qs, [2])
    assert unequal(a, b, ps, qs) == []


@every
def test_state_of_fp32_parameters_loads_beside_bf16_ones(cls: type[FusedOptimizer]) -> None:
    """torch's own load_state_dict would cast codes and scales to bf16."""
    ps, qs = make(), make(torch.bfloat16)
    a, b = new(cls, ps), new(cls, qs)
    run(a, ps, range(2))
    b.load_state_dict(a.state_dict())
    for p, q in zip(ps, qs, strict=True):
        for name, x in a.state[p].items():
            assert b.state[q][name].dtype == x.dtype and different(b.state[q][name], x) == 0
    run(b, qs, [2])
    assert all(q.isfinite().all() for q in qs)


@pytest.mark.gpu
@every
def test_state_moves_between_devices(cls: type[FusedOptimizer]) -> None:
    """CPU to GPU and back: the bits of a run that stayed."""
    ps = make()
    a = new(cls, ps)
    run(a, ps, range(2))
    qs = [p.detach().cuda().requires_grad_() for p in ps]
    b = cls(qs)
    b.load_state_dict(a.state_dict())
    give(ps, 2)
    for p, q in zip(ps, qs, strict=True):
        q.grad = p.grad.cuda()  # type: ignore[union-attr]
    a.step()
    b.step()
    rs = [q.detach().cpu().requires_grad_() for q in qs]
    c = new(cls, rs)
    c.load_state_dict(b.state_dict())
    assert unequal(a, c, ps, rs) == []


@every
def test_repr_shows_class_and_hyperparameters(cls: type[FusedOptimizer]) -> None:
    text = repr(new(cls, make(), lr=0.125))
    assert text.startswith(f"{cls.__name__} (")
    assert "lr: 0.125" in text
    assert all(h.key in text for h in cls.program.hypers)
