"""A batch of random programs, in a process of its own or not."""

from __future__ import annotations

import os
import warnings

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

from hypothesis import HealthCheck, Phase, given, seed, settings

from tools.fuzz.check import Tally, check
from tools.fuzz.programs import Case, cases, random_case


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


def alone() -> None:
    """A worker: one thread, and no word on what NumPy makes of extreme gradients."""
    warnings.simplefilter("ignore", RuntimeWarning)
    torch.set_num_threads(1)
