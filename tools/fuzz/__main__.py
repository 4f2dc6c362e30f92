"""`make fuzz`: random programs for as long as it is left; failures are shrunk and kept.

    python -m tools.fuzz --minutes 60 --seed 7 --jobs 8

A failing program goes to tools/fuzz/regressions/, which the test suite replays.  Exit code 1 if
anything failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from tools.fuzz.batches import alone, batch
from tools.fuzz.check import Tally
from tools.fuzz.programs import Case

REGRESSIONS = Path(__file__).parent / "regressions"
BATCH = 100


def keep(number: int, words: str, case: Case) -> None:
    """Write a failing program where the test suite replays it, and print it."""
    name = hashlib.sha256(json.dumps(case.body).encode()).hexdigest()[:8]
    path = REGRESSIONS / f"found_{name}.py"
    path.write_text(case.source)
    print(f"seed {number}: {words}\n  kept as {path.name}:\n{case.source}", flush=True)


def main() -> int:
    """Parse the command line and run until the time is up."""
    parser = argparse.ArgumentParser(prog="tools.fuzz", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with seeds of its own")
    parser.add_argument(
        "--no-shrink", action="store_true", help="richer programs; failures are kept as they come"
    )
    parser.add_argument(
        "--no-kernel", action="store_true", help='without the kernel: "auto" and the evaluator'
    )
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total, failures, end = Tally(), 0, time.monotonic() + 60 * arguments.minutes
    number = arguments.seed
    print(f"first seed {number}, kernels on {device}", flush=True)
    run = partial(
        batch,
        programs=BATCH,
        device=device,
        shrink=not arguments.no_shrink,
        kernel=not arguments.no_kernel,
    )
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn"), alone) as pool:
        running: dict[Future[tuple[Tally, str, Case | None]], int] = {}
        while running or time.monotonic() < end:
            while len(running) < arguments.jobs and time.monotonic() < end:
                running[pool.submit(run, number)] = number
                number += 1
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                tally, words, case = done.result()
                seed_of = running.pop(done)
                total.add(tally)
                if case is not None:
                    failures += 1
                    keep(seed_of, words, case)
                print(
                    f"seed {seed_of}: {total.programs} programs, "
                    f"{sum(total.refused.values())} refused, "
                    f"{total.decided / max(total.values, 1):.0%} of {total.values} values "
                    f"decided, {failures} failures",
                    flush=True,
                )
    shares = (f"{name} {n / total.programs:.1%}" for name, n in total.features.most_common())
    print("drawn: " + ", ".join(shares))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
