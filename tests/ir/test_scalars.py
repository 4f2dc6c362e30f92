"""One meaning of scalars: Python's code, the kernel's and NumPy's functions, edges included."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from signconv import pipeline
from signconv.dsl import Optimizer
from signconv.errors import SpecError
from signconv.ir.evaluate import FUNCTIONS_OF_FLOAT64
from signconv.runtime.reference import scalars as ref
from signconv.verification import bits, scalars

VALUES = [
    0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 0.1, 7.25, -5.0, 1e-300, 5e-324, 1e300, 2.0**53, 2.0**63,
    709.5, -744.9, 710.0, -800.0, math.inf, math.nan, 1 / 3, -1 / 3,
]  # fmt: skip
PAIRS = list(itertools.product(VALUES, VALUES))


@pytest.mark.parametrize("fn", ["mod", "max", "min", "div", "real_power"])
def test_functions_of_two_numbers_are_numpys(fn: str) -> None:
    own = {"div": ref.divide64, "real_power": ref.real_power64}.get(fn) or getattr(ref, f"{fn}64")
    numpy = FUNCTIONS_OF_FLOAT64["pow" if fn == "real_power" else fn]
    for a, b in PAIRS:
        with np.errstate(all="ignore"):
            wanted = float(numpy(np.float64(a), np.float64(b)))  # type: ignore[arg-type]
        got = own(a, b)
        close = math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-320)
        assert close or (got != got and wanted != wanted), (a, b, got, wanted)


@pytest.mark.parametrize("fn", ["exp", "log", "tanh", "sqrt"])
def test_functions_of_one_number_are_numpys(fn: str) -> None:
    for x in [*VALUES, 1e-10, 0.499, 0.501, -0.3, 20.0]:
        with np.errstate(all="ignore"):
            wanted = float(FUNCTIONS_OF_FLOAT64[fn](np.float64(x)))  # type: ignore[arg-type]
        got = getattr(ref, f"{fn}64")(x)
        close = math.isclose(got, wanted, rel_tol=1e-13, abs_tol=1e-320)
        assert close or (got != got and wanted != wanted), (x, got, wanted)


@pytest.mark.parametrize("n", [0, 1, -1, -3, 5, 2**40, 2**70, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("base", [0.0, 0.5, 1.0, -1.0, -2.0, 1 + 2.0**-52, math.inf, math.nan])
def test_whole_powers_are_numpys(base: float, n: float) -> None:
    with np.errstate(all="ignore"):
        wanted = float(np.power(np.float64(base), np.float64(n)))
    got = ref.power64(base, n)
    assert math.isclose(got, wanted, rel_tol=1e-3) or (got != got and wanted != wanted)


#: Bodies whose scalars have no ordinary value at some step, or only Python's rules would give one.
EDGES = [
    "update = grad * ((t - 5) % 4)",
    "k = hyper(-3.0)\nupdate = grad * ((t - 2.5) % k)",
    "k = hyper(0.0)\nupdate = grad * (t % k)",
    "b = hyper(0.5, gt=0, lt=1)\nupdate = grad * b ** (1 - t)",
    "b = hyper(0.0, ge=0, lt=1)\nd = hyper(0.0, ge=0)\nupdate = grad * b ** (t * d)",
    "update = grad * where(t > 1e30, 2, 1)",
    "b = hyper(0.9, ge=0, lt=1)\nupdate = grad * b ** (t * 1e18)",
    "k = hyper(-8.0)\nupdate = grad * max(root(k, 3), t)",
    "k = hyper(-8.0)\nupdate = grad * min(t, sqrt(k))",
    "update = grad * log(2) * root(2, 3) * tanh(0.1)",
    "m = ema(grad, exp(-0.1))\nupdate = m.corrected",
    "update = grad * exp(t)",
    "s = state(0.1)\ns.next = s.prev * 0.9 + min(0.001, 2)\nupdate = grad * s",
    "w = hyper(0.1, ge=0)\nupdate = grad\ndecay = independent(w)",
    "update = grad * sign(log(t - 2))",
]


@pytest.mark.parametrize("body", EDGES)
def test_python_kernel_and_evaluator_agree_on_edges(body: str, tmp_path: Path, device: str) -> None:
    lines = "".join(f"    {line}\n" for line in f"lr = hyper(1e-2, ge=0)\n{body}".split("\n"))
    path = tmp_path / "mine.py"
    path.write_text(f"from signconv.dsl import *\n\n\nclass Mine(Optimizer):\n{lines}")
    made = pipeline.build(f"{path}:Mine", state="fp32")
    program = bits.load_class(made.write(tmp_path / "out")).program
    for row in (scalars.reference_row(made.kernel, program), scalars.kernel_row(program, device)):
        assert row.ok, row.detail


def test_independent_decay_from_a_rate_of_zero_is_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from signconv.dsl import *\n\n\nclass Mine(Optimizer):\n    lr = hyper(1e-2, ge=0)\n"
        "    update = grad\n    decay = independent(0.1)\n"
    )
    program = bits.load_class(pipeline.build(f"{path}:Mine").write(tmp_path / "out")).program
    for lr in (0.0, 0.5):
        outputs, _ = program.reference.scalars(1, 0.0, [lr], [])
        assert dict(zip(program.outputs, outputs, strict=True)) == {"lr": lr, "decay_step": 0.0}


def test_a_condition_may_have_a_name_and_is_no_number() -> None:
    from signconv.dsl import ema, grad, hyper, where

    class Named(Optimizer):
        lr = hyper(1e-2, ge=0)
        m = ema(grad, 0.9)
        agree = m * grad > 0  # type: ignore[operator]
        update = where(agree, m, 0)

    class Plain(Optimizer):
        lr = hyper(1e-2, ge=0)
        m = ema(grad, 0.9)
        update = where(m * grad > 0, m, 0)  # type: ignore[operator]

    assert Named.program.numerator == Plain.program.numerator
    for use in ("update = grad + up", "m = ema(up, 0.9)\n    update = grad + m"):
        source = f"class Mine(Optimizer):\n    lr = hyper(1e-2)\n    up = grad > 0\n    {use}\n"
        names: dict[str, Any] = {}
        with pytest.raises(SpecError, match=r"where\(condition, 1, 0\).*SC143"):
            exec("from signconv.dsl import *\n" + source, names)
