"""Random programs against all witnesses; `make fuzz` runs the same for as long as it is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from signconv.errors import SignconvError
from tools.fuzz.__main__ import REGRESSIONS
from tools.fuzz.check import Tally, check, compiled
from tools.fuzz.programs import random_case, read_case

KEPT = sorted(REGRESSIONS.glob("*.py"))
assert KEPT, f"{REGRESSIONS} holds no program"
#: NumPy's, from the interpreter and the float64 evaluator on extreme gradients.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_programs_that_once_failed(path: Path, device: str) -> None:
    source = path.read_text()
    case = read_case(source)
    assert case.source == source
    result = check(case, device)
    assert not result.refused
    assert not result.problems, "\n".join(result.problems)


BATCHES, PROGRAMS = 4, 25
#: The same programs go on until there are 10,000.
LONG = range(BATCHES, 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [*range(BATCHES), *(pytest.param(n, marks=pytest.mark.long) for n in LONG)],
)
def test_random_programs(number: int, device: str) -> None:
    """The same programs in every run; every tenth in the interpreter too, which is slow."""
    tally, decided = Tally(), 0
    for n in range(number * PROGRAMS, (number + 1) * PROGRAMS):
        case = random_case(n)
        result = check(case, device, kernel=n % 10 == 0 or device != "cpu")
        assert not result.problems, "\n".join([*result.problems, case.source])
        tally.add(result.tally)
        # One large tensor outweighs many: each program counts once
        decided += result.tally.decided > 0.5 * result.tally.values
    assert sum(tally.refused.values()) <= 0.2 * PROGRAMS, tally
    assert decided > 0.5 * PROGRAMS, tally
    assert tally.decided > 1000, tally
    assert tally.laws, tally


def test_whole_numbers_are_met_where_they_are_asked_for(tmp_path: Path) -> None:
    """They are for moments beside ratios, and what is drawn stands in ratios but for one."""
    asked = met = 0
    for case in (x for x in map(random_case, range(120)) if x.state == "int8"):
        asked += 1
        try:
            moments = compiled(case, tmp_path).kernel.moments
        except SignconvError:
            continue
        met += any(m.format == "int8" for m in moments)
    assert asked > 5 and met > 0.25 * asked
