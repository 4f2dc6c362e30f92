"""examples/results: the papers' setting, byte-pair tokens, two regimes of FP8, what is measured."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import ROOT, environment

RESULTS = ROOT / "examples" / "results"
sys.path.insert(0, str(RESULTS))
papers = pytest.importorskip("papers")
plan = pytest.importorskip("plan")
runs = pytest.importorskip("runs")
data = pytest.importorskip("data")
gpt = pytest.importorskip("gpt")
bpe, fp8_matmul, measures, optimizers, papers_page, texts = (
    importlib.import_module(name)
    for name in ("bpe", "fp8_matmul", "measures", "optimizers", "papers_page", "texts")
)
sys.path.remove(str(RESULTS))


# ---------------------------------------------------------------- byte-pair tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site-packages of forty small packages."""
    made = tmp_path_factory.mktemp("packages")
    for i in range(40):
        for j in range(4):
            path = made / f"package{i}" / f"module{j}.py"
            path.parent.mkdir(exist_ok=True)
            lines = (
                f"def function_{i}_{k}(value):\n    return value * {j} + {k}\n" for k in range(40)
            )
            path.write_text("".join(lines) + "# grün, 数\n")
    return made


@pytest.fixture(scope="module")
def text(folder: Path) -> Any:
    return data.load_text("python", roots=[folder])


@pytest.fixture(scope="module")
def tokens(text: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("tokenizers", reason="byte-pair tokens need the package tokenizers")
    return bpe.tokenized(text, 512, tmp_path_factory.mktemp("tokens"))


def test_tokens_hold_every_byte(text: Any, tokens: Any) -> None:
    assert tokens.train.dtype == torch.int16 and int(tokens.train.max()) < 512
    for side in ("train", "held_out"):
        assert int(tokens.lengths[getattr(tokens, side).long()].sum()) == len(getattr(text, side))
    facts = tokens.facts()
    assert facts["train_bytes"] == sum(text.packages.values())
    assert facts["tokenizer"]["vocabulary"] == 512 and len(facts["tokenizer"]["sha256"]) == 64


def test_the_vocabulary_is_the_same_again_and_the_cache_is_read(
    text: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = bpe.tokenized(text, 512, tmp_path)
    assert again.tokenizer == tokens.tokenizer and torch.equal(again.train, tokens.train)
    monkeypatch.setattr(bpe, "_make", None)
    assert torch.equal(bpe.tokenized(text, 512, tmp_path).held_out, tokens.held_out)


def test_pieces_are_the_text() -> None:
    whole = b"".join(b"line %d\n" % i for i in range(30_000)) + b"the end"
    assert "".join(bpe.pieces(whole)).encode() == whole
    assert all(p.endswith("\n") for p in list(bpe.pieces(whole))[:-1])


def test_a_machine_without_the_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SystemExit, match="pip install tokenizers"):
        bpe.package()


def test_runs_on_another_vocabulary_are_not_resumed(text: Any, tokens: Any, tmp_path: Path) -> None:
    facts = {"texts": [{**tokens.facts(), "tokenizer": {"sha256": "another"}}]}
    (tmp_path / "papers_environment1.json").write_text(json.dumps(facts))
    texts.same_text([text], [tmp_path / "runs.jsonl"])  # on bytes: another stem
    with pytest.raises(SystemExit, match="python text on this machine is not that"):
        texts.same_text([tokens], [tmp_path / "runs.jsonl"], "papers_environment")


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def trainer(tokens: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for two, and waiting threads spin
    made = runs.Trainer(
        gpt.TINY_TOKENS, torch.device("cpu"), tmp_path_factory.mktemp("scratch"), compiled=False
    )
    made.add_text(tokens)
    yield made
    torch.set_num_threads(threads)


def short(name: str, steps: int, lr: float = 1e-3) -> Any:
    return runs.Run(
        f"papers/{name}/{lr:g}/1", "papers", name, lr, steps * gpt.TINY_TOKENS.tokens, 1,
        evaluations=2, detail=True,
    )  # fmt: skip


def test_what_a_record_has(trainer: Any, tokens: Any) -> None:
    record = json.loads(json.dumps(trainer.train(short("stosignsgd-theirs", 104))))
    assert record["status"] == "ok" and runs.final_loss(record) < math.log(512)
    ratio = len(tokens.train) / sum(tokens.packages.values())
    assert record["bytes_per_token"] == pytest.approx(1 / ratio, rel=0.2)
    assert runs.per_byte(record) == runs.final_loss(record) / record["bytes_per_token"]
    rows = record["layers"]
    assert {"embedding", "position", "norms", "first qkv", "last mlp_out"} <= set(rows)
    assert set(rows["embedding"]) == {"m", "G", "largest_g"}
    shares = record["histogram"]
    assert shares["zero"] + sum(shares["shares"]) == pytest.approx(1, abs=1e-3)
    assert 0 < record["sign_means"]["103"]["rms"] <= 1
    assert len(json.dumps(record)) < 8_000


@pytest.mark.parametrize("name", sorted(papers.arms()))
def test_every_arm_steps(trainer: Any, name: str) -> None:
    if optimizers.CHOICES[name].state == "fp32" and name.startswith("s3-p"):
        pytest.skip("tests/examples/test_results_plan.py steps the forms of S3")
    record = trainer.train(short(name, 1))
    assert record["status"] == "ok"


def test_masters_gradients_and_state_of_their_regime(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}

    def look(optimizer: Any, weights: list[torch.Tensor], before: Any) -> float:
        kept.update(optimizer=optimizer, weights=weights)
        kept["gradients"] = [w.grad.clone() for w in weights]
        return 0.0

    monkeypatch.setattr(runs, "update_rms", look)
    trainer.train(short("adamw-theirs", 3))
    assert all(torch.equal(w, w.bfloat16().float()) for w in kept["weights"])
    for p in kept["weights"]:
        for name in ("m", "v"):
            x = kept["optimizer"].state[p][name]
            assert torch.equal(x, x.to(torch.float8_e4m3fn).float())
    total = torch.stack([g.square().sum() for g in kept["gradients"]]).sum().sqrt()
    assert float(total) <= 1.001


#: What recorded runs were trained with before the catalogue had these two by name.
RECORDED = {
    "ie-stosignsgd-ours": {"spec": "sgd", "convert": "init:to=zero,expected"},
    "stosignsgd-v2-theirs": {"spec": "stosignsgd", "hypers": {"beta2": 0.99995}},
}


@pytest.mark.parametrize("name", RECORDED)
def test_arms_by_name_train_what_was_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(19)
    start = torch.randn(32, 64)
    grads = [torch.randn(32, 64) * 10 ** torch.empty(32, 64).uniform_(-7, 0) for _ in range(6)]
    recorded = replace(optimizers.CHOICES[name], **RECORDED[name])
    monkeypatch.setitem(optimizers.CHOICES, "recorded", recorded)
    ends = []
    for arm in (name, "recorded"):
        weight = start.clone().requires_grad_()
        optimizer = optimizers.make(arm, [weight], 1e-3, seed=1)
        for g in grads:
            weight.grad = g.clone()
            optimizer.step()
            if recorded.raw:
                optimizers.round_raw(optimizer)
        ends.append(weight.detach())
    assert not torch.equal(ends[0], start) and torch.equal(*ends)


def test_gradients_are_rounded_to_e5m2() -> None:
    g = torch.tensor([1e-6, 8e-6, 1.1, -1e9])
    optimizers.rounded_gradients([g])
    assert g.tolist() == [0.0, 2.0**-16, 1.0, -57344.0]


def test_the_mean_of_a_sign_is_that_of_its_moments() -> None:
    p = torch.zeros(64, requires_grad=True)
    optimizer = optimizers.make("stosignsgd-theirs", [p], 1e-3, seed=0)
    p.grad = torch.linspace(0.5, 2, 64)
    optimizer.step()
    assert measures.sign_means(optimizer, [p], 1) == {"rms": 1.0, "mean": 1.0, "above": 1.0}
    p.grad = -p.grad
    optimizer.step()
    m = 0.9 * 0.1 - 0.1  # of g
    assert measures.sign_means(optimizer, [p], 2)["rms"] == pytest.approx(-m / 0.099, rel=5e-3)


def test_rmsprops_sign_has_the_gradients_mean() -> None:
    """It has no m: r = g/sqrt(v), with v = 0.01 g² after one step."""
    p = torch.zeros(64, requires_grad=True)
    optimizer = optimizers.make("rmsprop-stosign-ours", [p], 1e-3, seed=0)
    for g in (1.0, 0.01):
        p.grad = torch.full((64,), g)
        optimizer.step()
    mean = 0.01 / math.sqrt(0.99 * 0.01 + 0.01 * 1e-4)
    found = measures.sign_means(optimizer, [p], 2)
    assert found["mean"] == pytest.approx(mean, rel=0.1) and found["above"] == 0.0


# ---------------------------------------------------------------- products in FP8


def test_products_in_fp8_follow_the_layer() -> None:
    torch.manual_seed(0)
    layer, exact = fp8_matmul.FP8Linear(64, 32, bias=False), torch.nn.Linear(64, 32, bias=False)
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(4, 16, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours, theirs = layer(x), exact(y)
    g = torch.randn_like(ours)
    ours.backward(g)
    theirs.backward(g)
    for a, b in ((ours, theirs), (x.grad, y.grad), (layer.weight.grad, exact.weight.grad)):
        assert 1e-4 < float((a - b).detach().norm() / b.detach().norm()) < 0.08


# ---------------------------------------------------------------- the plan


def finish(best: float, claims: list[str], have: set[str]) -> list[Any]:
    """Every run of the plan, as if lr = best gave the least loss."""
    done: dict[str, Any] = {}
    order = []
    while run := next(plan.pending(done, have, plan.FULL_SCALE, claims), None):
        loss = abs(math.log(run.lr * (10 if run.text == "headers" else 1) / best))
        done[run.id] = {"id": run.id, "status": "ok", "held_out": [[0, 9.0], [1, loss]]}
        have |= {run.save} - {""}
        order.append(run)
    return order


def test_the_first_runs_are_those_that_decide() -> None:
    order = [r.id for r in finish(1e-3, ["papers"], set())]
    assert order[:4] == [f"papers/{n}-theirs/0.0003/1" for n in papers.FOUR]
    assert {i.split("/")[1] for i in order[4:8]} == {f"{n}-ours" for n in papers.FOUR}
    assert {i.rsplit("/", 1)[1] for i in order} == {"1", "2", "3"}
    assert order.index("papers/adamw-ours/0.001/2") > order.index("papers/signum-ours/0.001/1")


def test_every_claim_ends_and_seeds_are_at_the_best_lr() -> None:
    claims = [c for c in papers.MODELS if papers.MODELS[c] == "gpt42"]
    order = finish(1e-3, claims, set())
    again = [r for r in order if r.seed > 1 and r.text == "python"]
    far = {r.optimizer for r in again if r.lr != 1e-3}
    above = next(s for s in papers.STAGES if s.kind == "above" and s.seeds == papers.OTHERS)
    assert again and far == set(above.arms) and {r.lr for r in again} == {1e-3, 1e-2}
    tuned = [r for r in order if r.claim == "papers_finetune"]
    first = order.index(tuned[0])
    assert any(r.save == papers.CHECKPOINT for r in order[:first])
    assert all(r.start == papers.CHECKPOINT for r in tuned)
    assert {"papers/s3-p5-0.98/0.001/1", "papers/s3-ours/0.01/1"} <= {r.id for r in order}


@pytest.mark.parametrize("claim", ["papers_110", "papers_matmul", "papers_336"])
def test_other_models_take_the_best_lrs_of_the_first(claim: str) -> None:
    assert next(plan.pending({}, set(), plan.FULL_SCALE, [claim]), None) is None
    done = {r.id: _ended(r) for r in finish(1e-3, ["papers", "papers_s3"], set())}
    order = list(plan.pending(done, set(), plan.FULL_SCALE, [claim]))
    assert order and {r.lr for r in order} == {1e-3}
    assert {r.claim for r in order} == {claim} and {r.id.split("/")[0] for r in order} == {claim}


def _ended(run: Any) -> dict[str, Any]:
    loss = abs(math.log(run.lr / 1e-3))
    return {"id": run.id, "status": "ok", "held_out": [[0, 9.0], [1, loss]]}


def test_the_reckoned_runs_are_those_of_the_plan() -> None:
    """With every best at the middle of its sweep, the table's least is what is run."""
    done: dict[str, Any] = {}
    claims = list(papers.MODELS)
    have = {papers.CHECKPOINT}
    while run := next(plan.pending(done, have, plan.FULL_SCALE, claims), None):
        middle = optimizers.rate(optimizers.CHOICES[run.optimizer].middle)
        lr = run.lr * (10 if run.text == "headers" else 1)
        done[run.id] = {"status": "ok", "held_out": [[1, abs(math.log(lr / middle))]]}
    assert len(done) == sum(least for _, least, _ in papers.reckoned())


# ---------------------------------------------------------------- from the command line


def run(script: str, *arguments: str) -> None:
    """A script of examples/results on the tiny model."""
    package = pytest.importorskip("tokenizers", reason="byte-pair tokens need tokenizers")
    paths = (str(ROOT), str(Path(package.__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, str(RESULTS / script), *arguments],
        env=environment(PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("claim", papers_page.CLAIMS)
def test_quick(claim: str, tmp_path: Path) -> None:
    run(f"{claim}.py", "--quick", "--out", str(tmp_path))
    made = json.loads((tmp_path / f"{claim}.json").read_text())
    assert made["claim"] == claim and made["runs"] and made["summary"]["rows"]
    assert (tmp_path / f"{claim}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_scheduler_trains_the_papers(tmp_path: Path) -> None:
    claims = [c for c in papers.MODELS if papers.MODELS[c] == "gpt42"]
    run(
        "gpu_all.py", "--device", "cpu", "--tiny", "--max-bytes", "800000",
        "--cache", str(tmp_path / "c"), "--out", str(tmp_path / "a"), "--claims", *claims,
    )  # fmt: skip
    records = [json.loads(x) for x in (tmp_path / "a" / "runs.jsonl").read_text().splitlines()]
    assert {r["status"] for r in records} == {"ok"}
    assert {r["claim"] for r in records} >= {"papers", "papers_finetune"}
    facts = json.loads((tmp_path / "a" / "papers_environment.json").read_text())
    assert facts["not_run"] == [] and facts["texts"][0]["tokenizer"]["vocabulary"] == 512
