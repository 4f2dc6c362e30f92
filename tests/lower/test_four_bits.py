"""Which moments take 4 bits: none that another one gathers, none that bounds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from signconv.errors import LoweringError
from signconv.pipeline import build

AVERAGES = "m = ema(grad, 0.9)\nv = ema(grad**2, 0.999)\n"


def formats(tmp_path: Path, body: str) -> dict[str, str]:
    lines = [f"    {line}\n" for line in ('"""X."""', "lr = hyper(1e-3, ge=0)", *body.split("\n"))]
    path = tmp_path / "x.py"
    path.write_text("from signconv.dsl import *\n\n\nclass X(Optimizer):\n" + "".join(lines))
    return {m.name: m.format for m in build(f"{path}:X", state="fp4").kernel.moments}


@pytest.mark.parametrize(
    ("spec", "convert", "wanted"),
    [
        ("adamw", None, {"m": "e2m1", "v": "e4m0"}),
        ("nadam", "stosign", {"m": "e2m1", "v": "e4m0"}),
        ("s3", None, {"m": "e2m1", "s": "e4m0"}),
        ("lion", None, {"m": "e2m1"}),
        ("rmsprop", None, {"v": "e4m0"}),
        ("adamax", None, {"m": "e2m1", "u": "e4m3"}),
        ("amsgrad", None, {"m": "e2m1", "v": "e5m3", "v_max": "e5m3"}),
        ("lamb", None, {"m": "e2m1", "v": "e5m3"}),
    ],
)
def test_builtins(spec: str, convert: str | None, wanted: dict[str, str]) -> None:
    kernel = build(spec, convert=convert, state="fp4").kernel
    assert {m.name: m.format for m in kernel.moments} == wanted


@pytest.mark.parametrize("spec", ["stosignsgd", "adabelief", "adan"])
def test_nothing_is_left_for_them(spec: str) -> None:
    with pytest.raises(LoweringError, match="SC311"):
        build(spec, state="fp4")


@pytest.mark.parametrize(
    "update",
    [
        "numerator = m.prev\ndenominator = sqrt(v)",  # last step's m, which this v need not cover
        "numerator = 0.9 * m.prev + 0.1 * grad\ndenominator = sqrt(v)",
        "update = m * (1 / sqrt(v))",  # the quotient's numerator says nothing of m
        "numerator = m * m\ndenominator = v",
        "numerator = where(m * grad > 0, m, 0)\ndenominator = sqrt(v)",  # not linear
        "s = state(0)\ns.next = max(s.prev, v)\nnumerator = m\ndenominator = sqrt(s)",
    ],
)
def test_a_denominator_that_bounds_nothing_keeps_its_byte(tmp_path: Path, update: str) -> None:
    """With 4 bits it could round to nearly 0 beside a numerator that does not."""
    assert formats(tmp_path, AVERAGES + update)["v"] == "e5m3"


def test_what_another_moment_reads_keeps_its_byte(tmp_path: Path) -> None:
    """Its rounding would gather there, as m's in AdaBelief's (g - m)**2."""
    body = "m = ema(grad, 0.9)\nk = ema(m, 0.5)\nnumerator = k"
    assert formats(tmp_path, body) == {"m": "e4m3", "k": "e2m1"}
