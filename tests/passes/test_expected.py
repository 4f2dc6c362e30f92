"""The expected pass: the clipped ratio, stosign's mean, without its random numbers.

What it shares with stosign (names of the running maximum, offsets that go) is in test_stosign.py.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from signconv.ir.describe import algorithm
from signconv.ir.nodes import Program, mul
from signconv.passes import expected
from signconv.pipeline import build
from tests.passes.bodies import ADAM, BARE, BOTH, DECAYED, breaks_the_law, converted, refused
from tests.support import program_of, spec_file
from tests.support.runs import updates

TABLE = {
    "offset goes": (ADAM, "expected", [*BOTH, "update = clip(m1 / sqrt(m2), -1, 1)", DECAYED]),
    "offset goes, said": (
        ADAM, "expected:eps=drop", [*BOTH, "update = clip(m1 / sqrt(m2), -1, 1)", DECAYED],
    ),
    "offset kept": (
        ADAM, "expected:eps=keep",
        [*BOTH, "update = clip(m1 / (sqrt(m2) + tiny), -1, 1)", DECAYED],
    ),
    "no denominator: the running maximum becomes one": (
        "update = grad", "expected",
        ["G = max(beta2 * G.prev, abs(g))", "update = clip(g / G, -1, 1)", "p = p - lr * update"],
    ),
    "a sign as update becomes its mean": (
        "update = sign(grad)", "expected",
        ["G = max(beta2 * G.prev, abs(g))", "update = clip(g / G, -1, 1)", "p = p - lr * update"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_equations(case: str, tmp_path: Path) -> None:
    body, convert, lines = TABLE[case]
    p = converted(tmp_path, body, convert)
    assert algorithm(p) == lines
    assert (p.link, p.history) == ("expected", (convert,))


def test_is_the_mean_of_stosign(tmp_path: Path) -> None:
    """Over a grid of the noise, up to the grid's step."""
    rng, count = np.random.default_rng(2), 512
    grads = [rng.standard_normal(24) for _ in range(4)]
    mean = updates(converted(tmp_path, ADAM, "expected"), grads)
    drawn = converted(tmp_path, ADAM, "stosign")
    noise = (2 * np.arange(count) + 1 - count) / count
    signs = np.mean([updates(drawn, grads, noise=np.full(24, n)) for n in noise], axis=0)
    # `updates` gives the ratio of a link that is not asked for noise.
    assert np.abs(signs - np.clip(mean, -1, 1)).max() <= 1 / count + 1e-9


def test_draws_no_random_numbers(tmp_path: Path) -> None:
    spec = spec_file(tmp_path, ADAM).spec
    assert build(spec, convert="stosign", state="fp32").kernel.noise
    assert not build(spec, convert="expected", state="fp32").kernel.noise


def test_defaults_of_a_ratio_stay_and_are_said_to(tmp_path: Path) -> None:
    before, after = program_of(tmp_path, ADAM), converted(tmp_path, ADAM, "expected")
    assert [h for h in before.hypers if h.name != "tiny"] == list(after.hypers)
    assert any("as they were, since the update is the same one" in note for note in after.notes)


def test_defaults_are_scaled_without_a_denominator(tmp_path: Path) -> None:
    p = converted(tmp_path, BARE, "expected")
    assert (p.hyper("lr").default, p.hyper("wd").default) == (2e-4, 0.1)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("convert", "code", "words"),
    [
        ("expected:eps=maybe", "SC213", "expected:eps=maybe is neither eps=drop .* nor eps=keep"),
        ("expected:p=2", "SC202", "it takes: eps=keep.drop"),
        ("expected:eps=keep:eps=keep", "SC203", "given twice"),
        ("expected,expected:eps=keep", "SC204", "asked for twice"),
        ("expected,stosign", "SC205", "exclude each other"),
        ("sign,expected", "SC205", "exclude each other"),
    ],
)
def test_options_and_company(convert: str, code: str, words: str, tmp_path: Path) -> None:
    found = refused(tmp_path, ADAM, convert)
    assert found[0] == code and re.search(words, found[1])


def test_refuses_a_stochastic_sign(tmp_path: Path) -> None:
    body = "m = ema(grad, 0.9)\nupdate = stochastic_sign(m, 1)"
    code, words = refused(tmp_path, body, "expected")
    assert code == "SC207" and "already has the link stosign" in words


def test_comes_last(tmp_path: Path) -> None:
    p = converted(tmp_path, BARE, "expected,nesterov,soft:p=2,presign")
    assert p.history == ("presign", "soft:p=2", "nesterov", "expected")


# ---------------------------------------------------------------- its law


def unclipped(p: Program) -> Program:
    return replace(p, link="ratio")


def halved_sigma(p: Program) -> Program:
    return replace(p, denominator=mul(p.denominator, 0.5))


def negated(p: Program) -> Program:
    return replace(p, numerator=mul(p.numerator, -1))


@pytest.mark.parametrize(
    ("spec", "fault"), [("rmsprop", unclipped), ("sgd", halved_sigma), ("adamw", negated)]
)
def test_fault_breaks_the_law(
    spec: str, fault: Callable[[Program], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert breaks_the_law(expected, spec, "expected", fault, monkeypatch)
