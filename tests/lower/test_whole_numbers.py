"""Which moments are stored as whole numbers: by themselves, when asked for, and never."""

from __future__ import annotations

from pathlib import Path

import pytest

from signconv.errors import LoweringError
from signconv.pipeline import build
from tests.support import spec_file

M = "m = ema(grad, 0.9)\n"


def formats(folder: Path, body: str, state: str = "fp8") -> dict[str, str]:
    kernel = build(spec_file(folder, body).spec, state=state).kernel
    return {m.name: m.format for m in kernel.moments}


@pytest.mark.parametrize("spec", ["muon", "muon_rms", "normuon", "scion"])
def test_builtins(spec: str) -> None:
    assert [m.format for m in build(spec).kernel.moments] == ["int8"]


@pytest.mark.parametrize(
    "body",
    [
        M + "update = msign(m)",
        M + "ahead = 0.9 * m + 0.1 * grad\nupdate = msign(ahead)",
        "m = state()\nm.next = 0.9 * m.prev + grad\nupdate = msign(m)",  # as Jordan writes it
        "m = state()\nm.next = (m.prev + grad) / 2\nupdate = msign(0.9 * m + grad)",
    ],
)
def test_momentum_whose_matrix_is_signed(body: str, tmp_path: Path) -> None:
    assert formats(tmp_path, body) == {"m": "int8"}
    assert formats(tmp_path, body, "m=fp8") == {"m": "e4m3"}


@pytest.mark.parametrize(
    "body",
    [
        M + "update = msign(m) + 0.1 * m",
        M + "x = 0.1 * m\nupdate = msign(m) + x",
        M + "update = msign(where(m * grad > 0, m, 0))",
        M + "update = msign(m.prev)",
        "m = state()\nm.next = where(m.prev * grad > 0, m.prev, 0) + grad\nupdate = msign(m)",
    ],
)
def test_what_is_read_elsewhere_or_not_linearly_is_asked_for(body: str, tmp_path: Path) -> None:
    assert formats(tmp_path, body) == {"m": "e4m3"}
    assert formats(tmp_path, body, "m=int8") == formats(tmp_path, body, "int8") == {"m": "int8"}


@pytest.mark.parametrize(
    "rest",
    [
        "numerator = m\ndenominator = 1 + abs(grad)",
        "numerator = grad\ndenominator = 1 + abs(m)",
        "numerator = grad\ndenominator = 1 + abs(m.prev)",  # of the last step
        "numerator = m.prev / (1 + abs(grad))",
        "x = 1 + abs(m.prev)\nnumerator = grad / x",
        "numerator = grad / (1 + mean(abs(m)))",
        "numerator = grad\ndenominator = 1 + grad**2 / (1 + abs(m))",
        "numerator = grad\nnew_param = stepped / (1 + abs(m))",
        "numerator = grad\nnew_param = stepped / (1 + abs(m.prev))",
        "k = ema(m, 0.5)\nnumerator = k",
        "k = ema(m.prev, 0.5)\nnumerator = k",
    ],
)
def test_what_stands_in_a_ratio_or_in_another_moment_is_refused(rest: str, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"m=int8: .* no ratio") as error:
        formats(tmp_path, M + rest, "m=int8")
    assert error.value.code == "SC311"
