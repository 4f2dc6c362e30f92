"""Hybrids: the bits of their parts, and all or nothing in every step, load and refusal."""

from __future__ import annotations

import warnings
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.lion import Lion
from signconv.generated.prodigy import Prodigy
from signconv.generated.schedulefree_adamw import ScheduleFreeAdamW
from signconv.generated.sophia import Sophia
from torch import Tensor, nn
from torch.optim import lr_scheduler

import signconv
from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, msign
from signconv.runtime import offload, totals
from tests.support.hybrids import equal, everything, give, params, parts, stepped

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
