"""The stosign pass: equations in, equations out, on specs written here; refusals; its law."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from signconv.errors import PassError, SpecError
from signconv.ir.check import check
from signconv.ir.describe import algorithm
from signconv.ir.nodes import DEFAULT_NOISE, NOISES
from signconv.lower.identity import program_hash
from signconv.passes.base import parse, transform
from signconv.pipeline import build, builtin_names, resolve
from signconv.prove.report import assemble
from signconv.verification.witnesses import pass_rows
from tests.passes.bodies import ADAM, BARE, BOTH, DECAYED, RATIO, converted, refused
from tests.support import built_class, program_of, spec_file

#: A spec, the pass as asked for, and the algorithm that has to come out.
TABLE = {
    "offset behind a root goes": (
        ADAM,
        "stosign",
        [*BOTH, "update = sign(m1 + sqrt(m2) * noise)", DECAYED],
    ),
    "offset before a root goes": (
        RATIO.format(denominator="tiny + sqrt(m2)"),
        "stosign",
        [*BOTH, "update = sign(m1 + sqrt(m2) * noise)", DECAYED],
    ),
    "offset inside a root goes": (
        RATIO.format(denominator="sqrt(m2 + tiny)"),
        "stosign",
        [*BOTH, "update = sign(m1 + sqrt(m2) * noise)", DECAYED],
    ),
    "offset of a root over a scalar goes": (
        RATIO.format(denominator="sqrt((m2 + tiny) / 3) * 2"),
        "stosign",
        [*BOTH, "update = sign(m1 + sqrt(m2 / 3) * 2 * noise)", DECAYED],
    ),
    "offset of a sum of several goes": (
        RATIO.format(denominator="sqrt(m2) + tiny + abs(m1)"),
        "stosign",
        [*BOTH, "update = sign(m1 + (sqrt(m2) + abs(m1)) * noise)", DECAYED],
    ),
    "a maximum stays": (
        RATIO.format(denominator="max(sqrt(m2), tiny)"),
        "stosign",
        [*BOTH, "update = sign(m1 + max(sqrt(m2), tiny) * noise)", DECAYED],
    ),
    "a number inside a factor stays": (
        RATIO.format(denominator="sqrt(m2) * (1 + abs(tanh(m1))) + tiny"),
        "stosign",
        [*BOTH, "update = sign(m1 + sqrt(m2) * (1 + abs(tanh(m1))) * noise)", DECAYED],
    ),
    "a number inside a quotient stays": (
        RATIO.format(denominator="sqrt(m2) * (m1**2 / (m1**2 + tiny))"),
        "stosign",
        [*BOTH, "update = sign(m1 + sqrt(m2) * (m1**2 / (m1**2 + tiny)) * noise)", DECAYED],
    ),
    "a number inside a root that is a summand stays": (
        RATIO.format(denominator="sqrt(m2 + tiny) + abs(m1)"),
        "stosign",
        [*BOTH, "update = sign(m1 + (sqrt(m2 + tiny) + abs(m1)) * noise)", DECAYED],
    ),
    "a number inside a divisor stays": (
        RATIO.format(denominator="abs(m1) / (sqrt(m2) + tiny)"),
        "stosign",
        [*BOTH, "update = sign(m1 + abs(m1) / (sqrt(m2) + tiny) * noise)", DECAYED],
    ),
    "factors stay": (
        RATIO.format(denominator="2 * sqrt(m2 / 3) + tiny"),
        "stosign",
        [*BOTH, "update = sign(m1 + 2 * sqrt(m2 / 3) * noise)", DECAYED],
    ),
    "offset kept on request": (
        ADAM,
        "stosign:eps=keep",
        [*BOTH, "update = sign(m1 + (sqrt(m2) + tiny) * noise)", DECAYED],
    ),
    "no denominator: the running maximum becomes one": (
        "m1 = ema(grad, 0.9)\nnumerator = m1",
        "stosign",
        [
            "m1 = 0.9 * m1.prev + (1 - 0.9) * g",
            "G = max(beta2 * G.prev, abs(m1))",
            "update = sign(m1 + G * noise)",
            "p = p - lr * update",
        ],
    ),
    "a sign as update becomes stochastic": (
        "m1 = ema(grad, 0.9)\nupdate = sign(m1)",
        "stosign",
        [
            "m1 = 0.9 * m1.prev + (1 - 0.9) * g",
            "G = max(beta2 * G.prev, abs(m1))",
            "update = sign(m1 + G * noise)",
            "p = p - lr * update",
        ],
    ),
    "l2 decay stays where it was": (
        "wd = hyper(0.1)\nupdate = grad\ndecay = l2(wd)",
        "stosign",
        [
            "g = g + wd * p",
            "G = max(beta2 * G.prev, abs(g))",
            "update = sign(g + G * noise)",
            "p = p - lr * update",
        ],
    ),
    "a denominator behind a name": (
        RATIO.replace("numerator", "below = sqrt(m2) + tiny\nnumerator").format(
            denominator="below"
        ),
        "stosign",
        [*BOTH, "update = sign(m1 + sqrt(m2) * noise)", DECAYED],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_equations(case: str, tmp_path: Path) -> None:
    body, convert, lines = TABLE[case]
    p = converted(tmp_path, body, convert)
    assert algorithm(p) == lines
    assert (p.link, p.history) == ("stosign", (convert,))


def test_what_it_must_not_touch(tmp_path: Path) -> None:
    """A parameter-sized offset, and an offset of the numerator, are no eps."""
    body = RATIO.format(denominator="sqrt(m2) + abs(param)").replace("tiny", "more")
    body = body.replace("numerator = m1", "numerator = m1 + more")
    p = converted(tmp_path, body, "stosign")
    assert "update = sign(m1 + more + (sqrt(m2) + abs(p)) * noise)" in algorithm(p)


# ---------------------------------------------------------------- eps


def test_eps_leaves_the_constructor_and_passing_it_names_the_way_out(tmp_path: Path) -> None:
    body = ADAM
    assert converted(tmp_path, body, "stosign").hyper("tiny") is None
    cls = built_class(tmp_path, body, "stosign")
    with pytest.raises(TypeError, match=r"no 'tiny': .*--convert stosign:eps=keep"):
        cls([torch.zeros(2, requires_grad=True)], tiny=1e-6)
    kept = built_class(tmp_path, body, "stosign:eps=keep")
    kept([torch.zeros(2, requires_grad=True)], tiny=1e-6)


@pytest.mark.parametrize(
    ("convert", "stays"),
    [("stosign", True), ("stosign:eps=drop", True), ("stosign:eps=keep", False)],
)
def test_a_coordinate_without_gradient(convert: str, stays: bool, tmp_path: Path) -> None:
    """Without eps it stays where it is, with eps it walks by lr."""
    body = ADAM
    p = torch.ones(64, requires_grad=True)
    optimizer = built_class(tmp_path, body, convert)([p], lr=0.5, wd=0.0)
    for _ in range(2):  # draws of t = 1 and 2 are no pair
        p.grad = torch.zeros(64)
        optimizer.step()
    moved = p.detach() - 1
    assert bool((moved == 0).all()) is stays
    if not stays:
        assert set(moved.tolist()) <= {-1.0, 0.0, 1.0}
        assert len(set(moved.tolist())) > 2


# ---------------------------------------------------------------- defaults, names


def test_defaults_of_a_ratio_stay_and_are_said_to(tmp_path: Path) -> None:
    """The mean update is the base's own, clipped at 1, and so is its best lr (docs/advice.md)."""
    before, after = program_of(tmp_path, ADAM), converted(tmp_path, ADAM, "stosign")
    assert list(after.hypers) == [h for h in before.hypers if h.name != "tiny"]
    assert any("as they were, since the mean update is" in note for note in after.notes)


def test_defaults_are_scaled_without_a_denominator(tmp_path: Path) -> None:
    """lr x 0.2 and weight decay x 5 keep lr * weight_decay."""
    before, after = program_of(tmp_path, BARE), converted(tmp_path, BARE, "stosign")
    assert (before.hyper("lr").default, after.hyper("lr").default) == (1e-3, 2e-4)
    assert (before.hyper("wd").default, after.hyper("wd").default) == (0.02, 0.1)
    assert after.hyper("rate").default == 0.9
    assert any("lr x 0.2" in note for note in after.notes)


@pytest.mark.parametrize(
    ("weight", "scaled"),
    [
        ("wd * min(1, t / warm)", {"wd"}),
        ("wd * warm", {"wd"}),
        ("wd + warm", {"wd", "warm"}),
        ("where(ndim >= 2, wd * min(1, t / warm), 0)", {"wd"}),
    ],
)
def test_a_schedule_inside_the_decay_is_not_scaled(
    tmp_path: Path, weight: str, scaled: set[str]
) -> None:
    """The weight as a whole becomes five times as large, once."""
    body = f"wd, warm = hyper(0.02), hyper(100)\nupdate = grad\ndecay = decoupled({weight})"
    p = converted(tmp_path, body, "stosign")
    plain = {"wd": 0.02, "warm": 100}
    for name, before in plain.items():
        assert p.hyper(name).default == pytest.approx(before * (5 if name in scaled else 1))


def test_defaults_of_a_sign_update_stay(tmp_path: Path) -> None:
    p = converted(tmp_path, "update = sign(grad)", "stosign")
    assert p.hyper("lr").default == 1e-3


def test_scaled_defaults_stay_inside_their_range(tmp_path: Path) -> None:
    body = "wd = hyper(0.3, ge=0, le=1)\nupdate = grad\ndecay = decoupled(wd)"
    wd = converted(tmp_path, body, "stosign").hyper("wd")
    assert wd.allows(wd.default)


def test_running_maximum_forgets_by_default(tmp_path: Path) -> None:
    beta = converted(tmp_path, "update = grad", "stosign").hyper("beta2")
    assert (beta.default, beta.ge, beta.le, beta.lt) == (0.99, 0, 1, None)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("G = ema(grad, 0.9)\nnumerator = G", ["G2 = max(beta2 * G2.prev, abs(G))"]),
        (
            "beta2 = hyper(0.9)\nm = ema(grad, beta2)\nnumerator = m",
            ["G = max(beta3 * G.prev, abs(m))"],
        ),
        (
            "G = hyper(2.0)\nbeta2 = grad * G\nnumerator = beta2",
            ["G2 = max(beta3 * G2.prev, abs(beta2))"],
        ),
    ],
)
def test_names_that_are_taken(body: str, names: list[str], tmp_path: Path) -> None:
    assert set(names) <= set(algorithm(converted(tmp_path, body, "stosign")))


def test_no_name_left(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="already uses the names G, G2"):
        converted(tmp_path, "G, G2 = grad * 2, grad * 3\nnumerator = G + G2", "stosign")


def test_betas_stay_a_pair_in_the_constructor(tmp_path: Path) -> None:
    """A spec with beta1 gets betas=(beta1, beta2)."""
    body = "beta1 = hyper(0.9, ge=0, lt=1)\nm = ema(grad, beta1)\nnumerator = m"
    source = build(spec_file(tmp_path, body).spec, convert="stosign").module.source
    assert "betas: tuple[float, float] = (0.9, 0.99)" in source


# ---------------------------------------------------------------- refusals

TAKES = "eps=keep|drop; noise=fresh|antithetic|golden"


@pytest.mark.parametrize(
    ("convert", "code", "words"),
    [
        ("stosign:eps=maybe", "SC213", "neither eps=drop (default) nor eps=keep"),
        (
            "stosign:eps",
            "SC202",
            f"no option 'eps'; it takes: {TAKES}",
        ),
        (
            "stosign:epsilon=keep",
            "SC202",
            f"no option 'epsilon=keep'; it takes: {TAKES}",
        ),
        ("stosign:noise=gold", "SC214", "did you mean 'golden'?"),
        ("stosign:eps=keep:eps=drop", "SC203", "'eps' is given twice"),
        ("stosign,stosign:eps=keep", "SC204", "'stosign' is asked for twice"),
    ],
)
def test_options(convert: str, code: str, words: str, tmp_path: Path) -> None:
    found = refused(tmp_path, "numerator = grad", convert)
    assert found[0] == code and words in found[1]


def test_the_kind_of_noise_is_part_of_the_program(tmp_path: Path) -> None:
    """Of its hash, file and class; what has no name of its own is DEFAULT_NOISE."""
    spec = spec_file(tmp_path, "numerator = grad").spec
    made = {k: build(spec, convert=f"stosign:noise={k}") for k in NOISES}
    assert [b.program.noise for b in made.values()] == list(NOISES)
    assert len({program_hash(b.kernel) for b in made.values()}) == 3
    plain = build(spec, convert="stosign")
    assert program_hash(plain.kernel) == program_hash(made[DEFAULT_NOISE].kernel)
    assert plain.module.class_name + "Golden" == made["golden"].module.class_name
    assert made["golden"].module.file_name.endswith("_stosign_golden.py")
    assert (
        'noise="golden",' in made["golden"].module.source
        and f'noise="{DEFAULT_NOISE}",' in plain.module.source
    )


def test_a_program_of_an_unknown_noise_is_refused() -> None:
    """Whoever made it: a pass of somebody else's, say."""
    p = build("adamw", convert="stosign").program
    with pytest.raises(SpecError, match=r"unknown noise 'gold'; did you mean 'golden'\?.*SC151"):
        check(replace(p, noise="gold"))


def test_a_sign_takes_another_noise() -> None:
    """StoSignSGD, which draws signs by itself, and else is what it was."""
    p = build("stosignsgd").program
    golden = build("stosignsgd", convert="stosign:noise=golden").program
    assert golden.noise == "golden"
    assert replace(golden, noise="fresh", history=()) == p
    with pytest.raises(PassError, match="already has the link stosign"):
        build("stosignsgd", convert="stosign:noise=golden:eps=keep")


def test_show_says_what_is_proved_of_noise() -> None:
    made = {k: assemble(build("adamw", convert=f"stosign:noise={k}"))["claims"] for k in NOISES}
    said = {k: " ".join(claims["unbiased"]) for k, claims in made.items()}
    assert "martingale arguments apply" in said["fresh"]
    assert "never above that of fresh noise" in said["antithetic"]
    assert "do not apply" in said["golden"] and "6 + 8.5*log(T)" in said["golden"]


def test_comes_last(tmp_path: Path) -> None:
    p = converted(tmp_path, BARE, "stosign,nesterov,soft:p=2,presign")
    assert p.history == ("presign", "soft:p=2", "nesterov", "stosign")


def test_a_converted_program_is_not_converted_again(tmp_path: Path) -> None:
    p = converted(tmp_path, "numerator = grad", "stosign")
    with pytest.raises(PassError, match="already has the link stosign"):
        transform(p, parse("stosign"))


# ---------------------------------------------------------------- the law


@pytest.mark.parametrize("convert", ["stosign", "stosign:eps=keep"])
@pytest.mark.parametrize("name", [n for n in builtin_names() if resolve(n).link != "stosign"])
def test_mean_law_on_the_builtins(name: str, convert: str) -> None:
    (row,) = pass_rows(resolve(name), (convert,))
    assert row.ok, row.detail


@pytest.mark.parametrize("case", TABLE)
def test_mean_law_on_specs_written_here(case: str, tmp_path: Path) -> None:
    body, convert, _ = TABLE[case]
    # The offset has another name here than the one that the law sets to zero.
    p = program_of(tmp_path, re.sub(r"\btiny\b", "eps", body))
    (row,) = pass_rows(p, (convert,))
    assert row.ok, row.detail
