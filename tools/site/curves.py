"""Loss curves from recorded runs (docs/results/runs_*.jsonl), each optimizer at its own best lr."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from signconv.errors import SignconvError
from signconv.lower.identity import meaning
from signconv.pipeline import Build, build
from tools.site.figures import FAINT, LINES, drawn

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Setting:
    """Runs that may be compared: of which files and ids, how long, what they are of."""

    name: str
    files: tuple[str, ...]
    tokens: int
    words: str
    unit: str = "byte"
    yardstick: tuple[str, str] = ("adamw-fp32", "AdamW on fp32 state")  # drawn beside, and its name


MAIN = Setting(
    "main", ("fp8_state", "noise", "four_bits", "stosignsgd"), 100_000_000,
    "GPT of 25.6 million parameters, 100 million bytes of Python sources",
)  # fmt: skip
SHORT = Setting(
    "short", ("sweep", "ablation", "ema_stall", "fp8_state"), 10_000_000,
    "GPT of 25.6 million parameters, 10 million bytes of Python sources",
)  # fmt: skip
PAPERS = Setting(
    "papers", ("papers",), 32_768_000,
    "GPT of 42 million parameters on byte-pair tokens, 33 million of them", "token",
    ("adamw-ours", "AdamW on FP8 state"),
)  # fmt: skip
#: In the order in which a page prefers them.
SETTINGS = (MAIN, PAPERS, SHORT)


@dataclass(frozen=True)
class Curve:
    """An optimizer at its best lr: (tokens, mean held-out loss of the runs), and its choice."""

    hypers: Mapping[str, Any]
    clip: float | None  # of the gradient's norm
    lr: float
    lrs: tuple[float, ...]  # all that were tried at this length
    runs: int
    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        return self.points[-1][1]


@cache
def choices() -> dict[str, Any]:
    """Arm -> what it builds, from the programs that made the records."""
    sys.path.insert(0, str(ROOT / "examples" / "results"))
    from optimizers import CHOICES

    return dict(CHOICES)


@cache
def _built(spec: str, convert: str | None, state: str, math_: str) -> tuple[Any, ...] | None:
    try:
        return key(build(spec, convert=convert, state=state, math=math_))
    except SignconvError:
        return None  # torch's own


def key(made: Build) -> tuple[Any, ...]:
    """What two builds have in common that are one optimizer."""
    p = made.program
    meanings = tuple((m.name, meaning(p, m.name), m.init) for m in p.moments)
    parts = (p.numerator, p.denominator, p.link, p.noise, p.decay, p.grad, p.temps)
    formats = tuple((m.name, m.format) for m in made.kernel.moments)
    return (made.spec, *parts, meanings, formats, made.kernel.math)


def arms(made: Build) -> list[str]:
    """The arms of the records that are this optimizer, at any hyperparameters of its own.

    Left out: those whose state, weights or gradients were rounded in another way than its own.
    """
    wanted = key(made)
    plain = [
        (name, c)
        for name, c in choices().items()
        if not (c.raw or c.later or c.gradient != "fp32" or c.masters != "fp32")
    ]
    return [n for n, c in plain if _built(c.spec, c.convert, c.state, c.math) == wanted]


@cache
def _records(setting: Setting) -> dict[str, list[dict[str, Any]]]:
    """Arm -> its runs of a setting: those that came to their end, from fresh weights."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in setting.files:
        for line in (RECORDS / f"runs_{name}.jsonl").read_text("utf-8").splitlines():
            run = json.loads(line)
            ended = run.get("status", "ok") == "ok" and math.isfinite(run["held_out"][-1][1])
            fresh = not run.get("start") and not run["id"].startswith("finetune")
            if ended and run["tokens"] == setting.tokens and fresh:
                found[run["optimizer"]].append(run)
    return found


def curves(names: Iterable[str], setting: Setting) -> list[Curve]:
    """Those that have runs in a setting, best first; arms that differ by name alone are one."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in names:
        choice = choices()[name]
        found[repr((choice.hypers, choice.clip, choice.decay))] += [
            {**r, "arm": name} for r in _records(setting)[name]
        ]
    return sorted((_curve(runs) for runs in found.values() if runs), key=lambda c: c.last)


def _curve(runs: list[dict[str, Any]]) -> Curve:
    by_lr: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_lr[run["lr"]].append(run)
    last = {lr: statistics.mean(r["held_out"][-1][1] for r in rs) for lr, rs in by_lr.items()}
    lr = min(last, key=last.__getitem__)
    # Some runs were evaluated more often than others: the steps that most of them have
    grids = Counter(tuple(s for s, _ in r["held_out"]) for r in by_lr[lr])
    steps = max(grids, key=lambda g: (grids[g], len(g)))
    same = [r for r in by_lr[lr] if tuple(s for s, _ in r["held_out"]) == steps]
    size = same[0]["tokens"] / same[0]["steps"]
    losses = [statistics.mean(x) for x in zip(*([v for _, v in r["held_out"]] for r in same))]
    points = tuple((s * size, v) for s, v in zip(steps, losses))
    choice = choices()[runs[0]["arm"]]
    return Curve(choice.hypers, choice.clip, lr, tuple(sorted(by_lr)), len(same), points)


def recorded(made: Build) -> tuple[Setting, list[Curve]] | None:
    """The first setting with runs of this optimizer, and they; None where nothing is recorded."""
    names = arms(made)
    for setting in SETTINGS:
        if found := curves(names, setting):
            return setting, found
    return None


def elsewhere(made: Build) -> list[str]:
    """The files of records that have runs of this optimizer in any setting."""
    names = set(arms(made))
    files = sorted(RECORDS.glob("runs_*.jsonl"))
    runs = {f: map(json.loads, f.read_text("utf-8").splitlines()) for f in files}
    return [f.name for f in files if any(r["optimizer"] in names for r in runs[f])]


@cache
def _digits() -> dict[str, dict[str, Any]]:
    path = RECORDS / "gallery.json"
    rows = json.loads(path.read_text("utf-8"))["summary"]["rows"] if path.exists() else []
    return {row["optimizer"]: row for row in rows if row["held_out"]}


def on_digits(label: str) -> dict[str, Any] | None:
    """The row of an entry of the catalogue in examples/results/gallery.py's records."""
    return _digits().get(label)


def digits_figure(name: str, row: Mapping[str, Any]) -> str:
    """Held-out loss over the steps, as an element of the page."""
    with drawn("loss", f"{name}: held-out loss on digits.", (5.6, 3.4)) as picture:
        axes = picture.axes
        yardstick = on_digits("adamw-fp8-fp32")
        if yardstick is not None and yardstick is not row:
            axes.plot(*zip(*yardstick["held_out"]), "--", color=FAINT,
                      label=f"AdamW, lr={yardstick['lr']:g}")  # fmt: skip
        axes.plot(*zip(*row["held_out"]), color=LINES[0], label=f"lr={row['lr']:g}")
        axes.set(xlabel="steps", ylabel="cross-entropy", yscale="log")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return picture.html


def label(curve: Curve) -> str:
    """The hyperparameters that are not the defaults, and the lr."""
    hypers = [f"{k}={v}" for k, v in curve.hypers.items()]
    clip = [f"clipped to norm {curve.clip:g}"] if curve.clip else []
    return ", ".join([*hypers, *clip, f"lr={curve.lr:g}"])


def how_chosen(curve: Curve, made: Build) -> str:
    """Where the lr comes from, as far as the records say."""
    runs = "one run" if curve.runs == 1 else f"mean of {curve.runs} runs"
    words = f"{label(curve)}: {curve.last:.4f}, {runs}; "
    if len(curve.lrs) > 1:
        end = ", an end of that range" if curve.lr in (curve.lrs[0], curve.lrs[-1]) else ""
        tried = ", ".join(f"{x:g}" for x in curve.lrs)
        return words + f"the best of lr {tried} at this length{end}"
    for short in curves(arms(made), SHORT):
        if short.hypers == curve.hypers and short.lr == curve.lr and len(short.lrs) > 1:
            tried = ", ".join(f"{x:g}" for x in short.lrs)
            return words + f"the one lr recorded at this length, the best of {tried} in short runs"
    return words + "the one lr recorded at this length, so not known to be its best"


def figure(name: str, setting: Setting, found: list[Curve]) -> str:
    """Held-out loss over training, as an element of the page."""
    shown = found[: len(LINES)]
    caption = f"{name}: held-out loss of a {setting.words}."
    with drawn("loss", caption, (5.6, 3.4)) as picture:
        axes = picture.axes
        arm, words = setting.yardstick
        for curve in curves([arm], setting):
            words = f"{words}, {label(curve)}"
            axes.plot(*_millions(curve), "--", color=FAINT, label=words)
        for colour, curve in zip(LINES, shown):
            axes.plot(*_millions(curve), color=colour, label=label(curve))
        tops = [v for c in shown for _, v in c.points[len(c.points) // 8 :]]
        low = min(c.last for c in shown)
        axes.set(xlabel=f"million {setting.unit}s", ylabel=f"nats per {setting.unit}")
        axes.set_ylim(low - 0.1 * (max(tops) - low), max(tops))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1))  # above: curves fall from the corner
    return picture.html


def _millions(curve: Curve) -> tuple[list[float], list[float]]:
    return [t / 1e6 for t, _ in curve.points], [v for _, v in curve.points]
