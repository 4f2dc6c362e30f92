"""The scripts that a newcomer walks through: first optimizer, fine-tuning, health report."""

import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ROOT, environment

WALKS = ("first_optimizer", "finetune_one_byte", "health_report")


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module(request.param)


@pytest.mark.long
@pytest.mark.parametrize("example", ["first_optimizer"], indirect=True)
def test_the_first_optimizer_learns(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SIGNCONV_CACHE", str(tmp_path))
    runs = example.main(steps=80, verify=False)
    assert len(runs) == 3
    for losses in runs.values():
        assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert "update = sign(m + sqrt(v) * noise)" in capsys.readouterr().out


@pytest.mark.parametrize("example", ["health_report"], indirect=True)
def test_the_health_report_finds_what_was_planted(example: ModuleType) -> None:
    health, found = example.main(steps=20)
    assert health.watched == 20
    told = [x.partition(":")[0] for x in found]
    assert told == [
        "forgotten, m", "forgotten, v", "embedding.weight, m", "embedding.weight, v",
    ]  # fmt: skip
    assert all("never got a gradient" in x for x in found[:2])
    unseen = 1 - example.USED / example.VOCABULARY
    assert all(f"{unseen:.0%} zero" in x for x in found[2:])


@pytest.mark.long
@pytest.mark.parametrize("example", ["finetune_one_byte"], indirect=True)
def test_fine_tuning_on_one_byte_ends_where_adamw_does(example: ModuleType) -> None:
    runs = example.main()
    adamw, ours = runs["torch.optim.AdamW"], runs["AdamWFP4"]
    assert adamw.per_parameter == 8 and ours.per_parameter == pytest.approx(1.0625, abs=1e-3)
    ends = [sum(r.losses[-10:]) / 10 for r in (adamw, ours)]
    assert max(ends) < 0.5 * math.log(example.VOCABULARY)
    assert abs(ends[0] - ends[1]) < 0.1 * ends[0]


@pytest.mark.long
@pytest.mark.parametrize("name", WALKS)
def test_a_walk_runs_as_a_script(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")], cwd=tmp_path,
        env=environment(SIGNCONV_CACHE=str(tmp_path / "cache")),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 8


def test_each_is_named_in_the_docs() -> None:
    text = (ROOT / "docs" / "using.md").read_text("utf-8")
    assert all(f"examples/{name}.py" in text for name in WALKS)
