"""Hybrids: the bits of their parts, and all or nothing in every step, load and refusal."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lion import Lion
from signconv.generated.prodigy import Prodigy
from signconv.generated.schedulefree_adamw import ScheduleFreeAdamW
from signconv.generated.sophia import Sophia
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler

import signconv
from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, msign
from signconv.runtime import offload, totals
from signconv.runtime.hybrid import Hybrid
from signconv.verification.bits import different

BACKENDS = ["reference", "auto", "triton"]
every = pytest.mark.parametrize("backend", BACKENDS)


class Spectral(Optimizer):
    """A matrix rule: the sign of a momentum, as a matrix."""

    lr = hyper(0.02, ge=0)
    m = ema(grad, 0.95)
    update = msign(m)
    decay = decoupled(0.1)


@cache
def built(spec: Any, state: str = "fp8", convert: str | None = None) -> Any:
    return signconv.compile(spec, state=state, convert=convert)


def params(dtype: torch.dtype = torch.float32) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices and others."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(7, 64), (48, 40)], [(33,), (), (64,)]
    a, b = ([nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in x] for x in shapes)
    return a, b


def give(of: Any, t: int) -> None:
    rng = torch.Generator().manual_seed(100 + t)
    for p in chain.from_iterable(of):
        p.grad = torch.randn(p.shape, generator=rng).to(p.dtype)


def everything(of: Any, *optimizers: Any) -> list[Tensor]:
    made = []
    for p in chain.from_iterable(of):
        made.append(p.detach().clone())
        entry: Any = next((o.state[p] for o in optimizers if p in o.state), {})
        made += [entry[k].clone() for k in sorted(entry)]
    return made


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(different(x, y) == 0 for x, y in zip(a, b, strict=True))


def parts(of: Any, backend: str = "reference", **options: Any) -> list[Any]:
    first = Lion(of[0], lr=1e-2, seed=3, backend=backend, **options)
    return [first, AdamWStoSign(of[1], lr=1e-2, seed=4, backend=backend, **options)]


def stepped(steps: int = 2, **options: Any) -> tuple[Any, Hybrid]:
    of = params()
    made = signconv.hybrid(*parts(of, **options))
    for t in range(steps):
        give(of, t)
        made.step()
    return of, made


# ---------------------------------------------------------------- steps


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bits_are_those_of_the_parts(backend: str, dtype: torch.dtype) -> None:
    """With a scheduler over all of them on one side, one for each on the other."""
    sides = []
    for together in (True, False):
        of = params(dtype)
        made = parts(of, backend)
        made = [signconv.hybrid(*made)] if together else made
        schedulers = [lr_scheduler.CosineAnnealingLR(o, T_max=5) for o in made]
        for t in range(4):
            give(of, t)
            for x in (*made, *schedulers):
                x.step()
        sides.append((everything(of, *made), [s.get_last_lr() for s in schedulers]))
    assert equal(sides[0][0], sides[1][0])
    assert sides[0][1] == [sides[1][1][0] + sides[1][1][1]]


@every
def test_a_matrix_rule_beside_another(backend: str) -> None:
    sides = []
    for together in (True, False):
        of = params()
        made = [built(Spectral)(of[0], seed=0, backend=backend)]
        made += [AdamW(of[1], seed=1, backend=backend)]
        assert not together or [*signconv.hybrid(*made).parts] == ["Spectral", "AdamW"]
        made = [signconv.hybrid(*made)] if together else made
        for t in range(2):
            give(of, t)
            for o in made:
                o.step()
        sides.append(everything(of, *made))
    assert equal(*sides)


@every
@pytest.mark.parametrize("order", [1, -1])
def test_the_norm_of_all_gradients_is_the_hybrids(backend: str, order: int) -> None:
    """Bit for bit that of one optimizer with the same groups in the same order."""
    clip = built("sgd", "fp32", "clip:norm=0.1")
    sides = []
    for kind in ("one", "two", "beside lion"):
        of = params()
        groups = [*of][::order]
        if kind == "one":
            made: Any = clip([{"params": g} for g in groups], backend=backend)
        else:
            other = clip if kind == "two" else Lion
            classes = [clip, other][::order]
            made = signconv.hybrid(
                *(c(g, backend=backend) for c, g in zip(classes, groups, strict=True))
            )
        for t in range(2):
            give(of, t)
            made.step()
        sides.append([p.detach() for p in chain(*of)])
    assert equal(sides[0], sides[1])
    assert equal(sides[0][:2], sides[2][:2])
    of = params()
    alone = clip(of[0], backend=backend)
    for t in range(2):
        give(of, t)
        alone.step()
    assert not equal(sides[0][:2], everything(of[:1]))


def test_the_others_squares_are_added_up_in_the_hybrids_order() -> None:
    of = params()
    give(of, 0)
    clip, lion = built("sgd", "fp32", "clip:norm=0.1").program, Lion.program
    on = torch.device("cpu")
    parts = [
        (lion, 2, {on: [(0, of[0][:1]), (1, of[0][1:])]}),
        (clip, 3, {}),
        (lion, 1, {on: [(0, of[1])]}),
    ]
    none, found, after = totals.beside(parts)
    assert none == after == {} and sorted(found) == [-2, -1, 3]
    squares = [sum(float((p.grad.double() ** 2).sum()) for p in x) for x in (of[0][:1], of[1])]
    assert [float(found[-2]), float(found[3])] == pytest.approx(squares)


def test_sums_of_a_rules_own_state_are_over_its_own() -> None:
    sides = []
    for together in (True, False):
        of = params()
        made: list[Any] = [Prodigy(of[0], seed=0), AdamW(of[1], seed=1)]
        made = [signconv.hybrid(*made)] if together else made
        for t in range(3):
            give(of, t)
            for o in made:
                o.step()
        sides.append(everything(of, *made))
    assert equal(*sides)


@every
@pytest.mark.parametrize("where", [0, 1])
def test_a_step_is_skipped_by_all_or_none(backend: str, where: int) -> None:
    """Though only one of them was asked to look."""
    of = params()
    made = signconv.hybrid(
        Lion(of[0], backend=backend), AdamW(of[1], skip_nonfinite=True, backend=backend)
    )
    give(of, 0)
    made.step()
    before = everything(of, made)
    give(of, 1)
    assert of[where][0].grad is not None
    of[where][0].grad.view(-1)[3] = torch.inf
    made.step()
    assert equal(everything(of, made), before)
    assert made.skipped_steps == 1
    give(of, 1)
    made.step()
    assert made.skipped_steps == 1
    assert not equal(everything(of, made)[:1], before[:1])


def test_scale_and_flag_set_by_hand_reach_the_parts_for_the_step() -> None:
    of, made = stepped()
    other = params()
    by_themselves = parts(other)
    for t in range(2):
        give(other, t)
        for o in by_themselves:
            o.step()
    made.grad_scale = torch.tensor(4.0)
    for o in by_themselves:
        o.grad_scale = torch.tensor(4.0)
    for flag in (0.0, 1.0):
        made.found_inf = torch.tensor(flag)
        for o in by_themselves:
            o.found_inf = torch.tensor(flag)
        for x in (of, other):
            give(x, 2)
        for o in (made, *by_themselves):
            o.step()
        assert equal(everything(of, made), everything(other, *by_themselves))
    assert not any(hasattr(p, n) for p in made.parts.values() for n in ("grad_scale", "found_inf"))


def test_what_one_part_refuses_leaves_the_others_as_they_were() -> None:
    of, made = stepped()
    before = everything(of, made)
    give(of, 2)
    of[1][0].grad = torch.zeros(33).to_sparse()
    with pytest.raises(RuntimeError, match="SC414"):
        made.step()
    assert equal(everything(of, made), before)


def test_parameters_of_two_parts_that_share_memory_are_refused() -> None:
    p = torch.ones(64)
    both = [nn.Parameter(p), nn.Parameter(p[:32])]
    made = signconv.hybrid(Lion(both[:1]), AdamW(both[1:]))
    give([both], 0)
    with pytest.raises(ValueError, match="SC427"):
        made.step()
    assert torch.equal(p, torch.ones(64))


def test_closures_hooks_and_zero_grad() -> None:
    of = params()
    made = signconv.hybrid(*parts(of))
    seen: list[str] = []
    first = made.parts["Lion"]
    made.register_step_pre_hook(lambda *_: seen.append("before"))
    made.register_step_post_hook(lambda *_: seen.append("after"))
    first.register_step_pre_hook(lambda o, *_: seen.append(f"before {type(o).__name__}"))
    first.register_step_post_hook(lambda o, *_: seen.append(f"after {type(o).__name__}"))

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        seen.append("closure")
        made.zero_grad()
        loss = sum((p**2).sum() for p in chain(*of))
        loss.backward()
        return loss

    before = float(sum((p.detach() ** 2).sum() for p in chain(*of)))
    assert made.step(closure).item() == pytest.approx(before)
    assert seen == ["before", "closure", "before Lion", "after Lion", "after"]
    made.zero_grad()
    assert all(p.grad is None for p in chain(*of))


def test_a_scheduler_of_a_part_sees_its_steps() -> None:
    of = params()
    made = signconv.hybrid(*parts(of))
    scheduler = lr_scheduler.StepLR(made.parts["Lion"], step_size=1)
    give(of, 0)
    made.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
    assert made.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_grad_scaler_steps_it_and_skips_it() -> None:
    of = params()
    made = signconv.hybrid(*parts(of))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for bad in (False, True):
        made.zero_grad()
        before = everything(of, made)
        loss = sum((p**2).sum() for p in chain(*of)) * (torch.inf if bad else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(made)
        scaler.step(made)
        scaler.update()
        assert equal(everything(of, made), before) == bad
    assert scaler.get_scale() == 512.0


def test_extra_inputs_go_to_the_parts_that_read_them() -> None:
    sides = []
    for how in ("part", "list", "mapping"):
        of = params()
        made: list[Any] = [AdamW(of[1], seed=0), Sophia(of[0], seed=1)]
        give(of, 0)
        hessian = {p: torch.full_like(p, 0.5) for p in of[0]}
        if how == "part":
            made[0].step()
            made[1].step(hessian=hessian)
        else:
            given = [hessian.get(p) for p in chain(of[1], of[0])]
            made = [signconv.hybrid(*made)]
            made[0].step(hessian=hessian if how == "mapping" else given)
        sides.append(everything(of, *made))
    assert equal(sides[0], sides[2]) and equal(sides[1], sides[2])
    with pytest.raises(TypeError, match=r"none of AdamW, Sophia has .*'hesian'.*hessian \[SC465\]"):
        made[0].step(hesian=1)
    with pytest.raises(ValueError, match=r"each of the 5 parameters.*SC468"):
        made[0].step(hessian=[None])


def test_a_hook_of_a_part_may_pass_its_inputs() -> None:
    sides = []
    for how in ("hook", "step"):
        of = params()
        made = signconv.hybrid(Sophia(of[0], seed=0), AdamW(of[1], seed=1))
        given = {"hessian": {p: torch.full_like(p, 0.5) for p in of[0]}}
        if how == "hook":
            made.parts["Sophia"].register_step_pre_hook(lambda o, *_, given=given: ((o,), given))
            given, wrong = {}, {"hesian": 1}
        give(of, 0)
        made.step(**given)
        sides.append(everything(of, made))
    assert equal(*sides)
    made.parts["AdamW"].register_step_pre_hook(lambda o, *_: ((o,), wrong))
    with pytest.raises(TypeError, match="SC465"):
        made.step()
    assert equal(everything(of, made), sides[1])


def test_evaluation_and_frozen_steps() -> None:
    of = params()
    made = signconv.hybrid(ScheduleFreeAdamW(of[0], lr=0.1), AdamW(of[1]))
    for t in range(2):
        give(of, t)
        made.step()
    before = everything(of)
    made.eval()
    assert not equal(everything(of[:1]), before[: len(of[0])])
    with pytest.raises(RuntimeError, match="SC460"):
        made.step()
    made.train()
    assert equal(everything(of), before)
    with made.frozen():
        for t in range(2):
            rng = torch.Generator().manual_seed(t)
            for p in chain(*of):
                assert p.grad is not None
                p.grad.copy_(torch.randn(p.shape, generator=rng))
            made.step()
    assert not equal(everything(of), before)


@pytest.mark.parametrize("first", [Lion, Spectral], ids=["lion", "msign"])
def test_release_and_offload_give_the_same_bits(first: Any) -> None:
    sides = []
    for how in ("plain", "release", "offload"):
        of = params()
        cls = built(Spectral) if first is Spectral else first
        made = signconv.hybrid(cls(of[0], seed=0), AdamW(of[1], seed=1))
        if how == "release":
            signconv.gradient_release(made)
        if how == "offload":
            handle = offload._offload(made, 1 << 12)
            assert made.offloaded
        for _ in range(2):
            sum((p**2).sum() for p in chain(*of)).backward()
            assert how != "release" or all(p.grad is None for p in chain(*of))
            made.step()
            made.zero_grad()
        assert made.released == (how == "release")
        if how == "offload":
            handle.remove()
            assert not made.offloaded
        sides.append(everything(of, made))
    assert equal(sides[0], sides[1]) and equal(sides[0], sides[2])


def test_offloaded_parts_skip_with_the_others() -> None:
    of = params()
    made = signconv.hybrid(*parts(of, skip_nonfinite=True))
    give(of, 0)
    made.step()
    offload._offload(made.parts["Lion"], 1 << 12)
    before = everything(of, made)
    give(of, 1)
    of[1][0].grad = torch.full((33,), torch.nan)
    made.step()
    assert equal(everything(of, made), before)


def test_a_compiled_step_is_one_operator() -> None:
    sides = []
    for compiled in (True, False):
        of = params()
        made = signconv.hybrid(*parts(of, skip_nonfinite=True))
        step = torch.compile(made.step, backend="eager", fullgraph=True) if compiled else made.step
        for t in range(3):
            give(of, t)
            if t == 1:
                of[1][0].grad = torch.full((33,), torch.nan)
            step()
        sides.append(everything(of, made))
        assert made.skipped_steps == 1
    assert equal(*sides)


@pytest.mark.gpu
@pytest.mark.parametrize("clipped", [False, True])
def test_a_captured_step_skips_all_or_none(clipped: bool) -> None:
    first = built("sgd", "fp32", "clip:norm=0.1") if clipped else Lion
    ends = []
    for captured in (True, False):
        of = [[nn.Parameter(p.detach().cuda()) for p in x] for x in params()]
        made = signconv.hybrid(first(of[0], seed=0), AdamW(of[1], skip_nonfinite=True, seed=1))
        grads = [torch.zeros_like(p) for p in chain(*of)]
        for p, g in zip(chain(*of), grads, strict=True):
            p.grad = g
        step = made.step
        stream = torch.cuda.Stream()
        for t in range(5):
            rng = torch.Generator().manual_seed(t)
            for g in grads:
                g.copy_(torch.randn(g.shape, generator=rng))
            if t == 3:
                grads[-1][0] = torch.nan
            if t == 2 and captured:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    made.step()
                step = graph.replay
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
        assert made.skipped_steps == 1
        ends.append([x.cpu() for x in everything(of, made)])
    assert equal(*ends)


# ---------------------------------------------------------------- groups and state


def test_groups_are_the_parts_own_and_edits_by_hand_reach_them() -> None:
    of, made = stepped()
    assert [g["rule"] for g in made.param_groups] == ["Lion", "AdamWStoSign"]
    made.add_param_group({"params": (nn.Parameter(torch.ones(3)) for _ in "x"), "rule": "Lion"})
    first = made.parts["Lion"]
    assert first.param_groups[1] is made.param_groups[1]
    made.param_groups[1]["lr"] = 0.5
    assert first.param_groups[1]["lr"] == 0.5
    gone = made.param_groups.pop(1)
    assert len(made.param_groups) == 2 and len(first.param_groups) == 1
    made.param_groups.append(gone)
    assert [g["rule"] for g in made.param_groups] == ["Lion", "Lion", "AdamWStoSign"]
    assert first.param_groups[1] is gone
    first.param_groups.pop()
    assert len(made.param_groups) == 2
    give(of, 3)
    made.step()


def test_two_parts_of_one_class_have_rules_of_their_own() -> None:
    a, b = params()
    made = signconv.hybrid(AdamW(a), AdamW(b, lr=0.5))
    assert [*made.parts] == ["AdamW", "AdamW2"]
    p = nn.Parameter(torch.ones(4))
    made.add_param_group({"params": p, "rule": "AdamW2"})
    assert made.param_groups[-1]["lr"] == 0.5 and made.parts["AdamW2"].param_groups[-1]["params"]
    assert made.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("group", "match"),
    [
        ({}, "says no rule: it needs one of Lion, AdamWStoSign"),
        ({"rule": "Muon"}, "says rule='Muon'"),
        ({"rule": "Lion"}, r"of shape \[33\], is in AdamWStoSign and in Lion"),
    ],
)
def test_groups_that_are_refused(group: dict[str, Any], match: str) -> None:
    of, made = stepped()
    before = made.state_dict()
    with pytest.raises(ValueError, match=match):
        made.add_param_group({"params": [of[1][0]], **group})
    assert made.state_dict()["param_groups"] == before["param_groups"]


def test_a_rule_that_is_edited_is_refused() -> None:
    of, made = stepped()
    made.param_groups[0]["rule"] = "AdamWStoSign"
    give(of, 2)
    before = everything(of, made)
    with pytest.raises(ValueError, match="a group stays"):
        made.step()
    assert equal(everything(of, made), before)


def test_what_no_hybrid_is_made_of() -> None:
    a, b = params()
    with pytest.raises(TypeError, match="got Adam; step others beside"):
        signconv.hybrid(Lion(a), torch.optim.Adam(b))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a hybrid: give its parts"):
        signconv.hybrid(signconv.hybrid(Lion(a)))  # type: ignore[arg-type]
    named = [("head.bias", b[0])]
    with pytest.raises(ValueError, match=r"'head\.bias' is in Lion and in AdamW"):
        signconv.hybrid(Lion([*a, b[0]]), AdamW(named))


def test_state_is_one_mapping() -> None:
    of, made = stepped()
    a, b = made.parts.values()
    new = nn.Parameter(torch.ones(3))
    assert len(made.state) == 5 and {*made.state} == {*of[0], *of[1]}
    assert made.state[of[1][0]] is b.state[of[1][0]]
    assert new not in made.state and made.state.get(new) is None and new not in a.state
    b.add_param_group({"params": [new]})
    made.state[new]["mine"] = 3
    assert b.state[new] == {"mine": 3}
    assert made.state.pop(new) == {"mine": 3} and new not in b.state
    made.state["note"] = 1
    assert a.state["note"] == 1
    del made.state["note"]
    made.state = dict(made.state)
    assert [len(o.state) for o in (a, b)] == [2, 3]
    made.state.clear()
    assert not a.state and not b.state


# ---------------------------------------------------------------- checkpoints and copies


def fresh() -> tuple[Any, Hybrid]:
    of = params()
    return of, signconv.hybrid(*parts(of))


def test_a_checkpoint_in_mid_training_goes_on_bit_for_bit() -> None:
    of, made = stepped(2)
    saved = copy.deepcopy(made.state_dict())
    assert [g["params"] for g in saved["param_groups"]] == [[0, 1], [2, 3, 4]]
    weights = everything(of)
    give(of, 2)
    made.step()
    other, loaded = fresh()
    for p, w in zip(chain(*other), weights, strict=True):
        p.data.copy_(w)
    loaded.load_state_dict(saved)
    assert loaded.param_groups[0] is loaded.parts["Lion"].param_groups[0]
    give(other, 2)
    loaded.step()
    assert equal(everything(of, made), everything(other, loaded))


def _another_rule(saved: Any) -> None:
    saved["param_groups"][1]["rule"] = "AdamW"


def _no_rule(saved: Any) -> None:
    del saved["param_groups"][0]["rule"]


def _fewer(saved: Any) -> None:
    saved["param_groups"][1]["params"].pop()


def _another_program(saved: Any) -> None:
    saved["param_groups"][1]["program"] = "0" * 16


def _shape(saved: Any) -> None:
    saved["state"][4]["m"] = saved["state"][4]["m"][:3]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_another_rule, "SC514"),
        (_no_rule, "SC514"),
        (_fewer, "SC502"),
        (_another_program, "SC503"),
        (_shape, "SC507"),
        (lambda saved: saved["param_groups"].pop(), "SC514"),
        (lambda saved: saved.pop("state"), "SC501"),
    ],
)
def test_nothing_is_half_loaded(spoil: Any, code: str) -> None:
    _, made = stepped(3)
    saved = copy.deepcopy(made.state_dict())
    saved["param_groups"][0]["lr"] = 0.5
    spoil(saved)
    of, loaded = stepped(1)
    before = everything(of, loaded)
    with pytest.raises(ValueError, match=code):
        loaded.load_state_dict(saved)
    assert equal(everything(of, loaded), before)
    assert loaded.param_groups[0]["lr"] == 1e-2


def test_torchs_checkpoints_go_round_by_name() -> None:
    def made() -> tuple[nn.Module, Hybrid]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 3))
        first, second = signconv.matrices(model)
        return model, signconv.hybrid(Lion(first, seed=0), AdamW(second, seed=1))

    def train(model: nn.Module, optimizer: Hybrid, t: int) -> None:
        give([model.parameters()], t)
        optimizer.step()

    model, one = made()
    train(model, one, 0)
    saved = copy.deepcopy(get_optimizer_state_dict(model, one))
    assert [g["rule"] for g in saved["param_groups"]] == ["Lion", "AdamW"]
    other, two = made()
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, two, saved)
    for m, o in ((model, one), (other, two)):
        train(m, o, 1)
    assert equal(everything([model.parameters()], one), everything([other.parameters()], two))


def test_copies_and_pickles_go_on() -> None:
    of, made = stepped()
    sides = []
    for way in (lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        mine, optimizer = way((of, made))
        assert optimizer is made or optimizer.parts["Lion"] is not made.parts["Lion"]
        sides.append((mine, optimizer))
    for mine, optimizer in sides:
        give(mine, 2)
        optimizer.step()
    first, *others = (everything(mine, optimizer) for mine, optimizer in sides)
    assert all(equal(first, x) for x in others)


def test_master_weights_of_all_parts() -> None:
    model = nn.Sequential(nn.Linear(64, 32)).bfloat16()
    first, second = signconv.matrices(model)
    made = signconv.hybrid(
        Lion(first, master="split", lr=1e-5), AdamW(second, master="split", lr=1e-5)
    )
    wanted = {n: torch.randn(p.shape) for n, p in model.named_parameters()}
    made.load_master_weights(model, wanted)
    found = made.master_weights(model)
    assert all(torch.equal(found[n], w) for n, w in wanted.items())
    made.eval()  # nothing to evaluate at another point
    give([model.parameters()], 0)
    made.step()
    assert not any(torch.equal(made.master_weights(model)[n], w) for n, w in wanted.items())


# ---------------------------------------------------------------- inspect


def test_inspect_shows_each_tensors_rule() -> None:
    of, made = stepped()
    signconv.inspect(made)
    give(of, 2)
    made.step()
    found = signconv.inspect(made)
    assert found.optimizer == "Lion + AdamWStoSign" and found.watched == 3
    assert [r.rule for r in found.rows if not r.moment] == ["Lion"] * 2 + ["AdamWStoSign"] * 3
    assert [r.parameter for r in found.rows if not r.moment][2] == "group 1, 0"
    assert all(r.stalled is not None for r in found.rows if r.moment)
    assert found.to_dict()["rows"][0]["rule"] == "Lion"
    text = str(found)
    assert "rule" in text and text.count("AdamWStoSign ") >= 3
    alone = signconv.inspect(made.parts["Lion"])
    assert "rule" not in str(alone) and alone.rows[0].rule == "Lion"
    assert alone.state_bytes < found.state_bytes
