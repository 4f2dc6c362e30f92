"""The learning-rate range run: one run in which the lr rises from step to step until it harms.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3.
"""

from __future__ import annotations

import math
import statistics
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from signconv import pictures
from signconv.errors import Origin, TuningError

#: Weight of the past in the smoothed loss; bias-corrected as AdamW's moments are.
SMOOTHING = 0.9
#: A run ends where the smoothed loss lies as far above its start as it had fallen below, or so
#: much of its start; the start is the largest of the first tenth, so that batches may differ.
RISE = 0.25
LEAST_FALL = 0.01  # of the loss; less is no fall
FIRST = 10  # a run's first tenth
FEWEST = 20  # steps of a run

#: What a user's function returns: the model, or its parameters, and the loss of a step.
Made = tuple[Any, Callable[[int], Tensor]]
Factory = Callable[[Iterable[Any]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Curve:
    """One optimizer's run, up to the lr that harmed."""

    name: str
    lrs: list[float]
    losses: list[float]  # of each step, before it is taken
    smooth: list[float]

    @property
    def _lowest(self) -> int:
        first = len(self.smooth) // FIRST  # where one batch is most of the average
        return min(range(first, len(self.smooth)), key=self.smooth.__getitem__)

    @property
    def lowest(self) -> float:
        """The lr at which the smoothed loss is least."""
        return self.lrs[self._lowest]

    @property
    def suggestion(self) -> float | None:
        """The lr to begin with, two digits: where the smoothed loss falls fastest per factor of lr,
        by lines through a tenth of the steps; None where it hardly fell below its first tenth."""
        first, end = len(self.smooth) // FIRST or 1, self._lowest
        half = max(4, first // 2)
        start = statistics.fmean(self.losses[:first])
        if start - self.smooth[end] < LEAST_FALL * abs(start):
            return None
        slopes = {}
        for i in range(first, end + 1):
            ys = self.smooth[max(i - half, first) : i + half + 1]
            middle = (len(ys) - 1) / 2
            if len(ys) > half:
                slopes[i] = sum((j - middle) * y for j, y in enumerate(ys)) / len(ys) ** 3
        at = min(slopes, key=slopes.__getitem__, default=end)
        return float(f"{self.lrs[at]:.1e}")

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**asdict(self), "lowest": self.lowest, "suggestion": self.suggestion}


def lr_range(
    make: Callable[[], Made],
    optimizers: Mapping[str, Factory],
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 200,
    seed: int = 0,
) -> list[Curve]:
    """One range run per optimizer, each on a model that ``make`` makes anew.

    make: returns (model, loss): a module or its parameters, and a function of the step's number,
        0, 1, …, that returns the loss of that step's batch, a scalar that requires a gradient.  It
        is called once per optimizer, with torch's random numbers at ``seed``: models and batches
        are then the same for all.
    optimizers: name -> a class, or a function of the parameters, that makes the optimizer; its
        groups' ``lr`` is overwritten at every step, in the ratios that they have at first.
    low, high: the first and the last lr, in equal factors over ``steps`` steps.

    Raises TuningError for a range, a model or a loss that cannot be run, with the user's line.
    """
    if not (0 < low < high < math.inf) or steps < FEWEST:
        raise TuningError(
            "SC726",
            f"from {low:g} to {high:g} in {steps} steps is no range of learning rates: it rises "
            f"from above 0 in {FEWEST} steps or more",
        )
    return [_run(make, name, f, low, high, steps, seed) for name, f in optimizers.items()]


def _run(
    make: Callable[[], Made],
    name: str,
    factory: Factory,
    low: float,
    high: float,
    steps: int,
    seed: int,
) -> Curve:
    devices = [*range(torch.cuda.device_count())]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        params, loss_of = _made(make)
        optimizer = factory(params)
        first = [float(group["lr"]) for group in optimizer.param_groups]
        largest = max(first) or 1.0
        lrs = [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
        losses: list[float] = []
        smooth: list[float] = []
        average = 0.0
        for i, lr in enumerate(lrs):
            loss = _loss(loss_of, i)
            value = float(loss.detach())
            average = SMOOTHING * average + (1 - SMOOTHING) * value
            now = average / (1 - SMOOTHING ** (i + 1))
            if not math.isfinite(value) or _harmed(smooth, now, steps // FIRST):
                break
            losses.append(value)
            smooth.append(now)
            optimizer.zero_grad()
            with _user(loss_of, "the backward of its loss"):
                loss.backward()
            for group, own in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = lr * (own / largest if any(first) else 1.0)
            optimizer.step()
    if not losses:
        raise TuningError(
            "SC728", f"{name}: the loss is {value} before the first step: nothing can be learned"
        )
    return Curve(name, lrs[: len(losses)], losses, smooth)


def _harmed(smooth: list[float], now: float, first: int) -> bool:
    """Whether the loss has risen as far above its first steps as it fell below, RISE at least."""
    if len(smooth) <= first:
        return False
    start, least = max(smooth[:first]), min(smooth)
    return now > start + max(start - least, RISE * abs(start))


def _made(make: Callable[[], Made]) -> tuple[list[Tensor], Callable[[int], Tensor]]:
    with _user(make, f"{_name(make)}()"):
        made = make()
    model, loss = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
    if isinstance(model, nn.Module):
        params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    else:
        params = [] if model is None or isinstance(model, Tensor) else [*model]
    if not params or not all(isinstance(p, Tensor) for p in params) or not callable(loss):
        raise TuningError(
            "SC727",
            f"{_name(make)} returned {type(made).__name__}, and has to return (model, loss): a "
            "module or its parameters, and a function of the step's number that returns its loss",
            _line(make),
        )
    return params, loss


def _loss(loss_of: Callable[[int], Tensor], i: int) -> Tensor:
    with _user(loss_of, f"{_name(loss_of)}({i})"):
        loss = loss_of(i)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise TuningError(
            "SC727",
            f"{_name(loss_of)}({i}) returned {got}, and has to return the step's loss: a scalar "
            "tensor that requires a gradient",
            _line(loss_of),
        )
    return loss


class _user:
    """Whatever fails in the user's function becomes a TuningError with its line."""

    def __init__(self, function: Any, what: str) -> None:
        self.function, self.what = function, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, TuningError):
            return
        code = getattr(self.function, "__code__", None)
        file = code.co_filename if code else ""
        frames = [f for f in traceback.extract_tb(trace) if f.filename == file]
        at = Origin(file, frames[-1].lineno or 0) if frames else _line(self.function)
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise TuningError("SC728", f"{self.what} raised {words}", at) from error


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _line(function: Any) -> Origin | None:
    code = getattr(function, "__code__", None)
    return Origin(code.co_filename, code.co_firstlineno) if code else None


def draw(curves: list[Curve], path: Path) -> None:
    """Loss against lr, one line per optimizer, its suggestion marked; PictureError where it
    cannot be written."""
    with pictures.drawn(path, figsize=(8, 4.5)) as axes:
        for curve in curves:
            (line,) = axes.plot(curve.lrs, curve.smooth, label=curve.name)
            axes.plot(curve.lrs, curve.losses, color=line.get_color(), alpha=0.2, linewidth=0.8)
            if (at := curve.suggestion) is not None:
                height = curve.smooth[bisect_left(curve.lrs, at, hi=len(curve.lrs) - 1)]
                axes.plot([at], [height], "o", color=line.get_color())
                axes.annotate(f"{at:g}", (at, height), textcoords="offset points", xytext=(6, 6))
        floor, start = min(min(c.smooth) for c in curves), max(c.smooth[0] for c in curves)
        room = 0.1 * (start - floor) or 1.0
        axes.set_ylim(floor - room, start + 3 * room)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate of the step")
        axes.set_ylabel("training loss")
        axes.legend(frameon=False)
