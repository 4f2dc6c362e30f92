"""The soft pass: the denominator is the p-th root of a p-order moment with the numerator's beta."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from signconv.ir.describe import algorithm
from signconv.ir.nodes import Const, Program, map_expressions
from signconv.passes import soft
from tests.passes.bodies import ADAM, BARE, DECAYED, breaks_the_law, converted, refused
from tests.support.runs import updates

ONE = "m = ema(grad, 0.9)\nnumerator = m"
TIED = "m = beta * m.prev + (1 - beta) * g"

#: Order, the moment, the update.
ORDERS = {
    "1": ("s = beta * s.prev + (1 - beta) * abs(g)", "update = m / s"),
    "2": ("s = beta * s.prev + (1 - beta) * g**2", "update = m / sqrt(s)"),
    "3": ("s = beta * s.prev + (1 - beta) * (abs(g)**3)", "update = m / root(s, 3)"),
    "4": ("s = beta * s.prev + (1 - beta) * g**4", "update = m / root(s, 4)"),
    "2.5": ("s = beta * s.prev + (1 - beta) * (abs(g)**2.5)", "update = m / root(s, 2.5)"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_equations(order: str, tmp_path: Path) -> None:
    """An odd power is one of abs(g), an even one needs no abs."""
    p = converted(tmp_path, ONE, f"soft:p={order}")
    assert algorithm(p) == [TIED, *ORDERS[order], "p = p - lr * update"]
    assert (p.link, p.history) == ("ratio", (f"soft:p={order}",))
    assert [m.init for m in p.moments] == ["zero", "zero"]


def test_the_moment_is_of_what_the_average_is_of(tmp_path: Path) -> None:
    p = converted(tmp_path, "m = ema(0.5 * grad + param, 0.9)\nnumerator = m", "soft:p=1")
    assert "s = beta * s.prev + (1 - beta) * (abs(0.5 * g + p))" in algorithm(p)


@pytest.mark.parametrize("body", [ADAM, ADAM.replace("= m1\n", "= m1.corrected\n")])
def test_the_denominator_before_goes_with_all_that_only_it_read(body: str, tmp_path: Path) -> None:
    """So does bias correction: soft is the same pass whatever the denominator was."""
    p = converted(tmp_path, body, "soft:p=2")
    assert algorithm(p) == [
        TIED.replace("m", "m1"), ORDERS["2"][0], "update = m1 / sqrt(s)", DECAYED,
    ]  # fmt: skip
    assert {name for name, _ in p.removed} == {"rate", "tiny"}


def test_a_start_with_the_first_input_becomes_one_from_zero(tmp_path: Path) -> None:
    p = converted(tmp_path, 'm = ema(grad, 0.9, init="first")\nnumerator = m', "soft:p=2")
    assert [m.init for m in p.moments] == ["zero", "zero"]


def test_the_shared_beta_is_a_hyperparameter_before_weight_decay(tmp_path: Path) -> None:
    p = converted(tmp_path, BARE, "soft:p=3")
    assert [(h.name, h.default) for h in p.hypers] == [("lr", 1e-3), ("beta", 0.95), ("wd", 0.02)]
    beta = p.hyper("beta")
    assert beta is not None and (beta.ge, beta.lt) == (0, 1)


def test_names_that_are_taken(tmp_path: Path) -> None:
    body = "beta = hyper(2.0)\ns = ema(beta * grad, 0.9)\nnumerator = s"
    assert algorithm(converted(tmp_path, body, "soft:p=1"))[:3] == [
        "s = soft_beta * s.prev + (1 - soft_beta) * (beta * g)",
        "s2 = soft_beta * s2.prev + (1 - soft_beta) * (abs(beta * g))",
        "update = s / s2",
    ]


@pytest.mark.parametrize(
    "convert", [f"soft:p={p}{n}" for p in (1, 2, 3, 8) for n in ("", ",nesterov")]
)
def test_no_update_exceeds_one(convert: str, tmp_path: Path) -> None:
    """Over sequences that grow and shrink by decades from step to step."""
    p = converted(tmp_path, ADAM, convert)
    rng = np.random.default_rng(5)
    grads = [10.0 ** rng.uniform(-9, 9, 512) * rng.choice([-1, 1], 512) for _ in range(200)]
    for g in grads:
        g[0] = 3.0
    made = np.abs(updates(p, grads))
    assert made[-1, 0] > 0.99 and made.max() <= 1 + 1e-9


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("numerator = grad", "reads one EMA; Mine's reads no moment"),
        ("m = ema(grad, 0.9)\nn = ema(grad, 0.99)\nnumerator = m + n", "Mine's reads m, n"),
        ("m = max_ema(abs(grad), 0.9)\nnumerator = m", "reads one EMA; Mine's reads m"),
        ("m = ema(grad, 0.9)\nnumerator = 2 * m", "an EMA and nothing else"),
        ("m = ema(grad, 0.9)\ntop = 2 * m\nnumerator = top", "an EMA and nothing else"),
        ("m = ema(grad, 0.9)\nnumerator = 0.9 * m + 0.1 * grad", "looks ahead already: soft comes"),
    ],
)
def test_needs_a_numerator_that_is_one_average(body: str, words: str, tmp_path: Path) -> None:
    code, said = refused(tmp_path, body, "soft:p=2")
    assert code == "SC211" and words in said


@pytest.mark.parametrize("update", ["sign(m)", "stochastic_sign(m, 1)"])
def test_needs_a_ratio(update: str, tmp_path: Path) -> None:
    code, said = refused(tmp_path, f"m = ema(grad, 0.9)\nupdate = {update}", "soft:p=2")
    assert code == "SC207" and "soft needs a ratio m/sigma" in said


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("", "SC212", "soft needs its order: soft:p=3"),
        (":p=two", "SC212", "not a number"),
        (":p=", "SC212", "not a number"),
        *((f":p={p}", "SC212", "the order is a number 1 <= p <= 8")
          for p in ("0", "0.5", "-3", "nan", "inf", "8.5", "99")),
        (":q=3", "SC202", "it takes: p=1…8"),
        (":p", "SC202", "it takes: p=1…8"),
        (":p=2:p=3", "SC203", "'p' is given twice"),
        (":p=2,soft:p=3", "SC204", "asked for twice"),
    ],
)  # fmt: skip
def test_options(option: str, code: str, words: str, tmp_path: Path) -> None:
    found = refused(tmp_path, ONE, f"soft{option}")
    assert found[0] == code and words in found[1]


def test_comes_before_nesterov_and_the_link(tmp_path: Path) -> None:
    p = converted(tmp_path, ONE, "stosign,nesterov,soft:p=3")
    assert p.history == ("soft:p=3", "nesterov", "stosign")


# ---------------------------------------------------------------- its law


def cubed(p: Program) -> Program:
    return map_expressions(p, lambda e: Const(3.0) if e == Const(2.0) else None)


def rootless(p: Program) -> Program:
    return replace(p, denominator=p.denominator.args[0])


def other_beta(p: Program) -> Program:
    moments = (*p.moments[:-1], replace(p.moments[-1], beta=Const(0.99)))
    return replace(p, moments=moments)


@pytest.mark.parametrize(
    ("spec", "convert", "fault"),
    [
        ("adamw", "soft:p=2", cubed),
        ("adamw", "soft:p=2", rootless),
        ("sgd", "soft:p=3", other_beta),
    ],
)
def test_fault_breaks_the_law(
    spec: str, convert: str, fault: Callable[[Program], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert breaks_the_law(soft, spec, convert, fault, monkeypatch)
