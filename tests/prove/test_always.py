"""When a ratio is claimed to be at most 1 at every step, and what is not claimed at all."""

import re
from pathlib import Path

import pytest

from signconv.pipeline import builtin_names, resolve
from signconv.prove import extremal
from signconv.prove.proofs import at_most_one, bare, prove
from tests.prove.test_proofs import converted
from tests.support import ROOT, program_of

ALWAYS = [
    ("s3", ""), ("s3", "stosign"), ("adamw", "soft:p=1"), ("adamw", "soft:p=4,nesterov,stosign"),
    ("sgd", "stosign"), ("sgd", "nesterov,expected"), ("lion", "stosign"), ("stosignsgd", ""),
    ("s3gd", ""), ("adamw", "presign,soft:p=2"),
]  # fmt: skip
NOT_ALWAYS = [("adamw", ""), ("nadam", "stosign"), ("adamax", ""), ("rmsprop", ""), ("adan", "")]


@pytest.mark.parametrize(("spec", "convert"), ALWAYS)
def test_at_most_one_always(spec: str, convert: str) -> None:
    p = converted(spec, convert)
    b = prove(p, steps=0)
    assert b.always and b.at_most_one and b.value == 1
    assert extremal.search(bare(p), {}, steps=100) <= 1 + 1e-12


@pytest.mark.parametrize(("spec", "convert"), NOT_ALWAYS)
def test_not_always_at_most_one(spec: str, convert: str) -> None:
    b = prove(converted(spec, convert), steps=0)
    assert not b.always and not b.at_most_one and b.attained > 1


@pytest.mark.parametrize("spec", ["adam", "adamw", "amsgrad"])
def test_tied_betas(spec: str) -> None:
    p = converted(spec)
    assert prove(p, steps=0).tied == ("beta1 = beta2",)
    for late in (0.5, 0.9, 0.99):
        hypers = {"beta1": late, "beta2": late}
        assert extremal.search(bare(p), hypers, steps=100) <= 1 + 1e-12


SAME = "b = hyper(0.9, ge=0, lt=1)\nq, w = ema(grad, b{f}), ema(grad**2, b{f})\n"
TIED = {
    "both corrected": (SAME + "numerator = q.corrected\ndenominator = sqrt(w.corrected)", True),
    "neither corrected": (SAME + "numerator = q\ndenominator = sqrt(w)", True),
    "denominator corrected": (SAME + "numerator = q\ndenominator = sqrt(w.corrected)", True),
    "numerator corrected": (SAME + "numerator = q.corrected\ndenominator = sqrt(w)", False),
    "both from the first": (SAME.replace("{f}", ', init="first"')
                            + "numerator = q\ndenominator = sqrt(w)", True),
    "one from the first": (SAME.replace("b{f}), ema", 'b, init="first"), ema')
                           + "numerator = q\ndenominator = sqrt(w)", False),
    "halved": (SAME + "numerator = q\ndenominator = sqrt(w) / 2", False),
    "doubled": (SAME + "numerator = q\ndenominator = 2 * sqrt(w)", True),
    "a maximum that never falls": (
        "q, top = ema(grad, 0.9), max_ema(abs(grad), 1)\nnumerator = q.corrected\n"
        "denominator = top", True),
    "a maximum that falls": (
        "q, top = ema(grad, 0.9), max_ema(abs(grad), 0.99)\nnumerator = q\ndenominator = top",
        False),
}  # fmt: skip


@pytest.mark.parametrize("case", TIED)
def test_at_every_step(case: str, tmp_path: Path) -> None:
    """The claim is for each t, so a missing bias correction counts; it is run from t = 1."""
    body, wanted = TIED[case]
    p = program_of(tmp_path, body.replace("{f}", ""))
    assert at_most_one(p) is wanted
    found = extremal.search(bare(p), {}, steps=60)
    assert found <= 1 + 1e-12 if wanted else found > 1 + 1e-3


# ---------------------------------------------------------------- what is not proved

UNPROVED = {
    "weights of both signs below": ("q, w = ema(grad, 0.9), state()\n"
                                    "w.next = grad**2 - 0.5*w.prev\nnumerator = q\n"
                                    "denominator = sqrt(abs(w))", "different kinds"),
    "starts from a number": ("q, w = state(init=1), ema(grad**2, 0.9)\n"
                             "q.next = 0.5*q.prev + grad\nnumerator = q\n"
                             "denominator = sqrt(w)", "number"),
    "max of the numerator": ("q, w = ema(grad, 0.9), ema(grad**2, 0.9)\n"
                             "numerator = max(q, grad)\ndenominator = sqrt(w)", "max()"),
    "not scale-free": ("q, w = ema(grad, 0.9), ema(grad**2, 0.9)\n"
                       "numerator = q\ndenominator = w", "scaled"),
    "a running mean": ("m, w = state(), ema(grad**2, 0.9)\n"
                       "m.next = m.prev*(1 - 1/t) + grad/t\nnumerator = m\n"
                       "denominator = sqrt(w)", "changes with t"),
    "a beta that changes": ("q, w = ema(grad, 0.9), ema(grad**2, 1 - 1/t)\n"
                            "numerator = q\ndenominator = sqrt(w)", "changes with t"),
    "less than order one": ("q, w = ema(grad, 0.9), ema(sqrt(abs(grad)), 0.9)\n"
                            "numerator = q\ndenominator = w**2", "averaged"),
    "periodic": ("q, w = ema(grad, 0.9), ema(grad**2, 0.9)\nturn = where(t % 3 == 0, 1, 2)\n"
                 "numerator = q * turn\ndenominator = sqrt(w)", "mod"),
    "reads the parameter": ("w = ema(grad**2, 0.9)\nnumerator = grad + 0.1*param\n"
                            "denominator = sqrt(w)", "parameter"),
    "a reduction": ("w = ema(grad**2, 0.9)\nnumerator = grad / norm(grad)\n"
                    "denominator = sqrt(w)", "norm"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNPROVED)
def test_unproved_says_why_and_searches(case: str, tmp_path: Path) -> None:
    body, word = UNPROVED[case]
    b = prove(program_of(tmp_path, body))
    assert b.status == "unproved" and word in b.reason
    assert b.search is not None and b.search > 0.5 and not b.at_most_one


def test_a_bound_that_may_not_be_sharp_says_so() -> None:
    """Signs instead of gradients: the sequence that would attain the bound is not possible."""
    b = prove(converted("adamw", "presign"), steps=0)
    assert b.status == "proved" and b.search < 0.95 * b.value


def test_search_is_seeded() -> None:
    p = bare(converted("lamb"))
    assert extremal.search(p, {}, steps=50) == extremal.search(p, {}, steps=50)


# ---------------------------------------------------------------- no table of names

FILES = sorted(p.stem for p in (ROOT / "signconv" / "prove").glob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_no_names_of_optimizers_or_moments(file: str) -> None:
    source = (ROOT / "signconv" / "prove" / f"{file}.py").read_text()
    programs = [resolve(name) for name in builtin_names()]
    names = {n for p in programs for n in (p.key, p.name.lower())}
    assert not names & set(re.findall(r"[a-z0-9_]+", source.lower()))
    strings = set(re.findall(r"""["'](\w+)["']""", source))
    assert not {m.name for p in programs for m in p.moments} & strings
