"""Train a byte-level transformer on Python's own sources: torch's AdamW against ours.

`make demo` builds AdamWFP4 (AdamW on 4 bits a moment) and AdamWStoSignGolden (AdamW with a
stochastic sign, on FP8 state) and runs this script: 300 steps, two seeds each, the same batches for
all three, then a table, a picture of losses and state, and the raw numbers, under build/demo/.

Learning rates: each optimizer has its own, the one with the lowest held-out loss of the grid
SWEEP (factors of two), found by `train_tiny.py --sweep` with seed 0, which the runs reported
here do not use. All else is each optimizer's default, the same for all: weight decay 0.01. (The
default lr of all, 1e-3, is too slow for 300 steps.)
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tiny_lm import BATCH, CONTEXT, Corpus, TinyLM, batches, load_bytes, windows

#: Chosen by --sweep.
LEARNING_RATE = {"AdamW": 8e-3, "AdamWFP4": 8e-3, "AdamWStoSignGolden": 8e-3}
SWEEP = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SWEEP_SEED = 0
WARMUP = 0.1  # share of the steps; then a cosine down to zero
HELD_OUT_WINDOWS = 256
EVALUATE_EVERY = 25
AVERAGED_STEPS = 20  # of the training loss, in the table and the picture
COLOURS = {"AdamW": "#4477aa", "AdamWFP4": "#228833", "AdamWStoSignGolden": "#cc5533"}
STATE = {
    "AdamW": "torch.optim.AdamW, fp32",
    "AdamWFP4": "AdamW, 4 bits",
    "AdamWStoSignGolden": "AdamW + stosign, FP8",
}

Factory = Callable[..., torch.optim.Optimizer]
console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=112)


@dataclass
class Run:
    """One training run; losses in nats per byte, times in milliseconds."""

    optimizer: str
    lr: float
    seed: int
    train_loss: list[float] = field(default_factory=list)  # one per step
    held_out_loss: list[tuple[int, float]] = field(default_factory=list)  # (steps done, loss)
    optimizer_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    state_bytes_per_parameter: float = math.nan
    state_dtypes: dict[str, str] = field(default_factory=dict)

    @property
    def final_train_loss(self) -> float:
        return statistics.fmean(self.train_loss[-AVERAGED_STEPS:])

    @property
    def final_held_out_loss(self) -> float:
        return self.held_out_loss[-1][1]


def as_json(facts: dict[str, Any], runs: list[Run]) -> str:
    """Facts and runs, a run a line: losses where the held-out one was taken, quartiles of times."""

    def kept(run: Run) -> dict[str, Any]:
        means = [
            (step, round(statistics.fmean(run.train_loss[max(0, step - AVERAGED_STEPS) : step]), 4))
            for step, _ in run.held_out_loss
            if step
        ]
        held_out = [(step, round(loss, 4)) for step, loss in run.held_out_loss]
        times = {
            key: [round(x, 3) for x in statistics.quantiles(getattr(run, key), n=4)]
            for key in ("optimizer_ms", "step_ms")
        }
        return asdict(run) | {"train_loss": means, "held_out_loss": held_out} | times

    lines = ",\n  ".join(json.dumps(kept(run)) for run in runs)
    return f'{{"facts": {json.dumps(facts)},\n "runs": [\n  {lines}\n]}}\n'


class Reporter:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=total) if progress else None

    def step(self, run: Run, step: int, steps: int) -> None:
        """Report `step` of `steps` done."""
        title = f"{run.optimizer}, lr {run.lr:g}, seed {run.seed}"
        if self.progress and self.task is not None:
            self.progress.update(self.task, advance=1, description=title)
        if step == steps or (not self.progress and step % 50 == 0):
            console.print(
                f"{title}: step {step}/{steps}, training loss {run.final_train_loss:.3f}, "
                f"held-out {run.final_held_out_loss:.3f}"
            )


@contextmanager
def reporting(total: int) -> Iterator[Reporter]:
    """A Reporter of `total` steps."""
    if not console.is_terminal:
        yield Reporter(None, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        yield Reporter(progress, total)


def schedule(step: int, steps: int) -> float:
    """The factor on lr: linear warmup, then cosine decay to zero."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def state_size(optimizer: torch.optim.Optimizer) -> tuple[float, dict[str, str]]:
    """Bytes of state per parameter, as stored, and each state's dtype; counters left out."""
    tensors = [
        (name, value)
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in ("step", "offset")
    ]
    parameters = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    size = sum(value.numel() * value.element_size() for _, value in tensors)
    return size / parameters, {name: str(value.dtype) for name, value in tensors}


def train(
    run: Run, factory: Factory, corpus: Corpus, steps: int, device: str, reporter: Reporter
) -> None:
    """Train a TinyLM from `run.seed`, and record the run."""
    model = TinyLM(seed=run.seed).to(device)
    optimizer = factory(model.parameters(), lr=run.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(schedule, steps=steps))
    fixed = windows(corpus.held_out, HELD_OUT_WINDOWS, torch.Generator().manual_seed(0))
    held_out = [(x.to(device), y.to(device)) for x, y in zip(*(t.split(64) for t in fixed))]

    def evaluate(step: int) -> None:
        with torch.no_grad():
            losses = [model.loss(inputs, targets).item() for inputs, targets in held_out]
        run.held_out_loss.append((step, statistics.fmean(losses)))

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * time.perf_counter()

    evaluate(0)
    for step, (inputs, targets) in enumerate(batches(corpus.train, steps, run.seed), start=1):
        started = now()
        loss = model.loss(inputs.to(device), targets.to(device))
        loss.backward()
        before_update = now()
        optimizer.step()
        finished = now()
        optimizer.zero_grad()
        scheduler.step()
        run.train_loss.append(loss.item())
        run.optimizer_ms.append(finished - before_update)
        run.step_ms.append(finished - started)
        if step % EVALUATE_EVERY == 0 or step == steps:
            evaluate(step)
        reporter.step(run, step, steps)
    run.state_bytes_per_parameter, run.state_dtypes = state_size(optimizer)


def spread(values: list[float]) -> str:
    """Mean ± half the range."""
    return f"{statistics.fmean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def results_table(runs: list[Run]) -> Table:
    """One row per optimizer."""
    table = Table(caption="losses in nats per byte, mean ± half the range over seeds; median ms")
    table.add_column("optimizer")
    for title in ("lr", "training loss", "held-out loss", "state bytes\nper parameter"):
        table.add_column(title, justify="right")
    table.add_column("ms per step,\noptimizer", justify="right")
    table.add_column("ms per step,\nwhole", justify="right")
    for name in dict.fromkeys(run.optimizer for run in runs):
        own = [run for run in runs if run.optimizer == name]
        table.add_row(
            name,
            f"{own[0].lr:g}",
            spread([run.final_train_loss for run in own]),
            spread([run.final_held_out_loss for run in own]),
            f"{own[0].state_bytes_per_parameter:.2f}",
            f"{statistics.median(ms for run in own for ms in run.optimizer_ms):.1f}",
            f"{statistics.median(ms for run in own for ms in run.step_ms):.1f}",
        )
    return table


def draw(runs: list[Run], title: str, path: Path) -> None:
    """Write the loss curves (thin lines training, a moving average; marks held-out), and beside
    them the bytes of state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    axes, bars = figure.subplots(1, 2, width_ratios=(2.1, 1))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    for run in sorted(runs, key=lambda run: run.optimizer):
        dashes = ("-", "--", ":", "-.")[seeds.index(run.seed) % 4]
        colour, label = COLOURS[run.optimizer], f"{STATE[run.optimizer]}, seed {run.seed}"
        smooth = [
            statistics.fmean(run.train_loss[max(0, i - AVERAGED_STEPS) : i])
            for i in range(1, len(run.train_loss) + 1)
        ]
        axes.plot(range(1, len(smooth) + 1), smooth, dashes, color=colour, lw=1, alpha=0.5)
        steps, losses = zip(*run.held_out_loss)
        axes.plot(steps, losses, dashes, color=colour, lw=1.6, marker="o", ms=4, label=label)
    axes.plot([], [], color="grey", lw=1, alpha=0.5, label=f"training, mean of {AVERAGED_STEPS}")
    axes.plot([], [], color="grey", lw=1.6, marker="o", ms=4, label="held-out files")
    # The fall from the start would take half the height: the axis begins below it.
    start = max(run.held_out_loss[0][1] for run in runs)
    top = 1.05 * max(run.held_out_loss[1][1] for run in runs)
    axes.set(xlabel=f"step (at step 0: {start:.1f} nats)", ylabel="loss (nats per byte)")
    axes.set(title=title, ylim=(None, top))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    size = {run.optimizer: run.state_bytes_per_parameter for run in runs}
    drawn = bars.bar([STATE[n].replace(", ", ",\n") for n in size], [*size.values()],
                     color=[COLOURS[n] for n in size])  # fmt: skip
    bars.bar_label(drawn, fmt="%.2f", padding=2)
    bars.set(title="bytes of state per parameter", ylim=(0, 1.1 * max(size.values())))
    bars.tick_params(axis="x", labelsize=7.5)
    bars.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def stop(message: str) -> typer.Exit:
    """One line on standard error, and exit code 2."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


def factories(seed: int) -> dict[str, Factory]:
    """The three optimizers; everything but lr is their default."""
    try:
        from signconv.generated.adamw_fp4 import AdamWFP4
        from signconv.generated.adamw_stosign_golden import AdamWStoSignGolden
    except ModuleNotFoundError as missing:
        if not str(missing.name).startswith("signconv"):
            raise
        raise stop(
            f"no module {missing.name}: run `make demo`, or `signconv build --all`"
        ) from None
    return {
        "AdamW": torch.optim.AdamW,
        "AdamWFP4": partial(AdamWFP4, seed=seed),
        "AdamWStoSignGolden": partial(AdamWStoSignGolden, seed=seed),
    }


def train_all(runs: list[Run], corpus: Corpus, steps: int, device: str) -> None:
    """Train each of `runs` in turn, under one progress bar."""
    with reporting(len(runs) * steps) as reporter:
        for run in runs:
            train(run, factories(run.seed)[run.optimizer], corpus, steps, device, reporter)


def sweep(corpus: Corpus, steps: int, device: str) -> list[Run]:
    """Every lr of the grids with one seed; prints the table and the best lr of each."""
    runs = [Run(name, lr, SWEEP_SEED) for name in LEARNING_RATE for lr in SWEEP]
    train_all(runs, corpus, steps, device)
    table = Table("optimizer", "lr", "training loss", "held-out loss", "")
    for run in runs:
        grid = [other for other in runs if other.optimizer == run.optimizer]
        best = min(grid, key=lambda other: other.final_held_out_loss)
        note = "best" if run is best else ""
        if note and run in (grid[0], grid[-1]):
            note = "best, at the edge of the grid: widen it"
        losses = (f"{run.final_train_loss:.3f}", f"{run.final_held_out_loss:.3f}")
        table.add_row(run.optimizer, f"{run.lr:g}", *losses, note)
    console.print(table)
    return runs


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = 300,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each optimizer: seeds 1, 2, …")] = 2,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("build/demo"),
    sweep_lr: Annotated[
        bool, typer.Option("--sweep", help="Choose the learning rates: every lr of the grids.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    lr: Annotated[float | None, typer.Option(min=0, help="One for all.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Default: OUT/loss.png.")] = None,
) -> None:
    """Train a tiny byte-level transformer with torch's AdamW and with two of ours."""
    factories(seed=0)  # a missing module is reported before anything slow
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise stop(f"--device {device}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise stop("--device cuda: torch finds no CUDA device; use --device cpu")
    try:
        out.mkdir(parents=True, exist_ok=True)
        corpus = load_bytes()
    except (OSError, ValueError) as problem:
        raise stop(str(problem)) from None

    parameters = sum(p.numel() for p in TinyLM().parameters())
    python = f"Python {platform.python_version()}"
    console.print(
        f"text: the standard library of {python}\n"
        f"  training {corpus.train_files} files, {len(corpus.train):,} bytes\n"
        f"  held-out {corpus.held_out_files} files, {len(corpus.held_out):,} bytes; "
        f"loss on {HELD_OUT_WINDOWS} fixed windows of {CONTEXT} bytes\n"
        f"  sha256 of the split {corpus.digest}\n"
        f"model: byte-level transformer, {parameters:,} parameters, on {device}"
    )
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "digest": corpus.digest,
        "train_bytes": len(corpus.train),
        "held_out_bytes": len(corpus.held_out),
        "parameters": parameters,
        "steps": steps,
        "batch": BATCH,
        "context": CONTEXT,
    }
    if sweep_lr:
        runs = sweep(corpus, steps, device)
        path = out / "sweep.json"
        path.write_text(as_json(facts, runs), encoding="utf-8")
        console.print(f"numbers: {path}", soft_wrap=True)
        return

    how = f"the best of {', '.join(f'{x:g}' for x in SWEEP)} (--sweep, another seed)"
    chosen = {name: best if lr is None else lr for name, best in LEARNING_RATE.items()}
    for name, rate in chosen.items():
        console.print(f"{name}: lr {rate:g}, {how if lr is None else 'as asked'}")
    runs = [Run(name, rate, seed) for seed in range(1, seeds + 1) for name, rate in chosen.items()]
    train_all(runs, corpus, steps, device)

    console.print(
        f"\ntrained {len(runs)} runs: {steps} steps of {BATCH} × {CONTEXT} bytes "
        f"({steps * BATCH * CONTEXT:,} bytes each), {parameters:,} parameters"
    )
    console.print(results_table(runs))
    picture = picture or out / "loss.png"
    draw(runs, f"byte-level transformer, {parameters:,} parameters, sources of {python}", picture)
    path = out / "results.json"
    path.write_text(as_json(facts, runs), encoding="utf-8")
    console.print(f"picture: {picture}\nnumbers: {path}", soft_wrap=True)
    worse = [run for run in runs if not run.final_held_out_loss < run.held_out_loss[0][1]]
    if worse:
        typer.echo(f"error: held-out loss did not go down in {len(worse)} runs", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
