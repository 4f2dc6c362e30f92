"""What clipping costs: inside the step, and by torch before it, in one process.

    python examples/clip_time.py [--workload B] [--out FILE]

Prints median milliseconds of a step of AdamW with FP8 state over bf16 parameters (signconv's
workloads A to D), and how long each is beside the step without clipping.  Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import signconv
from signconv.bench import timing, workloads


def calls(workload: workloads.Workload, device: str) -> dict[str, timing.Call]:
    """A step in each way, on tensors of its own."""
    plain = signconv.compile("adamw")
    made: dict[str, timing.Call] = {}

    def stepped(name: str, cls: Any, clips: Any = None) -> None:
        params = workload.tensors(torch.bfloat16, device)
        optimizer = cls(params, lr=1e-6)

        def call() -> None:
            if clips is not None:
                clips(params)
            optimizer.step()

        made[name] = call

    stepped("step, not clipped", plain)
    stepped("clip_grad_norm_, then a step", plain, _by_torch)
    for over in ("all", "group", "tensor"):
        stepped(f"clip:over={over}", signconv.compile("adamw", convert=f"clip:over={over}"))
    stepped("clip:value", signconv.compile("adamw", convert="clip:value=1"))
    return made


def _by_torch(params: list[torch.Tensor]) -> None:
    torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="B", choices=[*workloads.MADE])
    parser.add_argument("--quick", action="store_true", help="small tensors, few samples")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (workload,) = workloads.choose(given.workload, given.quick)
    effort = timing.QUICK if given.quick else timing.FULL
    found: dict[str, float] = {}
    for name, call in calls(workload, device).items():
        found[name] = timing.median(timing.device_times(call, device, effort))
        if device == "cuda":
            torch.cuda.empty_cache()
    card = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    table = Table(title=f"{workload.title}, {card}, torch {torch.__version__}")
    for column in ("way", "ms", "of a step"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, ms in found.items():
        table.add_row(name, f"{ms:.3f}", f"{ms / found['step, not clipped']:.3f}")
    Console().print(table)
    if given.out is not None:
        record = {"workload": given.workload, "card": card, "torch": torch.__version__, "ms": found}
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
