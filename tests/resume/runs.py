"""A training run that can be stopped at any step, saved, and continued in another process."""

from __future__ import annotations

import json
import random
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from signconv.verification.bits import load_class

STEPS = 7
#: Shape, dtype, the first step with a gradient: t is counted per parameter.
PARAMETERS = (
    ((4, 64), torch.float32, 1),
    ((33,), torch.float32, 1),
    ((2, 96), torch.bfloat16, 1),
    ((64,), torch.float32, 3),
    ((7, 5), torch.bfloat16, 1),
)


@dataclass(frozen=True)
class Case:
    """One run: a generated module, a backend, and the step after which it is stopped."""

    name: str
    module: str
    backend: str
    device: str
    master: str | None
    stop: int


def draw_stop(name: str, seed: int) -> int:
    """The step after which a run is stopped: any but the last."""
    return random.Random(f"{name} {seed}").randrange(0, STEPS)


class Run:
    """Parameters in two groups with an optimizer; gradients depend on the step alone."""

    def __init__(self, case: Case) -> None:
        rng = torch.Generator().manual_seed(0)
        self.params = [
            torch.randn(shape, generator=rng).to(case.device, dtype).requires_grad_()
            for shape, dtype, _ in PARAMETERS
        ]
        cls = load_class(Path(case.module))
        groups = [{"params": self.params[:3]}, {"params": self.params[3:], "lr": 3e-3}]
        self.optimizer = cls(
            groups, lr=1e-2, seed=2**40 + 3, backend=case.backend, master=case.master
        )
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def train(self, first: int, last: int) -> Run:
        """Steps first..last, both included."""
        for t in range(first, last + 1):
            rng = torch.Generator().manual_seed(t)
            for p, (shape, dtype, begin) in zip(self.params, PARAMETERS, strict=True):
                g = torch.randn(shape, generator=rng) * 10.0 ** (t % 4 - 3)
                p.grad = g.to(p.device, dtype) if t >= begin else None
            self.optimizer.step()
            self.schedule.step()
        return self

    def snapshot(self) -> dict[str, Any]:
        return {
            "params": [p.detach().cpu() for p in self.params],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, saved: dict[str, Any]) -> Run:
        with torch.no_grad():
            for p, value in zip(self.params, saved["params"], strict=True):
                p.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        return self


def save_plan(cases: list[Case], folder: Path) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps([asdict(c) for c in cases]))
    return path


def main(plan: Path) -> None:
    """In the new process: load each checkpoint, train to the end, write what came out."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for fields in json.loads(plan.read_text()):
        case = Case(**fields)
        saved = torch.load(plan.parent / f"{case.name}.pt", weights_only=True)
        run = Run(case).restore(saved).train(case.stop + 1, STEPS)
        torch.save(run.snapshot(), plan.parent / f"{case.name}.end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
