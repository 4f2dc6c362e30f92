"""``signconv show``: bytes, operations, claims, what is measured, and the three formats."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from signconv.cli import app
from signconv.pipeline import build, builtin_names, resolve
from signconv.prove import excess, report, rounding
from signconv.prove.formulas import algorithm_latex, name_latex
from signconv.runtime.reference import ops as ref
from tests.support import program_of, spec_file

UNIT = torch.tensor(127)  # the byte of scale 1
SHOWN = [
    ("adamw", "stosign"), ("s3", None), ("adamw", "soft:p=2,nesterov,stosign"), ("lamb", None),
    ("adabelief", None), ("sgd", "stosign"), ("lion", None), ("nadam", None),
]  # fmt: skip


@cache
def shown(spec: str, convert: str | None = None) -> dict[str, Any]:
    return report.assemble(build(spec, convert=convert))


def claims(spec: str, convert: str | None = None) -> str:
    return " ".join(x for group in shown(spec, convert)["claims"].values() for x in group)


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(("spec", "convert"), SHOWN)
def test_text_fits_a_terminal(spec: str, convert: str | None) -> None:
    text = report.as_text(shown(spec, convert))
    assert all(len(line) <= 100 for line in text.splitlines())
    for words in ("p = p - ", "Hyperparameters", "State, bytes", "What is proved"):
        assert words in text
    assert shown(spec, convert)["command"] in text


def test_json_has_the_same_keys_for_all() -> None:
    first = shown(*SHOWN[0])
    for spec, convert in SHOWN[1:]:
        other = shown(spec, convert)
        assert list(other) == list(first)
        for key in ("bound", "claims", "operations"):
            assert list(other[key]) == list(first[key])
        assert json.loads(report.as_json(other)) == other
    assert all(key in report.__doc__ for key in first)


def test_the_command(tmp_path: Path) -> None:
    """All three formats through the command line, on a spec of the user's."""
    spec = spec_file(tmp_path, "m = ema(grad, 0.9)\nnumerator = m").spec
    run = CliRunner()
    made = [run.invoke(app, ["show", spec, "--convert", "stosign", "--format", f]).stdout
            for f in ("text", "latex", "json")]  # fmt: skip
    assert "sign(m + G * noise)" in made[0]
    assert r"\begin{align*}" in made[1] and made[1].startswith("% ")
    assert json.loads(made[2])["bound"]["always"] is True


def test_same_program_same_report() -> None:
    assert report.as_json(report.assemble(build("s3"))) == report.as_json(shown("s3"))


# ---------------------------------------------------------------- bytes and operations


def test_bytes_by_hand() -> None:
    state = shown("adamw", "stosign")["state"]
    assert [state[s]["bytes"] for s in ("fp8", "bf16", "fp32")] == [2 + 2 / 32, 4, 8]
    assert state["fp8"]["moved"] == {"bf16": 2 + 2 + 2 + 2 * 2.0625, "fp32": 12 + 2 * 2.0625}
    assert state["fp32"]["moved"] == {"bf16": 6 + 16, "fp32": 12 + 16}
    assert [m["format"] for m in state["fp8"]["moments"].values()] == ["e4m3", "e5m3"]


def test_a_reduction_reads_everything_again() -> None:
    r = shown("lamb")
    assert r["operations"]["passes"] == 2
    assert r["state"]["fp32"]["moved"]["fp32"] == (12 + 16) + (4 + 4 + 8)


def test_scalar_states_take_no_bytes_per_parameter() -> None:
    assert shown("nadam")["state"]["fp32"]["bytes"] == 8


def test_operations_by_hand(tmp_path: Path) -> None:
    """m: a product, and one with a sum; p: a product with a sum; abs is no arithmetic."""
    spec = spec_file(tmp_path, "m = ema(grad, 0.9)\nnumerator = m").spec
    none = {"passes": 1, "products": 0}
    assert report.assemble(build(spec))["operations"] == {"arithmetic": 3, "other": 0, **none}
    spec = spec_file(tmp_path, "numerator = abs(grad) + grad", name="two.py").spec
    assert report.assemble(build(spec))["operations"] == {"arithmetic": 2, "other": 1, **none}
    lines = "numerator = msign(grad, steps=3)"
    spec = spec_file(tmp_path, lines, name="three.py").spec
    of_nine = {"arithmetic": 1, "other": 0, "passes": 2, "products": 9}  # p: one, fused
    assert report.assemble(build(spec))["operations"] == of_nine


# ---------------------------------------------------------------- what is said


def test_removed_and_notes() -> None:
    r = shown("adamw", "stosign")
    assert [x["name"] for x in r["removed"]] == ["eps"] and "as they were" in r["notes"][0]
    assert [x["request"] for x in r["passes"]] == ["stosign"]
    assert {h["name"] for h in r["hyperparameters"]} == {"lr", "beta1", "beta2", "weight_decay"}


SAID = [
    ("adamw", "stosign", ["= 7.27029", "beta1**2 < beta2", "where beta1 = beta2", "sharp",
                          "clipped to [-1, 1] beyond", "abs(update) <= 1, whatever"]),
    ("adamw", "soft:p=2,nesterov,stosign", ["<= 1 at every step", "everywhere, given an fp32"]),
    ("sgd", "stosign", ["<= 1 at every step", "everywhere", "whatever the storage: nothing is"]),
    (
        "s3",
        None,
        [
            "<= 1 at every step",
            "abs(update) <= 1 with fp32",
            "Measured: never above 1 in 200 steps",
        ],
    ),
    ("lamb", None, ["no bound could be proved", "lower bound by search"]),
    ("adabelief", None, ["has no bound", "diverges", "1 < beta2", "eps >= 0 is left out"]),
    ("lion", None, ["abs(update) <= 1: it is a sign"]),
    ("nadam", None, ["= 8.41512", "Earlier it is larger", "momentum_decay > 0"]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "convert", "words"), SAID)
def test_claims(spec: str, convert: str | None, words: list[str]) -> None:
    text = claims(spec, convert)
    assert [w for w in words if w not in text] == []


def test_a_moment_that_is_wider_than_asked_says_why(tmp_path: Path) -> None:
    """Once the table alone showed it: bf16 in the column of fp8."""
    body = "m = ema(grad, 0.9)\nv = ema(mean(grad**2, axis='block'), 0.95)\nx = state(param)\n"
    body += "x.next = 0.9 * x.prev + 0.1 * param\nnumerator = m + x\ndenominator = sqrt(v)"
    path = spec_file(tmp_path, body)[0]
    said = report.assemble(build(f"{path}:Mine"))["claims"]["storage"]
    assert [x.split(":")[0] for x in said] == ["m is bf16 and not fp8", "x is fp32 and not fp8"]
    assert "keeps no bound" in said[0] and "reads it" in said[1]
    assert not shown("adamw")["claims"]["storage"]


def test_a_limit_that_sympy_does_not_find_is_no_proof(tmp_path: Path) -> None:
    """A momentum whose beta follows AdEMAMix's schedule (arXiv 2409.03137, Alg. 1)."""
    body = """
    warmup = hyper(9.0, ge=1)
    beta1, beta3 = hyper(0.9, gt=0, lt=1), hyper(0.9999, gt=0, lt=1)
    part = min(t / warmup, 1)
    b = exp(log(beta1) * log(beta3) / ((1 - part) * log(beta3) + part * log(beta1)))
    m = ema(grad, min(b, beta3))
    v = ema(grad**2, 0.99)
    numerator = m
    denominator = sqrt(v) + 1e-8
    """
    words = claims(spec_file(tmp_path, body).spec)
    assert "sympy does not find the limit of a scalar as t grows" in words


def test_no_claim_of_a_bounded_update_without_a_proof() -> None:
    for spec in ("nadam", "adabelief", "lamb"):
        assert "abs(update)" not in claims(spec) and "<= 1 at every step" not in claims(spec)
        assert "everywhere" not in claims(spec)


# ---------------------------------------------------------------- LaTeX


@pytest.mark.parametrize("spec", builtin_names())
def test_latex_is_balanced(spec: str) -> None:
    text = algorithm_latex(resolve(spec), r"x \le 1")
    bare = text.replace(r"\_", "").replace(r"\{", "").replace(r"\}", "")
    depth = 0
    for c in bare:
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0
    assert text.count(r"\left") - text.count(r"\leftarrow") == text.count(r"\right")
    for name in ("align*", "cases"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")
    rows = [x for x in text.splitlines() if x.startswith("  ")]
    assert all(row.endswith(r" \\") for row in rows[:-1]) and not rows[-1].endswith("\\")
    outside, cases = text, re.compile(r"\\begin{cases}((?!\\begin{cases}).)*?\\end{cases}")
    while cases.search(outside):  # the innermost first: cases may lie in cases
        outside = cases.sub("", outside)
    assert all(row.count("&") == 1 for row in outside.splitlines() if row.startswith("  "))


@pytest.mark.parametrize(("spec", "convert"), SHOWN)
def test_latex_is_mathematics(spec: str, convert: str | None) -> None:
    """Each row through a parser of LaTeX's mathematics; it knows neither cases nor text."""
    mathtext = pytest.importorskip("matplotlib.mathtext")
    parser = mathtext.MathTextParser("path")
    for row in shown(spec, convert)["latex"].splitlines()[1:-1]:
        if "cases" in row or r"\text" in row:
            continue
        row = row.removesuffix(r" \\").replace("&", "").replace(r"\tfrac", r"\frac")
        parser.parse(f"${row.replace('={}', '=').replace('{}', '')}$")


def test_latex_of_a_reciprocal_is_one_fraction() -> None:
    text = algorithm_latex(resolve("came"))
    assert r"={} & \frac{1}{\sqrt{" in text and r"1\,\frac" not in text


def test_latex_keeps_the_order_of_the_source(tmp_path: Path) -> None:
    body = "z, a = ema(grad, 0.5), ema(grad, 0.25)\nnumerator = z*0.5 + a*(2 - z) - a/z"
    text = algorithm_latex(program_of(tmp_path, body))
    assert r"z_{t}\,0.5 + a_{t}\,\left(2 - z_{t}\right) - \frac{a_{t}}{z_{t}}" in text
    assert text.index("z_{t} =") < text.index("a_{t} =")


def test_names() -> None:
    assert name_latex("beta12") == r"\beta_{12}" and name_latex("G") == "G"
    assert name_latex("weight_decay") == r"\mathrm{weight\_decay}"


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize(("form", "mantissa"), [("e4m3", 3), ("e5m3", 3), ("e6m2", 2)])
def test_variance_of_one_rounding(form: str, mantissa: int) -> None:
    """2^10 draws, evenly spread, on values log-uniform over a binade, through the codec."""
    x = torch.tensor(2.0 ** ((np.arange(64) + 0.5) / 64), dtype=torch.float32)
    halves = torch.arange(32, 2**16, 64, dtype=torch.int32)
    values, draws = x.repeat_interleave(len(halves)), halves.repeat(len(x))
    stored = ref.decode_fp8(ref.encode_fp8(values, UNIT, draws << 16, form), form)
    ratio = (stored.double() / values.double()).view(len(x), -1)
    assert (ratio.mean(dim=1) - 1).abs().max() < 2**-10
    wanted = rounding.relative_variance(mantissa)
    assert float(ratio.var(dim=1).mean()) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("beta", [0.95, 0.99])
def test_rounding_that_adds_up(beta: float) -> None:
    """A stored second moment of Gaussian gradients against the exact one, by simulation."""
    rng, size = np.random.default_rng(0), 4096
    exact, stored = np.zeros(size), torch.zeros(size)
    shift = []
    for t in range(1, 2400):
        g = rng.standard_normal(size)
        exact = beta * exact + (1 - beta) * g * g
        new = beta * stored.double() + (1 - beta) * torch.tensor(g * g)
        halves = torch.tensor(rng.integers(0, 2**16, size), dtype=torch.int32)
        stored = ref.decode_fp8(ref.encode_fp8(new.float(), UNIT, halves << 16, "e5m3"), "e5m3")
        if t > 1200:  # rounding settles slower than the average
            shift.append(float(np.mean(np.sqrt(exact / stored.double().numpy()))) - 1)
    wanted = 3 / 8 * rounding.stationary_variance(3, beta, 2)
    assert np.mean(shift) == pytest.approx(wanted, rel=0.15)


def test_linear_uses_shift_nothing() -> None:
    for spec, convert in (("adamw", "stosign"), ("sgd", "stosign"), ("nadam", None)):
        first, *rest = shown(spec, convert)["rounding"]
        assert (first["use"], first["single"]) == ("linear", 0)
        assert rest[0]["use"] == "denominator" and rest[0]["single"] > 4e-4
    assert {x["use"] for x in shown("lamb")["rounding"]} == {"other"}
    assert shown("lion")["rounding"][0]["use"] == "other"  # a sign is not linear


@pytest.mark.parametrize("state", ["fp8", "m=fp8"])
def test_a_matrix_sign_below_divides_by_no_moment(state: str, tmp_path: Path) -> None:
    """And of whole numbers, which have it, no variance is a share of each number."""
    body = "b = hyper(0.9, ge=0, lt=1)\nm = ema(grad, b)\nnumerator = grad\n"
    made = build(spec_file(tmp_path, body + "denominator = norm(msign(m)) + 1").spec, state=state)
    formats = {m.name: m.format for m in made.kernel.moments}
    assert [x.use for x in rounding.shifts(made.program, formats)] == ["other"]


# ---------------------------------------------------------------- FP8, measured


def test_excess_is_measured_and_seeded() -> None:
    made = build("s3")
    once, again = (excess.measure(made, steps=30, size=256) for _ in range(2))
    # the floor on s that lowering keeps holds the ratio at 1 under FP8 too
    assert once == again and 0.9 < once.largest <= 1 + 2**-20 and once.share == 0


def test_no_excess_in_fp32() -> None:
    x = excess.measure(build("s3", state="fp32"), steps=60, size=256)
    assert 0.5 < x.largest <= 1 + 2**-20


def test_excess_of_a_stochastic_sign_is_that_of_its_ratio() -> None:
    """Through the stored state; for an fp32 state that is the ratio's own value."""
    x = excess.measure(build("s3", convert="stosign", state="fp32"), steps=30, size=256)
    y = excess.measure(build("s3", state="fp32"), steps=30, size=256)
    assert x.largest == pytest.approx(y.largest, rel=1e-5)


def test_measured_only_where_something_is_proved() -> None:
    assert shown("adamw", "stosign")["fp8"] is None and shown("sgd", "stosign")["fp8"] is None
    assert shown("s3")["fp8"]["steps"] == 200
