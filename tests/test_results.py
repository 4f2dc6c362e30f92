"""examples/results: the plan, what a spike is, the scheduler, every --quick mode, the pages."""

from __future__ import annotations

import importlib
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from signconv.ir.evaluate import Evaluator
from signconv.pipeline import resolve
from tests.support import ROOT, environment

RESULTS = ROOT / "examples" / "results"
sys.path.insert(0, str(RESULTS))
plan = pytest.importorskip("plan")
runs = pytest.importorskip("runs")
data = pytest.importorskip("data")
gpu_all = pytest.importorskip("gpu_all")
claims = pytest.importorskip("claims")
page = pytest.importorskip("page")
SCRIPTS = {n: importlib.import_module(n) for n in page.CLAIMS if n != "converge"}
sys.path.remove(str(RESULTS))


def run(script: str, *arguments: str) -> str:
    """Run a script of examples/results on one thread; its output."""
    command = [sys.executable, str(RESULTS / script), *arguments]
    done = subprocess.run(
        command, env=environment() | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
    full=100, short=10, finetune=5, table=("adamw-fp32", "s3"), extras=(), near=("s3",)
)


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


def test_long_runs_beside_the_chosen_lr_come_last() -> None:
    runs_ = list(finish(1e-3, ["fp8_state"], set()))
    beside = [(r.id, r.lr, r.tokens, r.seed) for r in runs_[-4:]]
    assert beside == [
        (f"near/s3/{lr:g}/{seed}", lr, SCALE.full, seed) for seed in (1, 2) for lr in (3e-4, 3e-3)
    ]
    assert not any(r.id.startswith("near") for r in runs_[:-4])


def test_a_sweep_in_which_all_diverges_ends() -> None:
    done: dict[str, Any] = {}
    for _ in range(plan.WIDEST):
        missing, lr = plan.sweep(done, "adamw-raw", SCALE)
        assert lr is None or len(done) == plan.WIDEST
        done |= {r.id: {"id": r.id, "status": "diverged"} for r in missing}
    assert plan.sweep(done, "adamw-raw", SCALE) == ([], min(r["lr"] for r in _lrs(done)))


def _lrs(done: dict[str, Any]) -> list[dict[str, float]]:
    return [{"lr": float(key.rsplit("/", 1)[1])} for key in done]


def test_seeds_of_the_sweep_are_not_reported() -> None:
    seeds: dict[str, set[int]] = {}
    for r in finish(1e-3, ["fp8_state", "spikes", "ablation"], set()):
        seeds.setdefault(r.id.split("/")[0], set()).add(r.seed)
    assert seeds.pop("sweep") == {plan.SWEEP_SEED}
    assert seeds == {kind: {1, 2} for kind in ("full", "spikes", "short", "near")}


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


# ---------------------------------------------------------------- what runs


def test_the_scheduler_keeps_records_and_resumes(tmp_path: Path) -> None:
    common = ("--device", "cpu", "--tiny", "--claims", "ema_stall", "--max-bytes", "800000")
    run("gpu_all.py", *common, "--out", str(tmp_path / "a"))
    lines = (tmp_path / "a" / "runs.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {r["status"] for r in records} == {"ok"}
    assert {r["id"].split("/")[0] for r in records} == {"sweep", "short"}
    facts = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert facts["not_run"] == [] and {t["kind"] for t in facts["texts"]} == set(data.KINDS)

    # The second call is given all but two records, one of which failed: it trains those
    broken = json.dumps({"id": records[-2]["id"], "status": "error"})
    (tmp_path / "some.jsonl").write_text("\n".join([*lines[:-2], broken]) + "\n")
    done = ("--done", str(tmp_path / "some.jsonl"))
    run("gpu_all.py", *common, *done, "--out", str(tmp_path / "b"))
    again = [json.loads(x) for x in (tmp_path / "b" / "runs.jsonl").read_text().splitlines()]
    assert {r["id"] for r in again} == {r["id"] for r in records[-2:]}
    same = {r["id"]: r["train_loss"] for r in records}
    for r in again:  # the same seed, the same losses
        assert r["train_loss"] == same[r["id"]]


class Lost:
    """A scheduler whose only worker is ended by every run it is given."""

    def __init__(self, folder: Path) -> None:
        self.made = object.__new__(gpu_all.Scheduler)
        vars(self.made).update(
            done={}, out=folder, idle=set(), busy={}, workers={}, restarts=0, lost_once=set(),
            rate=0.0, began=0.0,
        )  # fmt: skip

    def loses(self, run_: Any) -> None:
        self.made.workers[0] = self
        self.made.busy[0] = run_
        self.made.lost(0, "exit code -9")

    def join(self, seconds: float) -> None:
        """Of the process that it stands for."""


def test_a_run_lost_with_its_worker_is_tried_once_more(tmp_path: Path) -> None:
    scheduler, lost = Lost(tmp_path), runs.Run("sweep/adamw/0.1", "sweep", "adamw", 0.1, 100, 0)
    scheduler.loses(lost)
    assert not scheduler.made.done and not scheduler.made.busy  # pending again
    scheduler.loses(lost)
    (record_,) = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert (record_["id"], record_["status"]) == (lost.id, "error")
    assert record_["error"] == "exit code -9" and lost.id in scheduler.made.done


CLAIMS = ("fp8_state", "spikes", "finetune", "ablation", "ema_stall")


@pytest.mark.parametrize("claim", CLAIMS)
def test_quick(claim: str, tmp_path: Path) -> None:
    run(f"{claim}.py", "--quick", "--out", str(tmp_path))
    made = json.loads((tmp_path / f"{claim}.json").read_text())
    assert made["claim"] == claim and made["runs"] and made["summary"]["rows"]
    assert {t["kind"] for t in made["facts"]["texts"]} == set(data.KINDS)
    assert (tmp_path / f"{claim}.png").read_bytes().startswith(b"\x89PNG")
    ends = [r["held_out"][-1][1] for r in made["runs"] if r["optimizer"] == "adamw-fp32"]
    assert all(end < 5.6 for end in ends)  # of ln 256 = 5.545: it learned, or began where it was
    if claim == "fp8_state":
        (raw,) = (r for r in made["summary"]["rows"] if r["optimizer"] == "adamw-raw")
        first = next(r for r in made["runs"] if r["optimizer"] == "adamw-raw")
        assert first["zero_shares"]["1"]["v"][0] > 0.99  # the collapse
        assert raw["held_out"]["mean"] is None or raw["held_out"]["mean"] > max(ends)
    if claim == "ema_stall":  # algorithms.md C8: stuck at 0.75 after 11 steps
        paths = made["summary"]["paths"]
        assert paths["0.9"]["nearest"][-1] == 0.75
        assert paths["0.9"]["stochastic"][-1] == pytest.approx(1 - 0.9**40, abs=0.01)
        assert paths["0.99"]["stochastic"][-1] == pytest.approx(1 - 0.99**40, abs=0.01)


def test_stosignsgd_converges_where_signsgd_does_not(tmp_path: Path) -> None:
    """algorithms.md C5 and C6, a tenth of the steps."""
    run("converge.py", "--quick", "--out", str(tmp_path))
    made = json.loads((tmp_path / "converge.json").read_text())["summary"]
    rows, rate = made["rows"], made["rate"]
    assert rows["signsgd"]["least"] > 1.29
    for name in ("stosignsgd", "sgd-expected"):
        assert rows[name]["average"]["max"] < 0.05
    assert rate["largest_share_of_bound"] < 0.6
    assert -0.55 < rate["slopes"]["regret"] < -0.38
    assert (tmp_path / "converge.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- the committed results


@pytest.mark.parametrize("claim", CLAIMS)
def test_committed_figures_follow_from_the_records(claim: str) -> None:
    every = gpu_all.read_records([claims.RESULTS / "runs.jsonl"])
    records = claims.kept(every, claim, plan.FULL_SCALE)
    summary = SCRIPTS[claim].summarize(records, plan.FULL_SCALE)
    made = json.loads((claims.RESULTS / f"{claim}.json").read_text())
    assert made["runs"] == sorted(records)
    for key, value in json.loads(json.dumps(summary, default=list)).items():
        assert made["summary"][key] == value, f"docs/results/{claim}.json: {key}"


@pytest.mark.parametrize("name", page.PAGES.values())
def test_pages_follow_from_the_figures(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page.render()[name] == text, "run examples/results/page.py"


def test_a_page_stops_where_its_sentence_is_not_true() -> None:
    with pytest.raises(ValueError, match="no longer say: S3 is ahead"):
        page.expect(False, "S3 is ahead")


def test_a_difference_within_the_spread_is_none() -> None:
    a = {"mean": 1.0, "half_range": 0.02}
    assert page.gap(a, {"mean": 1.03, "half_range": 0.02}) == 0
    assert page.against(a, {"mean": 1.03, "half_range": 0.02}) == "within the spread"
    assert page.against(a, {"mean": 1.05, "half_range": 0.02}) == "-0.050"
