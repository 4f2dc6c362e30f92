"""Images: scikit-learn's digits with a small convnet, AdamW against the sign methods on FP8 state.

    python examples/results/digits.py [--quick]

The only claim on images here: 1,797 pictures of 8 × 8 pixels.  Each optimizer has the lr of the
least held-out loss, the mean of three seeds since 360 images are few; the test part is looked at
with other seeds, at that lr.  A CPU trains all of it, so that its records lie in the JSON itself.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from claims import Record, Summary, of_kind, picture, spread, write
from gpu_all import environment
from optimizers import make, state_bytes
from records import RESULTS
from runs import Run, final_loss, schedule
from runs import parts as parts_of
from search import WIDEST, search
from torch import Tensor, nn

Builder = Callable[[str, list[Tensor], float, int], torch.optim.Optimizer]
OPTIMIZERS = {  # index on the grid of the middle of the first lrs
    "adamw-fp32": -5, "adamw": -5, "signsgd": -6, "signum": -6, "stosignsgd": -6,
    "adamw-stosign": -5, "s3": -5, "s3gd": -6,
}  # fmt: skip
BATCH, HELD_OUT, TEST = 64, 360, 400  # images
COLOURS = [f"C{i}" for i in range(len(OPTIMIZERS))]


@dataclass(frozen=True)
class Length:
    """How much is trained."""

    epochs: int
    first_lrs: int
    seeds: tuple[int, ...]
    sweep_seeds: tuple[int, ...]  # others than those reported
    every: int = 4  # epochs between two looks at what is held out
    widest: int = WIDEST  # lrs of a sweep, at most


FULL = Length(epochs=20, first_lrs=3, seeds=tuple(range(1, 11)), sweep_seeds=(11, 12, 13))
QUICK = Length(epochs=3, first_lrs=1, seeds=(1, 2), sweep_seeds=(11,))

Parts = dict[str, tuple[Tensor, Tensor]]


def load() -> tuple[Parts, dict[str, Any]]:
    """Images and labels of the three parts, and what they are."""
    try:
        from sklearn import __version__, datasets
    except ImportError:
        message = "error: no scikit-learn, whose digits these are: pip install scikit-learn"
        raise SystemExit(message) from None
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    sizes = [len(labels) - HELD_OUT - TEST, HELD_OUT, TEST]
    parts = {
        name: (images[part], labels[part])
        for name, part in zip(("train", "held_out", "test"), order.split(sizes))
    }
    contents = b"".join(x.numpy().tobytes() for pair in parts.values() for x in pair)
    facts = {
        "scikit-learn": __version__,
        "images": {name: len(y) for name, (_, y) in parts.items()},
        "sha256": hashlib.sha256(contents).hexdigest(),  # of the parts, in this order
    }
    return parts, facts


def convnet() -> nn.Sequential:
    """Two convolutions and two linear layers, 76,522 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def measure(model: nn.Module, part: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Mean loss and accuracy."""
    images, labels = part
    with torch.no_grad():
        scores = model(images)
        right = (scores.argmax(1) == labels).double().mean()
        return float(F.cross_entropy(scores, labels)), float(right)


def train(run: Run, length: Length, parts: Parts, build: Builder = make) -> dict[str, Any]:
    """Train one run and return its record."""
    began = time.perf_counter()
    torch.manual_seed(run.seed)  # initial weights and order
    model = convnet()
    optimizer = build(run.optimizer, list(model.parameters()), run.lr, run.seed)
    images, labels = parts["train"]
    per_epoch = len(labels) // BATCH
    steps = length.epochs * per_epoch
    path: list[float] = []
    held_out: list[tuple[int, float]] = []
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(labels))
        batch = order[step % per_epoch * BATCH :][:BATCH]
        for group in optimizer.param_groups:
            group["lr"] = run.lr * schedule(step, steps)
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(round(float(loss.detach()), 4))
        if (step + 1) % (length.every * per_epoch) == 0 or step + 1 == steps:
            with evaluated(optimizer):
                held_out.append((step + 1, round(measure(model, parts["held_out"])[0], 5)))
        if not math.isfinite(path[-1]):
            break
    finite = math.isfinite(path[-1]) and bool(held_out) and math.isfinite(held_out[-1][1])
    with evaluated(optimizer):
        test_loss, accuracy = measure(model, parts["test"])
    return {
        "id": run.id,
        "optimizer": run.optimizer,
        "lr": run.lr,
        "seed": run.seed,
        "status": "ok" if finite else "diverged",
        "steps": steps,
        "train_loss": parts_of(path) if finite else {},
        "held_out": held_out if finite else [],
        "test_loss": round(test_loss, 5) if finite else None,
        "test_accuracy": round(accuracy, 5),
        "state_bytes_per_parameter": round(state_bytes(optimizer, raw=False), 3),
        "seconds": round(time.perf_counter() - began, 2),
    }


@contextmanager
def evaluated(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The weights that a model is evaluated with, of those that train others (Schedule-Free)."""
    swap = getattr(optimizer, "eval", None)
    if swap is None:
        yield
        return
    swap()
    yield
    optimizer.train()  # type: ignore[attr-defined]


def sweep_means(records: Mapping[str, Record], name: str) -> dict[float, float]:
    """Final held-out loss by lr, the mean over the seeds of the sweep."""
    losses: dict[float, list[float]] = {}
    for r in of_kind(records, "sweep", name):
        losses.setdefault(r["lr"], []).append(final_loss(r))
    return {lr: statistics.fmean(losses[lr]) for lr in sorted(losses)}


def pending(
    done: Mapping[str, Record], length: Length, middles: Mapping[str, int] = OPTIMIZERS
) -> list[Run]:
    """The next runs of one optimizer: of its sweep, then every seed at the best lr.

    middles: of each optimizer the index on the grid of the middle of the first lrs.
    """
    for name, middle in middles.items():

        def run(lr: float, kind: str = "sweep", seed: int = 0, name: str = name) -> Run:
            return Run(f"{kind}/{name}/{lr:g}/{seed}", "digits", name, lr, 0, seed)

        means = {
            run(lr).id: {"status": "ok", "held_out": [[0, loss]]}
            for lr, loss in sweep_means(done, name).items()
        }
        missing, lr = search(means, middle, length.first_lrs, run, length.widest)
        if lr is None:
            return [run(m.lr, seed=seed) for m in missing for seed in length.sweep_seeds]
        runs = [run(lr, "digits", seed) for seed in length.seeds]
        if runs := [r for r in runs if r.id not in done]:
            return runs
    return []


def train_all(
    length: Length,
    parts: Parts,
    middles: Mapping[str, int] = OPTIMIZERS,
    build: Builder = make,
    done: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Records by id, with those that are ``done`` already; ``keep`` gets all of them whenever a
    few more are."""
    done = {} if done is None else done
    while runs := pending(done, length, middles):
        for run in runs:
            done[run.id] = train(run, length, parts, build)
            print(f"{run.id}: held-out {final_loss(done[run.id]):.4f}", flush=True)
        keep(done)
    return done


def summarize(records: Mapping[str, Record]) -> Summary:
    """One row per optimizer."""
    rows = []
    for name in OPTIMIZERS:
        own = of_kind(records, "digits", name)
        losses = [math.inf if r["test_loss"] is None else r["test_loss"] for r in own]
        rows.append(
            {
                "optimizer": name,
                "lr": own[0]["lr"],
                "steps": own[0]["steps"],
                "test_loss": spread(losses),
                "test_accuracy": spread([r["test_accuracy"] for r in own]),
                "held_out": spread([final_loss(r) for r in own]),
                "state_bytes_per_parameter": own[0]["state_bytes_per_parameter"],
            }
        )
    means = {n: sweep_means(records, n) for n in OPTIMIZERS}
    sweeps = {
        n: [[lr, round(x, 5) if math.isfinite(x) else None] for lr, x in means[n].items()]
        for n in OPTIMIZERS
    }
    return {"rows": rows, "sweeps": sweeps}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Left the sweeps, middle test loss and right test accuracy of every seed."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    for i, (name, colour) in enumerate(zip(OPTIMIZERS, COLOURS)):
        points = [(lr, x) for lr, x in summary["sweeps"][name] if x is not None]
        if points:
            left.plot(*zip(*points), color=colour, marker="o", ms=4, lw=1.2, label=name)
        own = of_kind(records, "digits", name)
        for axes, key in ((middle, "test_loss"), (right, "test_accuracy")):
            values = [r[key] for r in own if r[key] is not None]
            axes.plot(values, [i] * len(values), "o", color=colour, ms=4, alpha=0.6)
    left.set(xlabel="lr", ylabel="held-out loss", xscale="log", yscale="log", title="the sweep")
    left.legend(fontsize=7)
    middle.set(title="test loss, every seed")
    right.set(title="test accuracy, every seed")
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
    for axes in (middle, right):
        labels = list(OPTIMIZERS) if axes is middle else [""] * len(OPTIMIZERS)
        axes.set_yticks(range(len(OPTIMIZERS)), labels)
        axes.invert_yaxis()


def main() -> None:
    """Command line; no GPU and no text is needed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 epochs, one lr, two seeds")
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON and the PNG")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.out or (Path("build/results") if given.quick else RESULTS)
    length = QUICK if given.quick else FULL
    parts, facts = load()
    records = train_all(length, parts)
    summary = summarize(records)
    facts = {**environment(), **facts, "length": vars(length), "batch": BATCH}
    write("digits", out, facts, summary, list(records.values()))
    picture(out / "digits.png", lambda figure: draw(records, summary, figure), (12, 4))
    print(f"written: {out / 'digits'}.json and .png")


if __name__ == "__main__":
    main()
