"""The lr range run: what it suggests, what it leaves alone, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor, nn

from signconv.errors import SignconvError
from signconv.tuning import command
from signconv.tuning.lr_range import Curve, lr_range
from tests.support.command import Run

SCRIPT = """\
from __future__ import annotations
from dataclasses import dataclass
import torch
from beside import SIZE

@dataclass
class Config:  # looks its module up
    size: int = SIZE

def make():
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    x = torch.randn(512, Config().size)
    y = x[:, :4].sum(1, keepdim=True).sin()
    def loss(step):
        rows = torch.arange(64) + step % 8 * 64
        return (model(x[rows]) - y[rows]).square().mean()
    return model, loss

def number():
    return 3

def failing():
    data = {}
    return data["train"]
"""


def bowl(curvature: float) -> Any:
    """0.5 * curvature * |w - n|^2 with noise n of each batch: SGD diverges above 2 / curvature."""

    def make() -> tuple[list[Tensor], Any]:
        w, n = nn.Parameter(torch.full((32,), 3.0)), torch.randn(1000, 32)
        return [w], lambda step: 0.5 * curvature * (w - n[step]).square().sum()

    return make


def test_the_end_of_a_range_is_where_theory_has_it() -> None:
    for curvature in (0.25, 4.0, 64.0):
        (curve,) = lr_range(
            bowl(curvature), {"sgd": torch.optim.SGD}, low=1e-4, high=100.0, steps=300
        )
        limit = 2 / curvature
        assert limit < curve.lrs[-1] < 4 * limit
        assert curve.suggestion is not None and 0.005 * limit < curve.suggestion < limit


def test_the_suggestion_follows_the_scale_of_the_problem() -> None:
    """A loss 100 times as curved wants SGD's lr a hundredth, and leaves AdamW's as it is."""
    optimizers = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    flat = lr_range(bowl(1.0), optimizers, low=1e-4, high=10.0)
    steep = lr_range(bowl(100.0), optimizers, low=1e-6, high=0.1)
    ratios = [a.suggestion / b.suggestion for a, b in zip(flat, steep, strict=True)]  # type: ignore[operator]
    assert ratios[0] == pytest.approx(100, rel=0.1)
    again = lr_range(bowl(100.0), optimizers, low=1e-4, high=10.0)[1]
    assert again.suggestion == pytest.approx(flat[1].suggestion, rel=0.1)


def test_every_run_has_the_same_model_and_leaves_random_numbers_alone() -> None:
    seen = []

    def make() -> Any:
        model = nn.Linear(4, 1)
        seen.append(model.weight.detach().clone())
        return model, lambda step: (model(torch.randn(8, 4)) - 1).square().mean()

    before = torch.get_rng_state()
    a, b = lr_range(make, {"ours": AdamWStoSign, "torch": torch.optim.AdamW}, steps=40)
    assert torch.equal(seen[0], seen[1]) and a.losses[0] == b.losses[0]
    assert torch.equal(torch.get_rng_state(), before)
    other = lr_range(make, {"ours": AdamWStoSign}, steps=40, seed=1)
    assert other[0].losses != a.losses


def test_groups_keep_the_ratio_of_their_lrs() -> None:
    made: list[torch.optim.Optimizer] = []

    def factory(params: Any) -> torch.optim.Optimizer:
        a, b = params
        made.append(torch.optim.SGD([{"params": [a], "lr": 0.2}, {"params": [b], "lr": 0.02}]))
        return made[-1]

    def make() -> Any:
        model = nn.Linear(4, 1)
        x = torch.ones(8, 4)
        return model, lambda step: (model(x) - 1).square().mean()

    (curve,) = lr_range(make, {"sgd": factory}, steps=30, low=1e-5, high=1e-2)
    assert [g["lr"] for g in made[0].param_groups] == pytest.approx([1e-2, 1e-3])
    assert curve.lrs[0] == 1e-5 and curve.lrs[-1] == pytest.approx(1e-2)


def test_a_loss_that_never_falls_has_no_suggestion() -> None:
    w = nn.Parameter(torch.zeros(3))
    (curve,) = lr_range(lambda: ([w], lambda step: w.sum() * 0 + 1.0), {"sgd": torch.optim.SGD})
    assert curve.suggestion is None
    assert "none: the loss never fell" in [*command.table([curve]).columns[1].cells]


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    w = nn.Parameter(torch.ones(3))

    def loss(step: int) -> Tensor:
        return w.square().sum() * (math.nan if step == 30 else 1.0)

    (curve,) = lr_range(lambda: ([w], loss), {"sgd": torch.optim.SGD}, high=1e-3)
    assert len(curve.losses) == 30 and all(map(math.isfinite, curve.losses))
    with pytest.raises(SignconvError, match="sgd: the loss is nan before the first step"):
        lr_range(lambda: ([w], lambda step: w.sum() * math.nan), {"sgd": torch.optim.SGD})


def test_noise_of_batches_does_not_end_a_run() -> None:
    w = nn.Parameter(torch.ones(3))
    scales = torch.rand(400, generator=torch.Generator().manual_seed(0)) + 0.5
    (curve,) = lr_range(
        lambda: ([w], lambda step: scales[step] * w.square().sum()),
        {"sgd": torch.optim.SGD}, high=1e-4, steps=400,
    )  # fmt: skip
    assert len(curve.losses) == 400


def test_command(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("SIZE = 16\n")
    done = run(
        "lr", "train.py:make", "adamw", "--convert", "stosign", "--steps", "80",
        "--picture", "a/lr.png", "--json", "lr.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "AdamWStoSign" in done.out and "torch.optim.AdamW" in done.out
    assert (tmp_path / "a" / "lr.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "lr.json").read_text())
    ours, theirs = (Curve(**{k: r[k] for k in ("name", "lrs", "losses", "smooth")}) for r in rows)
    assert rows[0]["suggestion"] == ours.suggestion and rows[1]["lowest"] == theirs.lowest
    assert ours.losses[0] == theirs.losses[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.py:number"], "train.py:19: number returned int, and has to return (model, loss)"),
        (["train.py:failing"], "train.py:24: failing() raised KeyError: 'train'"),
        (["train.py:mak"], "train.py has no function 'mak'; did you mean 'make'"),
        (["train.py"], "'train.py' names no function: write path/to/file.py:make"),
        (["no.py:make"], "there is no file 'no.py'"),
        (["train.py:make", "--low", "1", "--high", "0.1"], "no range of learning rates"),
        (["train.py:make", "--steps", "3"], "20 steps or more"),
        (["train.py:make", "--picture", "a.txt"], "a.txt: a picture's name ends in .png"),
        (["train.py:make", "adamq"], "did you mean 'adam'"),
    ],
)
def test_what_it_refuses(arguments: list[str], words: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("SIZE = 16\n")
    done = run("lr", *arguments, cwd=tmp_path)
    assert done.code == 2 and words in done.err, done.err
    assert "Traceback" not in done.err
