"""The nesterov pass: the update reads every average one step ahead, the state is what it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from signconv.errors import PassError
from signconv.ir.describe import algorithm
from signconv.ir.nodes import Const, Op, Program, Ref, mul
from signconv.passes import nesterov
from signconv.passes.base import canonical
from signconv.pipeline import apply_passes, requests_of, resolve
from tests.passes.bodies import ADAM, BARE, BOTH, DECAYED, breaks_the_law, converted, refused
from tests.support import program_of
from tests.support.runs import updates

#: A spec, and the update that has to come out.
TABLE = {
    "plain average": ("m = ema(grad, 0.9)\nnumerator = m", "0.9 * m + (1 - 0.9) * g"),
    "corrected average": (
        "m = ema(grad, 0.9)\nnumerator = m.corrected",
        "(0.9 * m + (1 - 0.9) * g) / (1 - 0.9 * 0.9**t)",
    ),
    "two averages": (
        "m = ema(grad, 0.9)\nn = ema(grad, 0.99)\nnumerator = m - n",
        "0.9 * m + (1 - 0.9) * g - (0.99 * n + (1 - 0.99) * g)",
    ),
    "the denominator too": (
        "m = ema(grad, 0.9)\nv = ema(grad**2, 0.99)\nnumerator = m\ndenominator = sqrt(v)",
        "(0.9 * m + (1 - 0.9) * g) / sqrt(0.99 * v + (1 - 0.99) * g**2)",
    ),
    "a maximum is no average": (
        "m = ema(grad, 0.9)\nx = max_ema(abs(grad), 0.9)\nnumerator = m\ndenominator = x",
        "(0.9 * m + (1 - 0.9) * g) / x",
    ),
    "its input, whatever that is": (
        "u = 0.5 * grad\nm = ema(u, 0.9)\nnumerator = m",
        "0.9 * m + (1 - 0.9) * u",
    ),
    "behind a name": (
        "m = ema(grad, 0.9)\ntop = 2 * m\nnumerator = top",
        "2 * (0.9 * m + (1 - 0.9) * g)",
    ),
    "inside a sign": (
        "m = ema(grad, 0.9)\nupdate = sign(m)",
        "sign(0.9 * m + (1 - 0.9) * g)",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_equations(case: str, tmp_path: Path) -> None:
    body, update = TABLE[case]
    before, after = program_of(tmp_path, body), converted(tmp_path, body, "nesterov")
    assert f"update = {update}" in algorithm(after)
    assert after.history == ("nesterov",)
    assert (after.moments, after.hypers, after.link) == (before.moments, before.hypers, before.link)


def test_everything_else_stays(tmp_path: Path) -> None:
    p = converted(tmp_path, ADAM, "nesterov")
    ahead = "(rate * m1 + (1 - rate) * g) / (sqrt(0.99 * m2 + (1 - 0.99) * g**2) + tiny)"
    assert algorithm(p) == [*BOTH, f"update = {ahead}", DECAYED]
    assert p.removed == ()


@pytest.mark.parametrize("read", ["m", "m.corrected"])
def test_a_constant_gradient_is_read_as_one_step_later(read: str, tmp_path: Path) -> None:
    """The update after t steps is the plain one after t + 1."""
    body = f"m = ema(grad, 0.9)\nnumerator = {read}"
    grads = [np.array([3.0])] * 6
    plain = updates(program_of(tmp_path, body), grads)
    ahead = updates(converted(tmp_path, body, "nesterov"), grads)
    np.testing.assert_allclose(ahead[:-1], plain[1:], rtol=1e-14)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "numerator",
    ["0.9 * m + 0.1 * grad", "grad + m", "0.9 * m.corrected + grad / 2", "top"],
)
def test_refuses_to_look_ahead_twice(numerator: str, tmp_path: Path) -> None:
    body = f"m = ema(grad, 0.9)\ntop = m + grad\nnumerator = {numerator}"
    body = body if numerator == "top" else body.replace("top = m + grad\n", "")
    code, words = refused(tmp_path, body, "nesterov")
    assert code == "SC208" and "it adds g, the newest input of m, to m" in words


def test_refuses_an_average_of_changes(tmp_path: Path) -> None:
    body = "last = state()\nlast.next = grad\nd = ema(grad - last.prev, 0.9)\nnumerator = d"
    code, words = refused(tmp_path, body, "nesterov")
    assert code == "SC208" and "d averages the change of the gradient" in words


@pytest.mark.parametrize(
    "body",
    [
        "numerator = grad",
        "v = ema(grad**2, 0.9)\nnumerator = grad\ndenominator = sqrt(v)",
        "x = max_ema(abs(grad), 0.9)\nnumerator = x",
    ],
)
def test_needs_a_numerator_that_reads_an_average(body: str, tmp_path: Path) -> None:
    code, words = refused(tmp_path, body, "nesterov")
    assert code == "SC209" and "reads an EMA; Mine's reads none" in words


def test_takes_no_option_and_applies_once(tmp_path: Path) -> None:
    assert refused(tmp_path, BARE, "nesterov:a=0.5")[0] == "SC202"
    assert refused(tmp_path, BARE, "nesterov,nesterov")[0] == "SC204"


def test_comes_after_soft_and_before_the_link(tmp_path: Path) -> None:
    """So soft finds a plain average, and a running maximum is that of what looks ahead."""
    p = converted(tmp_path, BARE, "stosign,nesterov")
    assert p.history == ("nesterov", "stosign")
    assert "G = max(beta2 * G.prev, abs(rate * m + (1 - rate) * g))" in algorithm(p)
    assert converted(tmp_path, BARE, "nesterov,soft:p=2").history == ("soft:p=2", "nesterov")


# ---------------------------------------------------------------- its law


def swapped(p: Program) -> Program:
    """(1 - beta)*m + beta*u."""
    a, b = p.numerator.args
    return replace(p, numerator=Op("add", (mul(b.args[0], a.args[1]), mul(a.args[0], b.args[1]))))


def lagging(p: Program) -> Program:
    return replace(p, denominator=Op("sqrt", (Ref("value", p.moments[-1].name),)))


def slower(p: Program) -> Program:
    return replace(p, moments=tuple(replace(m, beta=Const(0.5)) for m in p.moments))


@pytest.mark.parametrize(
    ("spec", "fault"), [("sgd", swapped), ("adamw", lagging), ("adamw", slower)]
)
def test_fault_breaks_the_law(
    spec: str, fault: Callable[[Program], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert breaks_the_law(nesterov, spec, "nesterov", fault, monkeypatch)


@pytest.mark.parametrize("convert", ["nesterov", "presign,nesterov", "presign,nesterov,stosign"])
def test_presign_does_not_hide_a_look_ahead(convert: str) -> None:
    """Signs of gradients and their changes are a look-ahead as gradients and theirs are."""
    with pytest.raises(PassError) as caught:
        apply_passes(resolve("adan"), canonical(requests_of(convert)))
    assert caught.value.code == "SC208" and "looks ahead already" in caught.value.message
