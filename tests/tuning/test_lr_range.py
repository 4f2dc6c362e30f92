"""The lr range run: what it suggests, what it leaves alone, and what it refuses."""

import gc
import json
import math
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
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
    def make() -> Any:
        w = nn.Parameter(torch.zeros(3))
        return [w], lambda step: w.sum() * 0 + 1.0

    (curve,) = lr_range(make, {"sgd": torch.optim.SGD})
    assert curve.suggestion is None
    assert "none: the loss never fell" in [*command.table([curve]).columns[1].cells]
    (curve,) = lr_range(bowl(1.0), {"sgd": torch.optim.SGD}, low=1e-12, high=1e-8)
    assert curve.suggestion is None, "nothing can be learned at such rates"


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    def make() -> Any:
        w = nn.Parameter(torch.ones(3))
        return [w], lambda step: torch.where(w < 0.5, torch.nan, w.square()).sum()

    (curve,) = lr_range(make, {"sgd": torch.optim.SGD})
    assert 20 < len(curve.losses) < 200 and all(map(math.isfinite, curve.losses))

    def broken() -> Any:
        w = nn.Parameter(torch.ones(3))
        return [w], lambda step: w.sum() * (math.nan if step == 30 else 1.0)

    with pytest.raises(SignconvError, match="loss of step 30 is nan before anything was stepped"):
        lr_range(broken, {"sgd": torch.optim.SGD})


@pytest.mark.parametrize("period", [0, 8, 50, 400])
def test_what_batches_differ_by_is_neither_a_fall_nor_a_rise(period: int) -> None:
    """Batches of other scales, or of a level that goes up and down: the suggestion stays, and the
    run goes on to its end."""
    noise = 2 * torch.rand(400, generator=torch.Generator().manual_seed(0))

    def level(step: int) -> Tensor:
        return torch.tensor(5 * math.sin(2 * math.pi * step / period)) if period else noise[step]

    def make(noisy: bool = True) -> Any:
        w = nn.Parameter(torch.ones(3))
        return [w], lambda step: w.square().sum() + noisy * level(step)

    (curve,) = lr_range(make, {"sgd": torch.optim.SGD}, high=1e-1, steps=400)
    (still,) = lr_range(lambda: make(False), {"sgd": torch.optim.SGD}, high=1e-1, steps=400)
    assert len(curve.losses) == 400
    assert curve.suggestion == pytest.approx(still.suggestion, rel=0.05)


def test_a_constant_changes_nothing() -> None:
    def make(constant: float = 0.0) -> Any:
        params, loss = bowl(1.0)()
        return params, lambda step: loss(step) + constant

    optimizers = {"sgd": torch.optim.SGD}
    found = [lr_range(lambda c=c: make(c), optimizers)[0] for c in (0.0, 1e4)]
    assert found[0].suggestion == found[1].suggestion
    assert len(found[0].losses) == len(found[1].losses)


def test_the_example_of_the_page(tmp_path: Path) -> None:
    """Few batches of different losses: what they differ by is not taken for learning."""
    namespace: dict[str, Any] = {}
    exec(
        SCRIPT.replace("Config().size", "16").replace("from beside import SIZE", "SIZE = 16"),
        namespace,
    )
    optimizers = {"ours": AdamWStoSign, "AdamW": torch.optim.AdamW}
    for steps in (40, 100, 200):
        for seed in range(3):
            for curve in lr_range(namespace["make"], optimizers, steps=steps, seed=seed):
                assert curve.suggestion is not None and 3e-3 < curve.suggestion < 0.3, curve.name


def test_one_model_for_all_is_refused() -> None:
    model = nn.Linear(4, 1)
    x = torch.ones(8, 4)

    def make() -> Any:
        return model, lambda step: (model(x) - 1).square().mean()

    before = model.weight.detach().clone()
    with pytest.raises(SignconvError, match="make returned the same model twice"):
        lr_range(make, {"a": torch.optim.SGD, "b": torch.optim.SGD})
    assert torch.equal(model.weight, before)


def test_no_model_outlives_its_run() -> None:
    alive: list[Any] = []

    def make() -> Any:
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 0
        model = nn.Linear(4, 1)
        alive.append(weakref.ref(model.weight))
        x = torch.ones(8, 4)
        return model, lambda step: (model(x) - 1).square().mean()

    lr_range(make, {"a": torch.optim.SGD, "b": torch.optim.AdamW}, steps=20)
    assert len(alive) == 3


def test_other_batches_are_refused_and_every_generator_is_set() -> None:
    def make(draw: Any) -> Any:
        w, scale = nn.Parameter(torch.ones(4)), draw()
        return [w], lambda step: (scale * w).square().sum()

    count = iter(range(1, 99))
    with pytest.raises(SignconvError, match="did not return the same model and batches again"):
        lr_range(lambda: make(lambda: next(count)), {"a": torch.optim.SGD})
    states = random.getstate(), np.random.get_state()[1].tolist()
    for draw in (random.random, np.random.rand, lambda: torch.rand(()).item()):
        lr_range(lambda d=draw: make(d), {"a": torch.optim.SGD}, steps=20)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def ends(params: Any) -> Any:
    raise SystemExit(3)


def without_lr(params: Any) -> Any:
    made = torch.optim.SGD(params)
    del made.param_groups[0]["lr"]
    return made


@pytest.mark.parametrize("factory", [torch.optim.LBFGS, ends, without_lr, lambda params: None])
def test_an_optimizer_that_cannot_be_run(factory: Any) -> None:
    with pytest.raises(SignconvError, match=r"(making|a step of) odd raised .*\[SC728\]"):
        lr_range(bowl(1.0), {"odd": factory})


@pytest.mark.parametrize(
    "options", [{"low": "1e-5"}, {"steps": 50.5}, {"seed": 10**20}, {"low": math.nan}, {"seed": -1}]
)
def test_a_range_that_is_none(options: Any) -> None:
    with pytest.raises(SignconvError, match="SC726"):
        lr_range(bowl(1.0), {"sgd": torch.optim.SGD}, **options)


def test_a_model_that_is_frozen_or_none() -> None:
    frozen = nn.Linear(4, 1).requires_grad_(False)
    with pytest.raises(SignconvError, match="no parameter requires a gradient"):
        lr_range(lambda: (frozen, lambda step: None), {"sgd": torch.optim.SGD})
    for made in ((3, lambda step: None), ("ab", lambda step: None), (frozen, 3), 3):
        with pytest.raises(SignconvError, match=r"has to return \(model, loss\)"):
            lr_range(lambda m=made: m, {"sgd": torch.optim.SGD})


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
    ours, theirs = (
        Curve(**{k: r[k] for k in ("name", "lrs", "losses", "untouched", "gain")}) for r in rows
    )
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
        (["train.py:make", "--json", "train.py/lr.json"], "cannot write train.py/lr.json"),
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
