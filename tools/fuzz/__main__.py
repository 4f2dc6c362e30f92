"""`make fuzz`: random programs for as long as it is left; failures are shrunk and kept.

    python -m tools.fuzz --minutes 60 --seed 7

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
import warnings
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

from hypothesis import HealthCheck, Phase, given, seed, settings

from tools.fuzz.check import Tally, check
from tools.fuzz.programs import Case, cases, random_case

REGRESSIONS = Path(__file__).parent / "regressions"
BATCH = 100


def batch(
    number: int, programs: int, device: str, shrink: bool, kernel: bool = True
) -> tuple[Tally, str, Case | None]:
    """Run some programs; the tally, and the words and the (shrunk) case of a failure.

    Unless it is to be shrunk a program is drawn by its number alone, from ``number * programs`` on.
    """
    tally = Tally()
    last: dict[str, Case | str] = {}

    def one(case: Case) -> None:
        try:
            result = check(case, device, kernel)
        except Exception as error:
            last["case"], last["words"] = case, f"{type(error).__name__}: {error}"
            raise
        tally.add(result.tally)
        if result.problems:
            last["case"], last["words"] = case, result.problems[0]
            raise AssertionError(result.problems[0])

    if not shrink:
        for n in range(number * programs, (number + 1) * programs):
            try:
                one(random_case(n))
            except Exception:
                break
        failed = last.get("case")
        return tally, str(last.get("words", "")), failed if isinstance(failed, Case) else None
    wanted = settings(
        max_examples=programs,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    try:
        seed(number)(wanted(given(cases())(one)))()
    except Exception as error:
        case = last.get("case")
        if not isinstance(case, Case):
            raise RuntimeError("hypothesis failed before a program ran") from error
        return tally, str(last["words"]), case
    return tally, "", None


def main() -> int:
    """Parse the command line and run until the time is up."""
    parser = argparse.ArgumentParser(prog="tools.fuzz", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument(
        "--no-shrink", action="store_true", help="richer programs; failures are kept as they come"
    )
    parser.add_argument(
        "--no-kernel", action="store_true", help='without the kernel: "auto" and the evaluator'
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total, failures, begin, number = Tally(), 0, time.monotonic(), arguments.seed
    print(f"first seed {number}, kernels on {device}", flush=True)
    while time.monotonic() - begin < 60 * arguments.minutes:
        tally, words, case = batch(
            number, BATCH, device, not arguments.no_shrink, not arguments.no_kernel
        )
        total.add(tally)
        print(
            f"seed {number}: {total.programs} programs, {sum(total.refused.values())} refused, "
            f"{total.decided / max(total.values, 1):.0%} of {total.values} values decided, "
            f"{failures} failures",
            flush=True,
        )
        if case is not None:
            failures += 1
            name = hashlib.sha256(json.dumps(case.body).encode()).hexdigest()[:8]
            path = REGRESSIONS / f"found_{name}.py"
            path.write_text(case.source)
            print(f"seed {number}: {words}\n  kept as {path.name}:\n{case.source}", flush=True)
        number += 1
    shares = (f"{name} {n / total.programs:.0%}" for name, n in total.features.most_common())
    print("drawn: " + ", ".join(shares))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
