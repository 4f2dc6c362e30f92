"""The presign pass: everything that read the gradient reads its sign, and averages start at 0."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from signconv.errors import LoweringError
from signconv.ir.describe import algorithm
from signconv.ir.nodes import GRAD, Op, Program, map_expressions
from signconv.passes import presign
from signconv.pipeline import build
from tests.passes.bodies import RATIO, breaks_the_law, converted, refused
from tests.support import spec_file

#: A spec, and the algorithm that has to come out.
TABLE = {
    "moments and numerator": (
        "m = ema(grad, 0.9)\nnumerator = m + grad",
        ["m = 0.9 * m.prev + (1 - 0.9) * sign(g)", "update = m + sign(g)", "p = p - lr * update"],
    ),
    "denominator": (
        "numerator = grad\ndenominator = abs(grad) + 1",
        ["update = sign(g) / (abs(sign(g)) + 1)", "p = p - lr * update"],
    ),
    "a temporary, and what reads it": (
        "u = 0.5 * grad\nm = ema(u, 0.9)\nnumerator = m",
        [
            "u = 0.5 * sign(g)", "m = 0.9 * m.prev + (1 - 0.9) * u", "update = m",
            "p = p - lr * update",
        ],
    ),
    "a state with a recurrence of its own": (
        "last = state()\nlast.next = grad\nnumerator = grad - last.prev",
        ["last = sign(g)", "update = sign(g) - last.prev", "p = p - lr * update"],
    ),
    "the sign is that of the gradient with its l2 decay": (
        "wd = hyper(0.1)\nm = ema(grad, 0.9)\nnumerator = m\ndecay = l2(wd)",
        [
            "g = g + wd * p", "m = 0.9 * m.prev + (1 - 0.9) * sign(g)", "update = m",
            "p = p - lr * update",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_equations(case: str, tmp_path: Path) -> None:
    body, lines = TABLE[case]
    p = converted(tmp_path, body, "presign")
    assert algorithm(p) == lines
    assert (p.link, p.history) == ("ratio", ("presign",))


def test_averages_start_from_zero(tmp_path: Path) -> None:
    """The sign of a first gradient is no estimate of its average; other starts stay."""
    body = """
        m = ema(grad, 0.9, init="first")
        n = ema(grad, 0.8)
        x = state(init=1)
        x.next = x.prev * 0.5 + grad
        numerator = m + n + x"""
    assert [m.init for m in converted(tmp_path, body, "presign").moments][:2] == ["zero", "zero"]
    before = converted(tmp_path, body, "nesterov").moments[2].init
    assert converted(tmp_path, body, "presign").moments[2].init == before


def test_hyperparameters_and_their_defaults_stay(tmp_path: Path) -> None:
    body = RATIO.format(denominator="sqrt(m2) + tiny")
    p = converted(tmp_path, body, "presign")
    assert [(h.name, h.default) for h in p.hypers] == [
        ("lr", 1e-3), ("rate", 0.9), ("tiny", 1e-6), ("wd", 0.02),
    ]  # fmt: skip
    assert p.removed == ()


def test_moments_no_longer_grow_with_the_gradient(tmp_path: Path) -> None:
    """That is what lets ``--state fp8-raw`` store them."""
    spec = spec_file(tmp_path, "m = ema(grad, 0.9)\nnumerator = m").spec
    assert build(spec, convert="presign", state="fp8-raw").kernel.storage == "fp8-raw"
    with pytest.raises(LoweringError, match="SC302"):
        build(spec, state="fp8-raw")


@pytest.mark.parametrize(
    "body", ["numerator = sign(grad) + 1", "m = ema(sign(grad), 0.9)\nnumerator = m"]
)
def test_refuses_where_it_would_change_nothing(body: str, tmp_path: Path) -> None:
    code, words = refused(tmp_path, body, "presign")
    assert code == "SC210" and "reads sign(grad) already" in words


def test_takes_no_option(tmp_path: Path) -> None:
    code, words = refused(tmp_path, "numerator = grad", "presign:p=2")
    assert code == "SC202" and "it takes: none" in words


def test_comes_first(tmp_path: Path) -> None:
    """So soft's moment sees signs as well."""
    body = "m = ema(grad, 0.9)\nnumerator = m"
    p = converted(tmp_path, body, "stosign,nesterov,soft:p=3,presign")
    assert p.history == ("presign", "soft:p=3", "nesterov", "stosign")
    assert "s = beta * s.prev + (1 - beta) * (abs(sign(g))**3)" in algorithm(p)


def first(p: Program) -> Program:
    """A pass that forgets that averages of signs start from zero."""
    return replace(p, moments=tuple(replace(m, init="first") for m in p.moments))


def of_gradients(p: Program) -> Program:
    return map_expressions(p, lambda e: GRAD if e == Op("sign", (GRAD,)) else None)


@pytest.mark.parametrize(("spec", "fault"), [("sgd", first), ("adamw", of_gradients)])
def test_fault_breaks_the_law(
    spec: str, fault: Callable[[Program], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert breaks_the_law(presign, spec, "presign", fault, monkeypatch)
