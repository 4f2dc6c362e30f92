"""The path of a generated optimizer on two test functions, run while the site is built."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signconv.runtime.optimizer import FusedOptimizer
from tools.site.figures import FAINT, LINES, TEXT, drawn

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "site_cache"
STEPS, LAST = 300, 20
#: Learning rates, two a decade: 1e-4 to 1.
RATES = tuple(float(f"{(1, 3)[i % 2]}e{i // 2}") for i in range(-8, 1))
#: Steps between estimates of an extra input named hessian, as its optimizer's docstring has it.
HESSIAN_EVERY = 10


@dataclass(frozen=True)
class Function:
    """A function of two variables: where to start, where its minimum is, the window to draw."""

    name: str
    value: Callable[[Any, Any], Any]
    start: tuple[float, float]
    minimum: tuple[float, float]
    window: tuple[float, float, float, float]
    levels: tuple[float, ...]
    grid: int  # points a side for the contours


def rosenbrock(x: Any, y: Any) -> Any:
    """A curved valley (Rosenbrock 1960)."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rastrigin(x: Any, y: Any) -> Any:
    """A bowl full of local minima (Rastrigin 1974)."""
    cos = torch.cos if isinstance(x, Tensor) else np.cos
    return 20 + x**2 - 10 * cos(2 * math.pi * x) + y**2 - 10 * cos(2 * math.pi * y)


FUNCTIONS = (
    Function("Rosenbrock", rosenbrock, (-1.5, 2.0), (1.0, 1.0), (-2.0, 2.0, -1.0, 3.0),
             (1, 4, 16, 64, 256, 1024), 101),
    Function("Rastrigin", rastrigin, (-2.2, 3.4), (0.0, 0.0), (-4.0, 4.0, -4.0, 4.0),
             (4, 16, 32), 61),
)  # fmt: skip


@dataclass(frozen=True)
class Path_:
    """A run of STEPS steps: its lr, the points before and after each, what it ended at."""

    lr: float
    points: list[list[float]]
    last: float


def paths(stems: Sequence[str]) -> dict[str, list[Path_] | None]:
    """For every file of generated/ its best run on each function; None where it cannot run.

    Kept in build/site_cache until the file, the runtime or this program changes.
    """
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return dict(zip(stems, pool.map(_kept, stems)))


def _kept(stem: str) -> list[Path_] | None:
    sources = [ROOT / "generated" / f"{stem}.py", Path(__file__)]
    sources += sorted((ROOT / "signconv" / "runtime").rglob("*.py"))
    digest = hashlib.sha256(b"".join(x.read_bytes() for x in sources)).hexdigest()[:16]
    file = CACHE / f"{stem}_{digest}.json"
    if not file.exists():
        found = [best(class_of(stem), f) for f in FUNCTIONS]
        made = [asdict(x) for x in found if x] if all(found) else None
        CACHE.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(made))
    made = json.loads(file.read_text())
    return None if made is None else [Path_(**x) for x in made]


def class_of(stem: str) -> type[FusedOptimizer]:
    """The optimizer of a file of generated/."""
    module = importlib.import_module(f"signconv.generated.{stem}")
    (cls,) = (
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, FusedOptimizer) and x is not FusedOptimizer
    )
    return cls


def best(cls: type[FusedOptimizer], function: Function) -> Path_ | None:
    """Of runs at all RATES the one with the lowest mean over the LAST values.

    None for an optimizer that needs an extra input this program knows nothing of.
    """
    if any(x.needed and x.name != "hessian" for x in cls.program.extras):
        return None
    runs = [run(cls, function, lr) for lr in RATES]
    return min(runs, key=lambda x: x.last if math.isfinite(x.last) else math.inf)


def run(cls: type[FusedOptimizer], function: Function, lr: float) -> Path_:
    """STEPS steps from the function's start without weight decay, random numbers from seed 0."""
    p = torch.nn.Parameter(torch.tensor(function.start))
    decay = {"weight_decay": 0.0} if "weight_decay" in _hypers(cls) else {}
    optimizer: Any = cls([p], lr=lr, seed=0, **decay)
    wants_hessian = any(x.name == "hessian" for x in cls.program.extras)
    points, values = [list(function.start)], []
    for t in range(STEPS):
        loss = function.value(p[0], p[1])
        (p.grad,) = torch.autograd.grad(loss, p, create_graph=False, retain_graph=False)
        given = {"hessian": [diagonal(function, p)]} if wants_hessian else {}
        optimizer.step(**(given if t % HESSIAN_EVERY == 0 else {}))
        point = _evaluated(optimizer, p)
        if not all(map(math.isfinite, point)):
            return Path_(lr, points, math.inf)
        points.append([round(x, 4) for x in point])
        values.append(float(function.value(*map(torch.tensor, point))))
    return Path_(lr, points, sum(values[-LAST:]) / LAST)


def _hypers(cls: type[FusedOptimizer]) -> list[str]:
    return [h.name for h in cls.program.hypers]


def _evaluated(optimizer: Any, p: Tensor) -> list[float]:
    """The parameter, where the optimizer wants to be evaluated."""
    if optimizer.program.evaluation is None:
        return p.tolist()
    optimizer.eval()
    point: list[float] = p.tolist()
    optimizer.train()
    return point


def diagonal(function: Function, p: Tensor) -> Tensor:
    """The Hessian's diagonal at ``p``."""
    point = p.detach()
    whole = torch.autograd.functional.hessian(lambda q: function.value(q[0], q[1]), point)
    return torch.diagonal(whole).clone()


def figure(function: Function, path: Path_, name: str) -> str:
    """The path over the function's contours, as an element of the page."""
    x0, x1, y0, y1 = function.window
    x, y = np.meshgrid(*(np.linspace(*ends, function.grid) for ends in ((x0, x1), (y0, y1))))
    steps = np.array(path.points)
    caption = (
        f"{name} on {function.name}'s function: {STEPS} steps, lr {path.lr:g}, mean of the last "
        f"{LAST} values {path.last:.2g}. Ring: start; cross: the minimum, 0."
    )
    with drawn(function.name, caption) as picture:
        axes = picture.axes
        axes.contour(x, y, function.value(x, y), function.levels, colors=FAINT, linewidths=0.6)
        axes.plot(*steps.T, color=LINES[0], linewidth=1.0, marker=".", markersize=2)
        axes.plot(*function.start, "o", color=TEXT, fillstyle="none", markersize=8)
        axes.plot(*function.minimum, "x", color=LINES[1], markersize=9, markeredgewidth=2)
        axes.set(xlim=(x0, x1), ylim=(y0, y1), title=function.name)
    return picture.html
