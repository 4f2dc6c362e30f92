"""What ``show`` claims of programs whose sharp bounds are known: nothing false, sharp where said.

Values are written down here as formulas, from the weights; the claims are then run against
sequences that ``prove`` did not see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from signconv.prove import refute
from signconv.prove.claims import bound_claims, update_claims
from signconv.prove.proofs import at_most_one, bare, never_negative, prove
from signconv.prove.report import _bound
from signconv.prove.symbolic import T
from tests.support import program_of


@dataclass(frozen=True)
class Known:
    """A spec's body; the supremum as t grows (None: no such claim may be made), whether the ratio
    is at most 1 at every step, and the status."""

    body: str
    value: float | None
    always: bool = False
    status: str = "proved"


def power(p: float) -> str:
    whole = {1: "abs(grad)", 2: "grad**2", 1.5: "abs(grad)*sqrt(abs(grad))"}
    return whole.get(p, f"abs(grad)**{p}")


def pair(b1: float, b2: float, p: float = 2, read: str = "q", root: str = "w") -> str:
    return (
        f"b1, b2 = hyper({b1}, ge=0, lt=1), hyper({b2}, ge=0, lt=1)\n"
        f"q, w = ema(grad, b1), ema({power(p)}, b2)\nnumerator = {read}\n"
        f"denominator = root({root}, {p})"
    )


def largest(b1: float, b2: float, p: float) -> float:
    """Hölder's inequality over (1 - b1)*b1**k and (1 - b2)*b2**k, p > 1."""
    q = p / (p - 1)
    total = ((1 - b1) ** q * (1 - b2) ** (1 - q)) / (1 - b1**q * b2 ** (1 - q))
    return total ** (1 / q)


def own(b: float, p: float, ahead: bool = False) -> str:
    read = [f"b*{x} + (1 - b)*{u}" if ahead else x for x, u in (("q", "grad"), ("w", power(p)))]
    return (
        f"b = hyper({b}, ge=0, lt=1)\nq, w = ema(grad, b), ema({power(p)}, b)\n"
        f"numerator = {read[0]}\ndenominator = root({read[1]}, {p})"
    )


def top(b: float, rate: float, read: str = "q") -> str:
    return (
        f"b, rate = hyper({b}, ge=0, lt=1), hyper({rate}, ge=0, le=1)\n"
        f"q, u = ema(grad, b), max_ema(abs(grad), rate)\nnumerator = {read}\ndenominator = u"
    )


TWO = [
    (0.9, 0.999),
    (0.5, 0.9),
    (0.0, 0.9),
    (0.9, 0.9),
    (0.95, 0.98),
    (0.9, 0.85),
    (0.99, 0.995),
    (0.3, 0.8),
    (0.8, 0.99),
    (0.7, 0.95),
    (0.6, 0.999),
]
KNOWN = {
    **{f"p 2, {b}": Known(pair(*b), largest(*b, 2)) for b in TWO},
    **{f"p 2, {b}, corrected": Known(pair(*b, 2, "q.corrected", "w.corrected"), largest(*b, 2))
       for b in TWO[:4]},
    **{f"p {p}, {b}": Known(pair(*b, p), largest(*b, p))
       for p in (1.5, 3, 4) for b in ((0.9, 0.99), (0.5, 0.7))},
    **{f"p 1, {b}": Known(pair(*b, 1), (1 - b[0]) / (1 - b[1]))
       for b in ((0.9, 0.99), (0.5, 0.5), (0.0, 0.75))},
    **{f"diverges, {b}, p {p}": Known(pair(*b, p), None, status="infinite")
       for b, p in (((0.9, 0.8), 2), ((0.99, 0.9), 3), ((0.9, 0.5), 1), ((0.9, 0.81), 2))},
    **{f"soft {p}{', ahead' * ahead}": Known(own(0.95, p, ahead), 1.0, True)
       for p in (1, 2, 3, 5) for ahead in (False, True)},
    **{f"maximum {r}, {b}": Known(top(b, r), (1 - b) * r / (r - b))
       for b, r in ((0.9, 0.999), (0.5, 0.6), (0.0, 0.9))},
    "maximum that falls too fast": Known(top(0.9, 0.8), None, status="infinite"),
    "maximum that never falls": Known(
        "b = hyper(0.9, ge=0, lt=1)\nq, u = ema(grad, b), max_ema(abs(grad), 1)\n"
        "numerator = q\ndenominator = u", 1.0, True),
    "gradient over its root mean square": Known(pair(0.5, 0.96, 2, "grad + 0*q"), 5.0),
    "heavy ball": Known(
        "b = hyper(0.5, ge=0, lt=1)\ns, w = state(), ema(grad**2, 0.96)\n"
        "s.next = b*s.prev + grad\nnumerator = s\ndenominator = sqrt(w)",
        1 / math.sqrt((1 - 0.96) * (1 - 0.25 / 0.96))),
    "sum of squares": Known(
        "w = state()\nw.next = w.prev + grad**2\nnumerator = grad\ndenominator = sqrt(w)", 1.0),
    "mean of signs": Known(
        "b = hyper(0.9, ge=0, lt=1)\nq = ema(sign(grad), b)\nupdate = q", 1, True),
    "mean of signs, corrected": Known(
        "b = hyper(0.9, ge=0, lt=1)\nq = ema(sign(grad), b)\nupdate = q.corrected", 1, True),
    "sum of signs": Known(
        "b = hyper(0.75, ge=0, lt=1)\ns = state()\ns.next = b*s.prev + sign(grad)\nupdate = s",
        4.0),
    "a bounded function": Known("k = hyper(0.5, ge=0)\nupdate = k * tanh(grad)", 0.5),
    "a negative multiple": Known(
        "k = hyper(-3.0)\nupdate = k * sign(grad)", None, status="unproved"),
    "signs, larger at first": Known(
        "b = hyper(0.5, ge=0, lt=1)\nq = ema(sign(grad), b)\nupdate = q.corrected * (1 + b**t)",
        None, status="unproved"),
    "clipped by hand": Known("update = where(abs(grad) > 1, sign(grad), grad)", None,
                             status="unproved"),
    "min and max": Known("update = min(max(grad, -1), 1)", None, status="unproved"),
    "grows": Known("q = ema(grad, 0.9)\nupdate = q.corrected", None, status="linear"),
    "grows as its square": Known("update = grad * abs(grad)", None, status="linear"),
    "difference of equal averages": Known(
        "b, c = hyper(0.9, ge=0, lt=1), hyper(0.9, ge=0, lt=1)\nq, r = ema(grad, b), ema(grad, c)\n"
        "w = ema(grad**2, b)\nnumerator = q - r\ndenominator = sqrt(w)", 0.0),
    # powers of t: a claim for every step would be false in the first few
    "a power that falls below 0": Known(
        "b = hyper(0.1, ge=0, lt=1)\nq, w = ema(grad, b), ema(abs(grad), b)\n"
        "numerator = q * (1 - b**(0.5*t - 3))\ndenominator = w", 1.0),
    "a power that starts at 1": Known(
        "b = hyper(0.5, ge=0, lt=1)\nq, w = ema(grad, b), ema(abs(grad), b)\n"
        "numerator = q * (1 - b**t)\ndenominator = w", 1.0, True),
    "the inverse of a power": Known(
        "b = hyper(0.5, gt=0, lt=1)\nq, w = ema(grad, b), ema(abs(grad), b)\n"
        "numerator = q * b**(0 - t)\ndenominator = w", None, status="unproved"),
    "a power of what may be negative": Known(
        "b = hyper(0.5)\nq, w = ema(grad, 0.9), ema(abs(grad), 0.9)\n"
        "numerator = q * (1 - b**t)\ndenominator = w", None, status="unproved"),
    "a beta that changes with t": Known(
        "k = where(t % 2 == 0, 0.99, 0.5)\nq, w = ema(grad, 0.5), ema(grad**2, k)\n"
        "numerator = q\ndenominator = sqrt(w)", None, status="unproved"),
    "a divisor that grows": Known(
        "q, w = ema(grad, 0.9), ema(grad**2, 0.9)\nnumerator = q\n"
        "denominator = sqrt(w / (1 + abs(q)))", None, status="unproved"),
}  # fmt: skip


def test_there_are_sixty() -> None:
    assert len(KNOWN) >= 60


@pytest.mark.parametrize("name", KNOWN)
def test_claims(name: str, tmp_path: Path) -> None:
    known = KNOWN[name]
    p = program_of(tmp_path, known.body)
    b = prove(p, steps=40)
    assert (b.status, b.always) == (known.status, known.always)
    words = " ".join(bound_claims(_bound(p, b)) + update_claims(p, b, None))
    assert ("at every step, for every gradient" in words) is known.always
    assert ("grows with the gradient" in words) is (known.status == "linear")
    if known.value is None:
        return
    assert b.value == pytest.approx(known.value, rel=1e-6, abs=1e-12)
    assert b.attained is not None and b.attained <= b.value * (1 + 1e-9)
    if "sharp" in words and "not known" not in words:
        assert b.attained >= known.value * (1 - 2e-3)
    plain = bare(p)
    at = {h.name: h.default for h in p.hypers}
    assert refute.counterexample(plain, b.value, at, late=True, steps=200, seed=5) is None
    if known.always:
        for late in (False, True):
            found = refute.counterexample(plain, 1.0, late=late, steps=200, size=4096, seed=6)
            assert found is None
    if b.early is not None:
        limit = max(b.value, b.early[1])
        assert refute.counterexample(plain, limit, at, late=False, steps=40, seed=7) is None


# ---------------------------------------------------------------- the search itself


def test_a_false_claim_does_not_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were every ratio said to be at most 1 at every step, a run would say otherwise."""
    monkeypatch.setattr("signconv.prove.proofs.at_most_one", lambda p: True)
    p = program_of(tmp_path, KNOWN["a power that falls below 0"].body)
    b = prove(p, steps=0)
    assert b.status == "unproved" and "a run exceeds it" in b.reason and b.search > 100


@pytest.mark.parametrize("late", [False, True])
def test_a_bound_too_low_by_a_tenth_is_exceeded(late: bool, tmp_path: Path) -> None:
    p = bare(program_of(tmp_path, pair(0.5, 0.9)))
    at = {"b1": 0.5, "b2": 0.9}
    sup = largest(0.5, 0.9, 2)
    assert refute.counterexample(p, sup, at, late=late) is None
    assert refute.counterexample(p, 0.9 * sup, at, late=late) > 0.9 * sup


def test_early_steps_are_looked_at_alone(tmp_path: Path) -> None:
    """A factor that is large at t = 1 and 2 only."""
    body = "q, w = ema(grad, 0.9), ema(grad**2, 0.9)\nnumerator = q * (1 + 9 / t**4)\n"
    p = bare(program_of(tmp_path, body + "denominator = sqrt(w)"))
    assert refute.counterexample(p, 1.0, {}, late=True) is None
    assert refute.counterexample(p, 1.0, {}, late=False) > 2


@pytest.mark.parametrize(
    ("exponent", "wanted"),
    [(T, True), (T - 1, True), (T / 2 - 3, False), (1 - T, False), (T**2 - T, True), (-T, False)],
)
def test_exponents_that_are_never_negative(exponent, wanted: bool) -> None:
    assert never_negative(exponent) is wanted


@pytest.mark.parametrize(("exponent", "wanted"), [("t", True), ("(0.5*t - 3)", False)])
def test_the_proof_itself_looks_at_exponents(exponent: str, wanted: bool, tmp_path: Path) -> None:
    """Without the search that would find it."""
    body = KNOWN["a power that falls below 0"].body.replace("(0.5*t - 3)", exponent)
    assert at_most_one(program_of(tmp_path, body)) is wanted


def test_bounds_without_weights_are_said_without_them(tmp_path: Path) -> None:
    p = program_of(tmp_path, KNOWN["sum of signs"].body)
    words = " ".join(bound_claims(_bound(p, prove(p, steps=0))))
    assert words and "None" not in words


@pytest.mark.parametrize("numerator", ["grad", "m"])
@pytest.mark.filterwarnings("error")
def test_a_denominator_of_the_last_step_bounds_nothing(numerator: str, tmp_path: Path) -> None:
    body = "b = hyper(0.9, ge=0, lt=1)\nm = ema(grad, b)\ndenominator = abs(m.prev) + 1\n"
    p = program_of(tmp_path, f"{body}numerator = {numerator}")
    found = bound_claims(_bound(p, prove(p)))
    assert [x.split(": ")[1] for x in found] == ["this step's gradient is in the numerator alone."]
