"""examples/results: the plan, the definition of a spike, the scheduler, and every --quick mode."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, environment

RESULTS = ROOT / "examples" / "results"
sys.path.insert(0, str(RESULTS))
plan = pytest.importorskip("plan")
runs = pytest.importorskip("runs")
data = pytest.importorskip("data")
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

SCALE = plan.Scale(full=100, short=10, finetune=5, table=("adamw-fp32", "s3"), extras=())


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
    assert seeds == {kind: {1, 2} for kind in ("full", "spikes", "short")}


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


CLAIMS = ("fp8_state", "spikes", "finetune", "ablation")


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
