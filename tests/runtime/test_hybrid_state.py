"""Hybrids: param groups, state, checkpoints and copies, and what inspect shows of them."""

from __future__ import annotations

import copy
import pickle
from itertools import chain
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.lion import Lion
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import signconv
from signconv.runtime.hybrid import Hybrid
from tests.support.hybrids import equal, everything, give, params, parts, stepped


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
