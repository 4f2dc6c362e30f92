"""Random programs against all witnesses; `make fuzz` runs the same for as long as it is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tools.fuzz.__main__ import REGRESSIONS
from tools.fuzz.check import Tally, check
from tools.fuzz.programs import Case, cases, read_case

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


BATCHES, PROGRAMS = 12, 25
#: The same programs go on until there are 10,000.
LONG = range(BATCHES, 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [*range(BATCHES), *(pytest.param(n, marks=pytest.mark.long) for n in LONG)],
)
def test_random_programs(number: int, device: str) -> None:
    """The same programs in every run: the seed is fixed and no database is read."""
    tally = Tally()
    # Hypothesis repeats what it drew, and one large tensor outweighs many: each program counts once
    refused: dict[tuple[str, ...], bool] = {}
    decided: dict[tuple[str, ...], float] = {}

    def one(case: Case) -> None:
        result = check(case, device)
        tally.add(result.tally)
        refused[case.body] = bool(result.refused)
        if result.tally.values:
            decided[case.body] = result.tally.decided / result.tally.values
        assert not result.problems, "\n".join([*result.problems, case.source])

    fixed = settings(
        max_examples=PROGRAMS,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # `make fuzz` shrinks
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(fixed(given(cases())(one)))()
    assert sum(refused.values()) <= 0.2 * len(refused), tally
    assert sum(decided.values()) > 0.6 * len(decided) and len(decided) > 5, (decided, tally)
    assert tally.decided > 1000, tally
    assert tally.laws, tally
