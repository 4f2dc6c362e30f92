"""The learning-rate range run: one run in which the lr rises from step to step until it harms.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3.  Each
step's loss is compared with that of the untouched model on the same batch, so that what batches
differ by is no fall and no rise.
"""

from __future__ import annotations

import math
import random
import statistics
import traceback
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from signconv import pictures
from signconv.errors import Origin, TuningError

#: Weight of the past in the smoothed gain; bias-corrected as AdamW's moments are.
SMOOTHING = 0.9
FEWEST = 20  # steps of a run
#: Of what batches differ by (a standard deviation): a smaller fall of the loss is none.
LEAST_FALL = 0.1
#: How far first losses of two runs may be apart, relatively, and the models still count as one.
SAME = 0.01

#: What a user's function returns: the model, or its parameters, and the loss of a step.
Made = tuple[Any, Callable[[int], Tensor]]
Factory = Callable[[Iterable[Any]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Curve:
    """One optimizer's run, up to the lr that harmed."""

    name: str
    lrs: list[float]
    losses: list[float]  # of each step, before it is taken
    untouched: list[float]  # of the same batch, with the weights of the beginning
    gain: list[float]  # their difference, smoothed; below 0 where the loss fell

    @property
    def _lowest(self) -> int:
        return min(range(len(self.gain)), key=self.gain.__getitem__)

    @property
    def lowest(self) -> float:
        """The lr at which the loss has fallen most."""
        return self.lrs[self._lowest]

    @property
    def suggestion(self) -> float | None:
        """The lr to begin with, two digits: where the loss falls fastest per factor of lr, by lines
        through a tenth of the steps; None where it hardly fell."""
        end, half = self._lowest, max(4, len(self.gain) // 20)
        least = max(LEAST_FALL * _spread(self.untouched), 1e-6 * abs(self.untouched[0]))
        if -self.gain[end] <= least:
            return None
        slopes = {}
        for i in range(end + 1):
            ys = self.gain[max(i - half, 0) : i + half + 1]
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
        is called once more than there are optimizers, with the random numbers of Python, NumPy and
        torch at ``seed``: models and batches are then the same for all.  Those of the caller go on
        where they were.
    optimizers: name -> a class, or a function of the parameters, that makes the optimizer; its
        groups' ``lr`` is overwritten at every step, in the ratios that they have at first.
    low, high: the first and the last lr, in equal factors over ``steps`` steps.

    Raises TuningError for a range, a model, a loss or an optimizer that cannot be run, with the
    user's line, and where ``make`` returns one model twice.
    """
    try:
        fine = 0 < low < high < math.inf and steps >= FEWEST and 0 <= seed < 2**32
        fine = fine and steps == int(steps) and seed == int(seed)
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise TuningError(
            "SC726",
            f"from {low} to {high} in {steps} steps, seed {seed}, is no range of learning rates: "
            f"it rises from above 0 in {FEWEST} steps or more, and a seed is a whole number below "
            "2**32",
        )
    run = _Runs(make, low, high, int(steps), int(seed))
    return [run.curve(name, factory) for name, factory in optimizers.items()]


class _Runs:
    """Runs over the same batches, and the losses of a model that is not stepped on them."""

    def __init__(
        self, make: Callable[[], Made], low: float, high: float, steps: int, seed: int
    ) -> None:
        self.make, self.seed = make, seed
        self.lrs = [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
        self.known: dict[int, weakref.ref[Tensor]] = {}  # no model outlives its run
        with _random(seed):
            _, loss_of = self._made()
            self.untouched = [float(_loss(loss_of, i).detach()) for i in range(steps)]
        if not all(map(math.isfinite, self.untouched)):
            at = next(i for i, x in enumerate(self.untouched) if not math.isfinite(x))
            raise TuningError(
                "SC728",
                f"the loss of step {at} is {self.untouched[at]} before anything was stepped: "
                "nothing can be learned from it",
            )

    def curve(self, name: str, factory: Factory) -> Curve:
        """The run of one optimizer."""
        with _random(self.seed):
            params, loss_of = self._made()
            with _user(factory, f"making {name}"):
                optimizer = factory(params)
                first = [float(group["lr"]) for group in optimizer.param_groups]
            largest = max(first) or 1.0
            losses: list[float] = []
            gain: list[float] = []
            average = 0.0
            for i, lr in enumerate(self.lrs):
                loss = _loss(loss_of, i)
                value = float(loss.detach())
                if i == 0:
                    self._same(name, value)
                average = SMOOTHING * average + (1 - SMOOTHING) * (value - self.untouched[i])
                now = average / (1 - SMOOTHING ** (i + 1))
                if not math.isfinite(value) or self._harmed(gain, now):
                    break
                losses.append(value)
                gain.append(now)
                with _user(loss_of, "the backward of its loss"):
                    optimizer.zero_grad()
                    loss.backward()
                for group, own in zip(optimizer.param_groups, first, strict=True):
                    group["lr"] = lr * (own / largest if any(first) else 1.0)
                with _user(factory, f"a step of {name}"):
                    optimizer.step()
        count = len(losses)
        return Curve(name, self.lrs[:count], losses, self.untouched[:count], gain)

    def _harmed(self, gain: list[float], now: float) -> bool:
        """Whether the loss has risen as far above that of the beginning as it had fallen below, and
        by more than batches differ."""
        if len(gain) < FEWEST // 2:
            return False
        return now > max(-min(gain), _spread(self.untouched))

    def _made(self) -> tuple[list[Tensor], Callable[[int], Tensor]]:
        with _user(self.make, f"{_name(self.make)}()"):
            made = self.make()
        model, loss = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
        every = [*model.parameters()] if isinstance(model, nn.Module) else _tensors(model)
        params = [p for p in every if p.requires_grad]
        if not callable(loss) or not every:
            raise TuningError(
                "SC727",
                f"{_name(self.make)} returned {_described(made)}, and has to return (model, loss): "
                "a module or a list of its parameters, and a function of the step's number that "
                "returns its loss",
                _line(self.make),
            )
        if not params:
            raise TuningError(
                "SC727",
                f"{_name(self.make)} returned a model of which no parameter requires a gradient",
                _line(self.make),
            )
        if any(id(p) in self.known and self.known[id(p)]() is p for p in params):
            raise TuningError(
                "SC730",
                f"{_name(self.make)} returned the same model twice: it has to make a new one at "
                "each call, since every run trains its own",
                _line(self.make),
            )
        self.known |= {id(p): weakref.ref(p) for p in params}
        return params, loss

    def _same(self, name: str, value: float) -> None:
        here = self.untouched[0]
        if not abs(value - here) <= SAME * abs(here) + 1e-6:
            raise TuningError(
                "SC730",
                f"{_name(self.make)} did not return the same model and batches again: the first "
                f"loss is {here:g} and, for {name}, {value:g}; draw everything inside it, from "
                "random numbers of Python, NumPy or torch, which are set before each call",
                _line(self.make),
            )


def _spread(losses: list[float]) -> float:
    return statistics.pstdev(losses)


@contextmanager
def _random(seed: int) -> Iterator[None]:
    """All random numbers from ``seed`` on, and afterwards where they were."""
    ours, theirs = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([*range(torch.cuda.device_count())]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(theirs)


def _tensors(given: Any) -> list[Tensor]:
    """Parameters that were given in place of a model; none for anything else."""
    if given is None or isinstance(given, Tensor | str) or not isinstance(given, Iterable):
        return []
    found = [*given]
    return found if all(isinstance(p, Tensor) for p in found) else []


def _described(made: Any) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(x).__name__ for x in made)})"
    return type(made).__name__


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
        if error is None or isinstance(error, TuningError | KeyboardInterrupt):
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
    """How far the loss fell against lr, one line per optimizer, its suggestion marked; PictureError
    where it cannot be written."""
    with pictures.drawn(path, figsize=(8, 4.5)) as axes:
        for curve in curves:
            (line,) = axes.plot(curve.lrs, curve.gain, label=curve.name)
            steps = [a - b for a, b in zip(curve.losses, curve.untouched, strict=True)]
            axes.plot(curve.lrs, steps, color=line.get_color(), alpha=0.2, linewidth=0.8)
            if (at := curve.suggestion) is not None:
                height = curve.gain[bisect_left(curve.lrs, at, hi=len(curve.lrs) - 1)]
                axes.plot([at], [height], "o", color=line.get_color())
                axes.annotate(f"{at:g}", (at, height), textcoords="offset points", xytext=(6, 6))
        floor = min(min(c.gain) for c in curves)
        room = abs(floor) or 1.0
        axes.set_ylim(floor - 0.1 * room, 0.5 * room)
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate of the step")
        axes.set_ylabel("training loss, less that of the untouched model")
        axes.legend(frameon=False)
