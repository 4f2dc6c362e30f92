"""What is, and what is not, part of a program's identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from signconv.ir.nodes import Const, Expr, Hyper, Op, Program, Ref, add, mul, sub
from signconv.lower.identity import canonical, former, meaning, program_hash
from signconv.lower.kernel_program import KernelProgram
from signconv.pipeline import build
from tests.support import program_of

BODY = """
    \"\"\"A rule.\"\"\"
    lr = hyper(1e-2, ge=0)
    beta1 = hyper(0.9, ge=0, lt=1)
    m = ema(grad, beta1)
    v = ema(grad**2, 0.99)
    w = state(0.5)
    w.next = 0.9 * w.prev + 0.1 * abs(grad)
    k = state(1.0)
    k.next = k.prev * beta1
    size = sqrt(v) + 1e-8
    size2 = size * norm(grad + param)
    numerator = m * k + w
    denominator = size2 + size
    decay = decoupled(0.1)
"""


def kernel(
    tmp_path: Path, body: str, state: str = "fp8", math: str = "fp32", name: str = "Mine"
) -> KernelProgram:
    path = tmp_path / "mine.py"
    path.write_text(f"from signconv.dsl import *\n\n\nclass {name}(Optimizer):{body}")
    return build(f"{path}:{name}", state=state, math=math).kernel


#: Changes of the text that change nothing of the program.
SAME: dict[str, list[tuple[str, str]]] = {
    "a temporary renamed": [("size2", "other"), ("size", "below")],
    "temporaries whose names sort the other way": [("size2", "aa"), ("size", "zz")],
    "a temporary written out": [
        ("    size = sqrt(v) + 1e-8\n", ""),
        ("size * norm", "(sqrt(v) + 1e-8) * norm"),
        ("size2 + size", "size2 + (sqrt(v) + 1e-8)"),
    ],
    "a temporary named": [("m * k", "top"), ("    numerator", "    top = m * k\n    numerator")],
    "documentation": [("A rule.", "Another rule.")],
    "a comment": [("grad**2", "grad**2 ")],
    "a default": [("0.9, ge=0", "0.8, ge=0")],
    "lines in another order": [
        ("    m = ema(grad, beta1)\n", ""),
        ("    k = state", "    m = ema(grad, beta1)\n    k = state"),
    ],
    "a number spelled otherwise": [("1e-8", "0.00000001")],
}

#: Changes of its meaning.
OTHER: dict[str, list[tuple[str, str]]] = {
    "a constant": [("1e-8", "1e-7")],
    "the operand of a reduction": [("grad + param", "grad - param")],
    "the kind of a reduction": [("norm(", "mean(")],
    "the operands' order": [("m * k", "k * m")],
    "the order of a sum": [("size2 + size", "size + size2")],
    "grouping": [("m * k + w", "m * (k + w)")],
    "an initial value": [("state(0.5)", "state(0.25)")],
    "a start from the first input": [("ema(grad, beta1)", 'ema(grad, beta1, init="first")')],
    "a start from the parameter": [("state(0.5)", "state(param)")],
    "an initial value of a scalar state": [("state(1.0)", "state(2.0)")],
    "a scalar state's recurrence": [("k.prev * beta1", "k.prev * (beta1 * beta1)")],
    "beta": [("0.99)", "0.98)")],
    "which beta": [("ema(grad, beta1)", "ema(grad, 0.9)")],
    "the input of a moment": [("grad**2", "grad**4")],
    "the kind of a moment": [("v = ema(", "v = max_ema(")],
    "a moment's name": [("    m = ", "    mm = "), ("m * k", "mm * k")],
    "the old value": [("m * k", "m.prev * k")],
    "a hyperparameter's name": [("beta1", "beta")],
    "a hyperparameter's bound": [("ge=0, lt=1", "ge=0, le=1")],
    "a hyperparameter's other bound": [("hyper(1e-2, ge=0)", "hyper(1e-2, gt=0)")],
    "no bound": [("hyper(1e-2, ge=0)", "hyper(1e-2)")],
    "the decay's kind": [("decoupled(", "independent(")],
    "the decay's weight": [("decoupled(0.1", "decoupled(0.2")],
    "no decay": [("    decay = decoupled(0.1)\n", "")],
    "the link": [
        ("numerator = m * k + w", "top = m * k + w"),
        ("denominator = size2 + size", "update = stochastic_sign(top, size2 + size)"),
    ],
}


def changed(changes: list[tuple[str, str]]) -> str:
    body = BODY
    for old, new in changes:
        assert old in body
        body = body.replace(old, new)
    return body


@pytest.mark.parametrize("what", SAME)
def test_what_is_not_part_of_it(what: str, tmp_path: Path) -> None:
    assert canonical(kernel(tmp_path, changed(SAME[what]))) == canonical(kernel(tmp_path, BODY))


@pytest.mark.parametrize("what", OTHER)
def test_every_meaning_is_part_of_it(what: str, tmp_path: Path) -> None:
    assert program_hash(kernel(tmp_path, changed(OTHER[what]))) != program_hash(
        kernel(tmp_path, BODY)
    )


def test_all_of_these_differ_from_one_another(tmp_path: Path) -> None:
    hashes = {what: program_hash(kernel(tmp_path, changed(OTHER[what]))) for what in OTHER}
    assert len(set(hashes.values())) == len(hashes)


def test_its_class_name_and_file_are_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, two = kernel(tmp_path, BODY), kernel(tmp_path / "a", BODY, name="Yours")
    assert program_hash(one) == program_hash(two)


def test_storage_and_precision_are_part_of_it() -> None:
    made = {
        (state, math): program_hash(build("s3gd", state=state, math=math).kernel)
        for state in ("fp8", "fp8-raw", "bf16", "fp32")
        for math in ("fp32", "bf16")
    }
    assert len(set(made.values())) == 8


ADAMW = build("adamw").kernel


@pytest.mark.parametrize("value", ["e5m3", "fp32", "bf16"])
def test_each_format_is_part_of_it(value: str) -> None:
    m, *rest = ADAMW.moments
    other = (dataclasses.replace(m, format=value), *rest)
    assert program_hash(dataclasses.replace(ADAMW, moments=other)) != program_hash(ADAMW)


def test_random_bits_and_lowered_statements_are_not() -> None:
    moved = tuple(dataclasses.replace(m, word=5, field=2) for m in ADAMW.moments)
    bare = dataclasses.replace(ADAMW, moments=moved, math=(), scalars=(), outputs=(), words=7)
    assert canonical(bare) == canonical(ADAMW)


def test_history_and_notes_are_not() -> None:
    p = dataclasses.replace(
        ADAMW.program, name="X", key="x", doc="", history=("x",), notes=("x",), removed=(("x", ""),)
    )
    assert canonical(dataclasses.replace(ADAMW, program=p)) == canonical(ADAMW)


def test_no_dataclass_shows_through() -> None:
    """A field renamed in Python would show in a repr, and in nothing that stands here."""
    classes = [Program, Hyper, Op, Ref, Const, KernelProgram]
    text = canonical(build("lamb").kernel)
    assert not [c.__name__ for c in classes if f"{c.__name__}(" in text]


def test_renamed_fields_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a renaming: every repr says something else."""
    before = canonical(ADAMW)
    for c in (Program, Hyper, Op, Ref, Const, KernelProgram, type(ADAMW.moments[0])):
        monkeypatch.setattr(c, "__repr__", lambda self: "renamed")
    assert repr(ADAMW.program) == "renamed" and canonical(ADAMW) == before


# ---------------------------------------------------------------- size

GRAD = Ref("grad", "grad")


def with_numerator(e: Expr) -> KernelProgram:
    return dataclasses.replace(ADAMW, program=dataclasses.replace(ADAMW.program, numerator=e))


def chain(n: int, join: Callable[[Expr, Expr], Expr]) -> Expr:
    e: Expr = GRAD
    for i in range(n):
        e = join(e, Const(float(i)))
    return e


@pytest.mark.parametrize("turned", [False, True], ids=["left", "right"])
def test_a_deep_expression(turned: bool) -> None:
    e = chain(5000, (lambda a, b: add(b, a)) if turned else add)
    short = chain(4999, (lambda a, b: add(b, a)) if turned else add)
    assert len(canonical(with_numerator(e))) < 200_000
    assert program_hash(with_numerator(e)) != program_hash(with_numerator(short))


def test_what_is_shared_is_written_once() -> None:
    """Doubled 200 times: 2**200 terms as a tree."""
    e: Expr = GRAD
    for _ in range(200):
        e = mul(e, e)
    assert len(canonical(with_numerator(e))) < 10_000
    once = canonical(with_numerator(add(sub(GRAD, 1), sub(GRAD, 1))))
    assert once.count("sub(grad, 1.0)") == 1


def test_signed_zeros_and_close_numbers_differ() -> None:
    numbers = [0.0, -0.0, 0.1, 0.1 + 2**-56, float("inf")]
    hashes = {program_hash(with_numerator(mul(GRAD, x))) for x in numbers}
    assert len(hashes) == len(numbers)


# ---------------------------------------------------------------- frozen

SGD = """\
precision: fp32
hyper lr: ge 0.0
hyper momentum: ge 0.0 lt 1.0
hyper weight_decay: ge 0.0
moment m: ema of grad, beta hyper:momentum, from first, stored e4m3 or bf16
numerator: new:m
link: ratio
decay: decoupled hyper:weight_decay
"""

#: A change here refuses every checkpoint that users have: raise VERSION and extend
#: runtime/legacy.py, or undo it.
GOLDEN = [
    ("adamw", "stosign:noise=fresh", "fp8", "422fc323f34c41ff"),  # release 0.1's stosign
    ("adamw", "stosign", "fp8", "ac696e5c65bbc78b"),
    ("lamb", None, "fp8", "ebe3087c22995503"),
    ("nadam", None, "fp32", "0f8a5597ed59980d"),
    ("s3gd", None, "fp8-raw", "218216638f6add51"),
]


@pytest.mark.parametrize(("spec", "convert", "state", "digest"), GOLDEN)
def test_hashes_stay(spec: str, convert: str | None, state: str, digest: str) -> None:
    assert program_hash(build(spec, convert=convert, state=state).kernel) == digest


def test_hashes_of_before_stay() -> None:
    """What stands in checkpoints whose second moments are E5M2."""
    found = {
        s: former(build(s, convert=c).kernel) for s, c in (("adamw", "stosign"), ("lamb", None))
    }
    assert found == {
        "adamw": ("190dde18d59f05bd", {"v": "e5m2"}),
        "lamb": ("70a45da8f80ff2d1", {"v": "e5m2"}),
    }
    assert former(build("nadam", state="fp32").kernel) is None
    assert former(build("lion").kernel) is None


def test_the_text_stays() -> None:
    assert canonical(build("sgd").kernel) == SGD


def test_long_meanings_are_cut_and_told_apart(tmp_path: Path) -> None:
    """They stand in a line of the generated file, and decide what ``load_moments`` takes."""
    body = """
    change = where(t == 1, 0, 1) * (grad - {}) / max(abs(grad), 1e-3) + 0.5 * grad
    m = ema(change * change, 0.9)
    n = ema(grad**2, 0.9)
    update = m + n
    """
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    one, two, again = (
        program_of(f, body.format(x)) for f, x in zip(folders, (1, 2, 1), strict=True)
    )
    assert meaning(one, "m") == meaning(again, "m") != meaning(two, "m")
    assert len(meaning(one, "m")) < 72 and meaning(one, "n") == "ema(g**2)"
