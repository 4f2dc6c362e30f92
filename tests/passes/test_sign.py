"""The sign pass: the update is the sign of the numerator, and the denominator goes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from signconv.ir.describe import algorithm
from signconv.ir.nodes import Program, mul
from signconv.passes import sign
from tests.passes.bodies import ADAM, BARE, DECAYED, MEAN, breaks_the_law, converted, refused
from tests.support.runs import updates

TABLE = {
    "a ratio: its denominator goes, with its moment": (ADAM, [*MEAN, "update = sign(m1)", DECAYED]),
    "a numerator alone": (
        BARE, [MEAN[0].replace("m1", "m"), "update = sign(m)", DECAYED],
    ),
    "whatever the numerator is": (
        "m = ema(grad, 0.9)\ntop = m - param\nnumerator = top",
        [
            "m = 0.9 * m.prev + (1 - 0.9) * g", "top = m - p", "update = sign(top)",
            "p = p - lr * update",
        ],
    ),
    "a moment that both read stays": (
        "m = ema(grad, 0.9)\nnumerator = m\ndenominator = abs(m) + 1",
        ["m = 0.9 * m.prev + (1 - 0.9) * g", "update = sign(m)", "p = p - lr * update"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_equations(case: str, tmp_path: Path) -> None:
    body, lines = TABLE[case]
    p = converted(tmp_path, body, "sign")
    assert algorithm(p) == lines
    assert (p.link, p.denominator, p.history) == ("sign", None, ("sign",))


def test_what_only_the_denominator_read_leaves_the_constructor(tmp_path: Path) -> None:
    p = converted(tmp_path, ADAM, "sign")
    assert [h.name for h in p.hypers] == ["lr", "rate", "wd"]
    assert p.removed == (("tiny", "a sign update has no denominator"),)


def test_updates_are_signs_whatever_the_size(tmp_path: Path) -> None:
    grads = [np.array([1e-30, -1e-30, 0.0, 1e30, -1e30])] * 2
    for made in updates(converted(tmp_path, ADAM, "sign"), grads):
        assert made.tolist() == [1, -1, 0, 1, -1]


@pytest.mark.parametrize("body", [BARE, ADAM])
def test_defaults_are_scaled(tmp_path: Path, body: str) -> None:
    """lr x 0.2 and weight decay x 5 keep lr * weight_decay."""
    p = converted(tmp_path, body, "sign")
    assert (p.hyper("lr").default, p.hyper("wd").default) == (2e-4, 0.1)
    assert p.hyper("rate").default == 0.9
    assert any("lr x 0.2" in note for note in p.notes)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("update", "link"), [("sign(m)", "sign"), ("stochastic_sign(m, 1)", "stosign")]
)
def test_needs_a_ratio_or_a_numerator(update: str, link: str, tmp_path: Path) -> None:
    code, words = refused(tmp_path, f"m = ema(grad, 0.9)\nupdate = {update}", "sign")
    assert code == "SC207" and f"has the link {link} already" in words


@pytest.mark.parametrize(
    ("convert", "code"),
    [("sign:eps=keep", "SC202"), ("sign,sign", "SC204"), ("sign,stosign", "SC205")],
)
def test_options_and_company(convert: str, code: str, tmp_path: Path) -> None:
    assert refused(tmp_path, ADAM, convert)[0] == code


def test_comes_last(tmp_path: Path) -> None:
    p = converted(tmp_path, BARE, "sign,nesterov,presign")
    assert p.history == ("presign", "nesterov", "sign")
    assert "update = sign(rate * m + (1 - rate) * sign(g))" in algorithm(p)


# ---------------------------------------------------------------- its law


def negated(p: Program) -> Program:
    return replace(p, numerator=mul(p.numerator, -1))


def unsigned(p: Program) -> Program:
    return replace(p, link="ratio")


@pytest.mark.parametrize("fault", [negated, unsigned])
def test_fault_breaks_the_law(
    fault: Callable[[Program], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert breaks_the_law(sign, "adamw", "sign", fault, monkeypatch)
