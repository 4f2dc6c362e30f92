"""Which moments can be few numbers only, and that a generated file says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from signconv.generated.rprop import Rprop

from signconv.ir.values import Values
from signconv.pipeline import build
from tests.support import program_of, spec_file

#: What a state q becomes -> how many numbers that can be; 0: any.
NEXT = {
    "sign(grad)": 3,
    "sign(q.prev * grad)": 3,
    "where(grad > 0, 1, 0)": 2,
    "where(grad > 0, 1, where(grad < 0, -1, 0))": 3,
    "where(grad > 0, sign(q.prev), 2)": 4,
    "where(grad > 0, 1, 1)": 1,
    "where(grad > 0, c, 5)": 2,
    "1.0": 1,
    "where(grad > 0, grad, 0)": 0,
    "where(grad > 0, 0, q.prev)": 0,
    "0.9 * q.prev + 0.1 * sign(grad)": 0,
    "sign(grad) * b": 0,
    "b": 0,
    "grad": 0,
}


@pytest.mark.parametrize("after", NEXT)
def test_values_of_a_state(after: str, tmp_path: Path) -> None:
    used = [x for x in ("b = hyper(0.5)", "c = where(grad < 1, 4, 4)") if x[0] in set(after)]
    body = "\n".join([*used, "q = state()", f"q.next = {after}", "numerator = grad + q"])
    assert Values(program_of(tmp_path, body)).of_moment("q") == NEXT[after]


def test_an_average_of_signs_is_any_number(tmp_path: Path) -> None:
    p = program_of(tmp_path, "q = ema(sign(grad), 0.9)\nnumerator = q")
    assert Values(p).of_moment("q") == 0


def test_values_are_read_in_linear_time(tmp_path: Path) -> None:
    """Each name reads the one before twice."""
    names = [f"x{i} = where(grad > {i}, x{i - 1}, x{i - 1})" for i in range(1, 60)]
    body = ["x0 = where(grad > 0, 1, 0)", *names, "q = state()", "q.next = x59", "numerator = q"]
    made = build(spec_file(tmp_path, "\n".join(body)).spec)
    assert "values=2)" in made.module.source


def test_generated_files_say_it() -> None:
    assert [(m.name, m.values) for m in Rprop.program.moments] == [
        ("last_sign", 3),
        ("step_size", 0),
    ]
