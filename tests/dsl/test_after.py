"""What a spec may say of the time after the update, and what it may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from signconv.errors import SignconvError
from signconv.ir import analysis
from signconv.ir.evaluate import Evaluator
from signconv.pipeline import apply_passes, build, requests_of, resolve
from tests.support import program_of

REFUSED = {
    "update = grad\nnew_param = stepped / norm(stepped)": "SC161",
    "a = state(param)\na.next = mean(abs(stepped))\nupdate = grad + a.prev": "SC161",
    "half = stepped / 2\nupdate = grad\nnew_param = half * norm(half)": "SC161",
    "m = ema(grad, 0.9)\nupdate = m\nnew_param = 0.9 * param - 0.1 * m": "SC162",
    "update = grad\neval_param = param / norm(param)": "SC160",
    "m = ema(grad, 0.9)\nupdate = m\neval_param = param - m.corrected": "SC160",
    "m = ema(grad, 0.9)\nupdate = m\neval_param = param - m.prev": r"and not of m.prev \[SC160",
    "m = ema(grad, 0.9)\nx = 2 * m\nupdate = m\neval_param = param - x": "in its place",
    "update = grad * stepped": r"keep it in a state and use its .prev.*SC159",
}


@pytest.mark.parametrize("body", REFUSED)
def test_refused_by_name(body: str, tmp_path: Path) -> None:
    with pytest.raises(SignconvError, match=REFUSED[body]):
        program_of(tmp_path, body)


@pytest.mark.parametrize("convert", ["sign", "stosign", "expected", "cautious"])
def test_a_pass_reaches_the_parameter(convert: str) -> None:
    """Also of a spec that says itself what the parameter becomes."""
    ends = []
    for passes in (None, convert):
        program = apply_passes(resolve("schedulefree_adamw"), requests_of(passes))
        evaluator = Evaluator(program, lr=0.1)
        p = np.linspace(-1.0, 1.0, 16)
        state = evaluator.initial_state(p)
        for t in range(1, 4):
            g = np.sin(np.arange(16.0) * t)
            p, state = evaluator.step(p, g, state, t, np.full(16, 0.25))
        ends.append(p)
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


@pytest.mark.parametrize("convert", ["ema", "lookahead", "schedulefree"])
def test_a_second_point_is_not_computed_in_bf16(convert: str) -> None:
    """An average would stand still there."""
    with pytest.raises(SignconvError, match=r"comes after the update.*SC304"):
        build("sgd", convert=convert, math="bf16")


def test_a_long_chain_after_the_update_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name reads the one before: none is looked at again for every other."""
    names = ["x0 = stepped / 2", *(f"x{i} = x{i - 1} * 0.5 + param" for i in range(1, 300))]
    program = program_of(tmp_path, "\n".join([*names, "update = grad", "new_param = x299"]))
    asked, question = [], analysis.made_of_stepped
    monkeypatch.setattr(analysis, "made_of_stepped", lambda *a: (asked.append(1), question(*a))[1])
    assert len(analysis.after_step(program)) == 300
    assert len(asked) < 10 * 300
