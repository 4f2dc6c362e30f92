"""examples/results: the scheduler, every --quick mode, the pages."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, environment

RESULTS = ROOT / "examples" / "results"
sys.path.insert(0, str(RESULTS))
plan = pytest.importorskip("plan")
runs = pytest.importorskip("runs")
data = pytest.importorskip("data")
gpu_all = pytest.importorskip("gpu_all")
claims = pytest.importorskip("claims")
page = pytest.importorskip("page")
stored = pytest.importorskip("records")
again = pytest.importorskip("again")
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


# ---------------------------------------------------------------- what runs


@pytest.mark.long
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


CLAIMS = (
    "fp8_state", "spikes", "finetune", "ablation", "ema_stall", "noise", "stosignsgd", "four_bits",
    "large", "plateau",
)  # fmt: skip


@pytest.mark.long
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
    if claim == "ema_stall":  # docs/design.md#nearest-rounding-stalls: stuck at 0.75 after 11 steps
        paths = made["summary"]["paths"]
        assert paths["0.9"]["nearest"][-1] == 0.75
        assert paths["0.9"]["stochastic"][-1] == pytest.approx(1 - 0.9**40, abs=0.01)
        assert paths["0.99"]["stochastic"][-1] == pytest.approx(1 - 0.99**40, abs=0.01)


@pytest.mark.long  # tests/theorems/test_convergence.py asks the same of the class itself
def test_stosignsgd_converges_where_signsgd_does_not(tmp_path: Path) -> None:
    """docs/design.md#where-signsgd-stalls, a tenth of the steps."""
    run("converge.py", "--quick", "--out", str(tmp_path))
    made = json.loads((tmp_path / "converge.json").read_text())["summary"]
    rows, rate = made["rows"], made["rate"]
    assert rows["signsgd"]["least"] > 1.29
    for name in ("stosignsgd", "sgd-expected"):
        assert rows[name]["average"]["max"] < 0.05
    assert rate["largest_share_of_bound"] < 0.6
    assert -0.55 < rate["slopes"]["regret"] < -0.38
    assert (tmp_path / "converge.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run("digits.py", "--quick", "--out", str(tmp_path))
    made = json.loads((tmp_path / "digits.json").read_text())
    assert {r["status"] for r in made["runs"]} == {"ok"}
    rows = {row["optimizer"]: row for row in made["summary"]["rows"]}
    assert set(rows) == set(SCRIPTS["digits"].OPTIMIZERS)
    assert rows["adamw-fp32"]["test_loss"]["mean"] < 1.8  # of ln 10 = 2.303: it learned
    assert rows["s3gd"]["state_bytes_per_parameter"] < 1.05
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- the committed results


def test_committed_digits_follow_from_their_records() -> None:
    made = json.loads((stored.RESULTS / "digits.json").read_text())
    records = {r["id"]: r for r in made["runs"]}
    summary = SCRIPTS["digits"].summarize(records)
    assert json.loads(json.dumps(summary)) == made["summary"]


@pytest.mark.parametrize("claim", [*CLAIMS, "papers_speed", "papers_s3"])
def test_committed_figures_follow_from_the_records(claim: str) -> None:
    every = stored.read_records(stored.committed())
    records = claims.kept(every, claim, plan.FULL_SCALE)
    summary = SCRIPTS[claim].summarize(records, plan.FULL_SCALE)
    made = json.loads((stored.RESULTS / f"{claim}.json").read_text())
    assert made["runs"] == sorted(records)
    for key, value in json.loads(json.dumps(summary, default=list)).items():
        assert made["summary"][key] == value, f"docs/results/{claim}.json: {key}"


def test_a_line_of_the_records_leaves_out_nothing_that_reading_does_not_put_back(
    tmp_path: Path,
) -> None:
    usual = {"id": "a", "claim": "sweep", "steps": 9, "steps_done": 9, "seed": 0, **stored.USUAL}
    odd = {
        **usual,
        "id": "b",
        "claim": "spikes",
        "steps_done": 4,
        "status": "diverged",
        "spikes": 1,
    }
    (given := tmp_path / "runs.jsonl").write_text(f"{json.dumps(usual)}\n{json.dumps(odd)}\n")
    stored.write(stored.read_records([given]).values(), tmp_path)
    assert (tmp_path / "runs_sweep.jsonl").read_text() == '{"id": "a", "steps": 9, "seed": 0}\n'
    (again,) = stored.read_lines(tmp_path / "runs_spikes.jsonl")
    assert again == odd
    assert stored.read_records(stored.committed(tmp_path)) == {"a": usual, "b": odd}


def test_a_run_of_each_claim_is_trained_again(tmp_path: Path) -> None:
    """Of the first seed the one that ended lowest, and how far from its record it ends then."""
    plain = {"status": "ok", "seed": 1, "lr": 0.1, "tokens": 9, "start": "", "save": "", "text": ""}
    plain |= {"evaluations": 10, "detail": False, "optimizer": "x"}

    def record(name: str, end: float, **changed: Any) -> dict[str, Any]:
        ends = {"held_out": [[0, 9.0], [9, end]], "steps": 9}
        return {**plain, "id": name, "claim": name[0], **ends, **changed}

    records = {
        r["id"]: r
        for r in (
            record("a/1", 2.0), record("a/2", 1.8, seed=2), record("a/3", 1.5, start="pt"),
            record("a/4", 2.5, lr=0.3), record("b/1", 3.0), record("c/1", 9.0, status="diverged"),
        )
    }  # fmt: skip
    wanted = again.chosen(records, ["b", "a", "c", "d"])
    assert [run.id for run in wanted] == ["b/1", "a/1"] and wanted[1].lr == 0.1
    made = again.rows(records, [record("b/1", 3.25), record("a/1", 2.125)])
    assert [(r["id"], r["recorded"], r["again"], r["spread"]) for r in made] == [
        ("a/1", 2.0, 2.125, 0.1), ("b/1", 3.0, 3.25, None)
    ]  # fmt: skip


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
    assert page.versus(a, {"mean": 1.05, "half_range": 0.02}, "AdamW") == "0.050 below AdamW"
    assert page.versus(a, a, "AdamW") == "within the spread of AdamW"
