"""examples/results: the plan, what a spike is, the text, the forms of S3."""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from signconv.ir.evaluate import Evaluator
from signconv.pipeline import resolve
from tests.support import ROOT

RESULTS = ROOT / "examples" / "results"
sys.path.insert(0, str(RESULTS))
plan = pytest.importorskip("plan")
runs = pytest.importorskip("runs")
data = pytest.importorskip("data")
gpu_all = pytest.importorskip("gpu_all")
search = pytest.importorskip("search")
optimizers = importlib.import_module("optimizers")
sys.path.remove(str(RESULTS))


# ---------------------------------------------------------------- what a spike is


def wave(steps: int) -> list[float]:
    """A loss that falls, with a ripple as large as the noise of batches."""
    return [2 + 3 / (1 + 0.1 * i) + 0.02 * math.sin(7 * i) for i in range(steps)]


def test_a_smooth_loss_has_no_spike() -> None:
    assert runs.spikes(wave(300), 15) == 0


def test_spikes_are_counted_once_each() -> None:
    losses = wave(300)
    for step in (100, 103, 200):  # the first two belong together
        losses[step] += 0.5
    assert runs.spikes(losses, 15) == 2
    losses[250] = math.nan
    assert runs.spikes(losses, 15) == 3
    assert runs.spikes(losses, 150) == 2  # what the warmup does is not counted


def test_a_small_or_an_ordinary_rise_is_no_spike() -> None:
    losses = wave(300)
    losses[100] += 0.05
    assert runs.spikes(losses, 15) == 0
    noise = random.Random(0)
    noisy = [x + noise.gauss(0, 0.1) for x in wave(300)]  # six deviations are 0.6
    assert runs.spikes(noisy, 15) == 0
    noisy[200] = noisy[199] + 1.0
    assert runs.spikes(noisy, 15) == 1


# ---------------------------------------------------------------- the plan

SCALE = plan.Scale(
    full=100, short=10, finetune=5, table=("adamw-fp32", "s3"), extras=(), near=("s3",),
    defaults=("s3",), closer=("s3",), more_seeds=(3,),
)  # fmt: skip


def record(run_: Any, loss: float) -> dict[str, Any]:
    return {"id": run_.id, "status": "ok", "held_out": [[0, 5.0], [1, loss]]}


def finish(
    best: float, claims: list[str], have: set[str], done: dict[str, Any] | None = None
) -> Iterator[Any]:
    """Every run of a plan, as if lr = best gave the least loss; records go to done."""
    done = {} if done is None else done
    while run_ := next(plan.pending(done, have, SCALE, claims), None):
        assert run_.id not in done
        done[run_.id] = record(run_, abs(math.log(run_.lr / best)))
        if run_.save:
            have.add(run_.save)
        yield run_


def test_a_sweep_widens_until_the_best_is_inside() -> None:
    runs_ = [r for r in finish(1e-2, ["fp8_state"], set()) if r.optimizer == "adamw-fp32"]
    swept = [r.lr for r in runs_ if r.claim == "sweep"]
    assert sorted(swept) == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    assert {r.lr for r in runs_ if r.id.startswith("full/")} == {1e-2}
    inside = [r.lr for r in finish(1e-3, ["fp8_state"], set()) if r.optimizer == "adamw-fp32"]
    assert sorted(set(inside)) == [3e-4, 1e-3, 3e-3]


def test_long_runs_beside_the_chosen_lr() -> None:
    """The short sweep chose well: its neighbours, every seed of the default's lrs, a third seed."""
    runs_ = list(finish(1e-3, ["fp8_state"], set()))
    assert {r.tokens for r in runs_ if r.id.startswith("near")} == {SCALE.full}
    first = next(i for i, r in enumerate(runs_) if r.id.startswith("near"))
    assert [r.id for r in runs_[first:]] == [
        "near/s3/0.0003/1", "near/s3/0.003/1",
        "near/s3/0.0002/1", "near/s3/0.0002/2", "near/s3/0.0003/2", "near/s3/0.003/2",
        "full/s3/3",
    ]  # fmt: skip


def test_the_sweep_of_long_runs_widens_too_and_seeds_follow_it() -> None:
    done: dict[str, Any] = {}
    while run_ := next(plan.pending(done, set(), SCALE, ["fp8_state"]), None):
        best = 1e-2 if run_.tokens == SCALE.full else 1e-3  # long runs like another lr
        done[run_.id] = record(run_, abs(math.log(run_.lr / best)))
    assert plan.sweep(done, "s3", SCALE) == ([], 1e-3)
    assert plan.full_sweep(done, "s3", SCALE) == ([], 1e-2)
    assert "near/s3/0.03/1" in done and "near/s3/0.1/1" not in done
    assert {"near/s3/0.01/2", "near/s3/0.01/3"} <= set(done) and "full/s3/3" not in done


def test_spikes_in_long_runs_and_with_more_seeds() -> None:
    ids = [r.id for r in finish(1e-3, ["spikes"], set())]
    for factor in plan.FACTORS:
        for name in SCALE.spikes:
            assert {f"spikes/{name}/x{factor}/{seed}" for seed in SCALE.seeds} <= set(ids)
    repeated = [f"spikes/{name}/x10/3" for name in SCALE.repeated_spikes]
    long = [f"long-spikes/{n}/x10/{seed}" for seed in SCALE.seeds for n in SCALE.long_spikes]
    assert set(long) <= set(ids) and ids[-4:] == repeated


def test_a_sweep_in_which_all_diverges_ends() -> None:
    done: dict[str, Any] = {}
    for _ in range(search.WIDEST):
        missing, lr = plan.sweep(done, "adamw-raw", SCALE)
        assert lr is None or len(done) == search.WIDEST
        done |= {r.id: {"id": r.id, "status": "diverged"} for r in missing}
    assert plan.sweep(done, "adamw-raw", SCALE) == ([], min(r["lr"] for r in _lrs(done)))


def _lrs(done: dict[str, Any]) -> list[dict[str, float]]:
    return [{"lr": float(key.rsplit("/", 1)[1])} for key in done]


def test_seeds_of_the_sweep_are_not_reported() -> None:
    seeds: dict[str, set[int]] = {}
    for r in finish(1e-3, ["fp8_state", "spikes", "ablation"], set()):
        seeds.setdefault(r.id.split("/")[0], set()).add(r.seed)
    assert seeds.pop("sweep") == {plan.SWEEP_SEED}
    kinds = ("full", "spikes", "short", "near", "long-spikes")
    assert seeds == {k: {1, 2} if k in ("near", "long-spikes") else {1, 2, 3} for k in kinds}


def test_fine_tuning_waits_for_the_checkpoint_and_makes_it_anew() -> None:
    done: dict[str, Any] = {}
    order = [r.id for r in finish(1e-3, ["finetune"], set(), done)]
    first = next(i for i, x in enumerate(order) if x.startswith("finetune"))
    assert order.index("full/adamw-fp32/1") < first
    # A later call: the record is there, the weights are not
    done = {k: v for k, v in done.items() if not k.startswith("finetune")}
    again = next(plan.pending(done, set(), SCALE, ["finetune"]))
    assert again.id == "base/0" and again.save == plan.CHECKPOINT
    assert next(plan.pending(done, {plan.CHECKPOINT}, SCALE, ["finetune"])).start == again.save


# ---------------------------------------------------------------- the text


def test_packages_stay_on_one_side(tmp_path: Path) -> None:
    for i in range(40):
        for j in range(3):
            path = tmp_path / f"package{i}" / f"module{j}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"x{i} = {j}\n" * 50)
    (tmp_path / "package0" / "copy.py").write_text("x1 = 1\n" * 50)  # of another package
    text = data.load_text("python", roots=[tmp_path])
    assert text.files == 120 and len(text.packages) + len(text.held_out_packages) == 40
    assert text.held_out_packages and not set(text.packages) & set(text.held_out_packages)
    share = len(text.held_out) / (len(text.train) + len(text.held_out))
    assert 0.04 < share < 0.15
    held = bytes(text.held_out.numpy()).decode()
    for name in text.packages:
        assert f"x{name[7:]} =" not in held
    assert data.load_text("python", roots=[tmp_path]).digest == text.digest
    (tmp_path / "package0" / "module0.py").write_text("x0 = 9\n")
    assert data.load_text("python", roots=[tmp_path]).digest != text.digest


def test_too_little_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "only.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="too little python text"):
        data.load_text("python", roots=[tmp_path])


def test_runs_on_another_text_are_not_resumed(tmp_path: Path) -> None:
    class Part:
        kind, digest, tokenizer = "python", "a", None

    facts = {"texts": [{"kind": "python", "sha256": "a"}]}
    (tmp_path / "environment1.json").write_text(json.dumps(facts))
    gpu_all.same_text([Part], [tmp_path / "runs.jsonl"])
    Part.digest = "b"
    with pytest.raises(SystemExit, match=r"python text on this machine is not that of .*ment1"):
        gpu_all.same_text([Part], [tmp_path / "runs.jsonl"])


# ---------------------------------------------------------------- the S3 paper's ablation


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("betas", ["Same", "Different"])
@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_forms_of_s3_follow_a_step_by_hand(p: int, betas: str, nesterov: bool) -> None:
    """arXiv 2507.06464, Alg. 1, and its ablation: two betas with Adam's bias correction."""
    name = f"S3P{p}{betas}{'Nesterov' if nesterov else ''}"
    program = resolve(f"{RESULTS / 's3_forms.py'}:{name}")
    evaluator = Evaluator(program, lr=0.01, weight_decay=0.1)
    a, b = (0.95, 0.95) if betas == "Same" else (0.9, 0.999)
    rng = np.random.default_rng(5)
    x, m, s = rng.normal(size=64), np.zeros(64), np.zeros(64)
    state, ours = evaluator.initial_state(x), x
    for t in range(1, 8):
        g = rng.normal(size=64)
        ours, state = evaluator.step(ours, g, state, t)
        m, s = a * m + (1 - a) * g, b * s + (1 - b) * np.abs(g) ** p
        over, under = (
            (a * m + (1 - a) * g, b * s + (1 - b) * np.abs(g) ** p) if nesterov else (m, s)
        )
        if betas == "Different":
            steps = t + 1 if nesterov else t
            over, under = over / (1 - a**steps), under / (1 - b**steps)
        x = x - 0.01 * (over / under ** (1 / p) + 0.1 * x)
    np.testing.assert_allclose(ours, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["s3-p5-same-nesterov", "s3-p5-different"])
def test_p_5_stays_within_fp32(name: str) -> None:
    """abs(g)^5 spans five times the decades of g: nothing of 1e-8 … 10 is lost."""
    choice = optimizers.CHOICES[name]
    rng = np.random.default_rng(3)
    sizes = 10.0 ** rng.uniform(-8, 1, size=(64, 32))
    x = torch.zeros(64, 32, requires_grad=True)
    optimizer = optimizers.make(name, [x], 1.0, seed=0)
    program = resolve(choice.spec)
    evaluator = Evaluator(program, lr=1.0, weight_decay=0.0)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    ours, state = np.zeros((64, 32)), evaluator.initial_state(np.zeros((64, 32)))
    for t in range(1, 6):
        g = (rng.normal(size=(64, 32)) * sizes).astype(np.float32)
        x.grad = torch.tensor(g) * choice.scale
        optimizer.step()
        ours, state = evaluator.step(ours, g.astype(np.float64), state, t)  # not scaled
    np.testing.assert_allclose(x.detach().numpy(), ours, rtol=1e-4, atol=1e-5)
