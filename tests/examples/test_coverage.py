"""examples/coverage: the page against its tables, and every spec that it names.

Whether the collection's classes do the same is seen where pytorch_optimizer is installed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import pytest

import signconv
from signconv.ir.evaluate import Evaluator
from signconv.runtime.polar import triples
from signconv.runtime.reference import stages
from tests.support import ROOT

sys.path.insert(0, str(ROOT))
run = pytest.importorskip("examples.coverage.run")
compare = pytest.importorskip("examples.coverage.compare")
table = pytest.importorskip("examples.coverage.table")
waits = pytest.importorskip("examples.coverage.waits")
sys.path.remove(str(ROOT))

OWN = sorted(n for n, row in table.AGREES.items() if ":" in row.spec)
#: A sign, a reduction, states that start from the weights, an extra input; the quickest first.
SAMPLE = ("tiger", "fromage", "schedulefreesgd", "emolynx")
#: Those that estimate a distance.
GROWING = sorted(n for n, row in table.AGREES.items() if "d0" in row.values)
#: Values that are the default because the other side has no such hyperparameter, or must be.
AT_DEFAULT = {("a2grad", "lr"), ("amos", "scale"), ("rmsprop", "weight_decay")}
AT_DEFAULT |= {("sm3", "weight_decay")}
known = json.loads(run.FIGURES.read_text(encoding="utf-8"))


def test_page_is_what_the_tables_and_figures_say() -> None:
    text = run.PAGE.read_text(encoding="utf-8")
    assert text == run.page(known), "python -m examples.coverage.run --page"


def test_every_optimizer_stands_in_one_table() -> None:
    assert not table.AGREES.keys() & waits.WAITS.keys()
    assert run.strangers(known["titles"]) == []
    assert known["apart"].keys() == known["compiled"].keys() == table.AGREES.keys()
    assert known["bf16"].keys() == set(run.SIGNED)


def test_figures_are_within_their_tolerances_and_larger_ones_are_explained() -> None:
    for name, row in table.AGREES.items():
        assert known["apart"][name] <= row.tolerance, name
        assert row.tolerance >= compare.TOLERANCE, name
        assert row.note or row.tolerance == compare.TOLERANCE, name


def test_reasons_are_of_the_closed_list_and_all_in_use() -> None:
    used = {reason for wait in waits.WAITS.values() for reason in wait.reasons}
    assert used == waits.REASONS.keys()
    assert all(wait.reasons and wait.detail for wait in waits.WAITS.values())


@pytest.mark.parametrize("name", sorted(table.AGREES))
def test_every_hyperparameter_is_given_and_off_its_default(name: str) -> None:
    row = table.AGREES[name]
    program = run.program_of(row)
    values = row.run(program).values
    assert values.keys() == {h.name for h in program.hypers}
    assert row.values.keys() <= values.keys()
    for h in program.hypers:
        assert h.allows(values[h.name]), h.name
        assert values[h.name] != h.default or (name, h.name) in AT_DEFAULT, h.name


def test_a_wrong_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: a run agrees with itself, and not with one whose beta is another."""
    row = table.AGREES["tiger"]
    program = run.program_of(row)
    given = row.run(program)
    problem = compare.Problem.make()
    same = compare.ours(program, given, problem)

    def theirs(name: str, asked: Any, problem: Any) -> Any:
        return compare.ours(program, table.Row(row.spec, {"beta": 0.6}).run(program), problem)

    monkeypatch.setattr(compare, "theirs", lambda *_: same)
    assert compare.deviation(program, "tiger", given) == 0
    monkeypatch.setattr(compare, "theirs", theirs)
    assert compare.deviation(program, "tiger", given) > 0.01


@pytest.mark.parametrize("name", run.SIGNED)
def test_a_wrong_step_is_beyond_what_bf16_may_do(name: str) -> None:
    row = table.AGREES[name]
    program = run.program_of(row)
    problem = compare.Problem.make(shapes=row.shapes)
    right = row.run(program)
    longer = dataclasses.replace(right, values={**right.values, "lr": 1.2 * right.values["lr"]})
    made = compare.ours(program, longer, problem), compare.ours(program, right, problem)
    assert compare.apart(*made, problem) > run.allowed(name, known)


def test_nan_of_any_tensor_is_seen() -> None:
    problem = compare.Problem.make()
    good = [np.stack([x, x + 1]) for x in problem.start]
    assert compare.apart(good, good, problem) == 0
    assert np.isnan(compare.apart([*good[:2], good[2] * np.nan], good, problem))


def last_of(state: str, name: str, values: dict[str, float]) -> float:
    """What a scalar state comes to in the comparison of an optimizer, by values of its own."""
    row = table.AGREES[name]
    program = run.program_of(row)
    problem = compare.Problem.make()
    given = dataclasses.replace(row, values={**row.values, **values}).run(program)
    together = compare.Together(program, given, problem.start)
    x = problem.start
    for t in range(1, compare.STEPS + 1):
        x = together.step(x, problem.grads(x, t), t, None, {})
    each = {float(s[state].reshape(-1)[0]) for s in together.states}
    assert len(each) == 1  # all tensors share it
    return each.pop()


@pytest.mark.parametrize("name", GROWING)
def test_distances_grow(name: str) -> None:
    """Otherwise a comparison over these steps would prove nothing."""
    d0 = table.AGREES[name].values["d0"]
    assert last_of("d", name, {}) > 10 * d0


def test_swats_changes_to_sgd_in_the_midst_of_its_comparison() -> None:
    assert last_of("rate", "swats", {}) > 0
    assert last_of("rate", "swats", {"eps": 1e-9}) == 0


def test_sums_over_all_tensors_are_those_of_one_long_one() -> None:
    """Of specs that reduce nothing else, the evaluator's own on all tensors next to each other."""
    for name in GROWING:
        row = table.AGREES[name]
        program = run.program_of(row)
        given, problem = row.run(program), compare.Problem.make()
        alone = Evaluator(program, **given.values)
        together = compare.Together(program, given, problem.start)
        x = problem.start
        flat = joined(x)
        state = alone.initial_state(flat)
        for t in range(1, compare.STEPS + 1):
            grads = problem.grads(x, t)
            x = together.step(x, grads, t, None, {})
            flat, state = alone.step(flat, joined(grads), state, t)
        assert np.allclose(joined(x), flat, rtol=1e-12, atol=0), name


def joined(tensors: tuple[Any, ...]) -> Any:
    return np.concatenate([x.reshape(-1) for x in tensors])


@pytest.mark.parametrize("name", SAMPLE)
def test_compiled_sample_follows_its_meaning(name: str) -> None:
    assert run.measure_compiled(name) < run.allowed(name, known)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(table.AGREES))
def test_compiled_optimizer_follows_its_meaning(name: str) -> None:
    assert run.measure_compiled(name) < run.allowed(name, known)


def exact_sign(x: Any, how: str, out: Any) -> None:
    for matrix, result in zip(x, out, strict=True):
        made = matrix.double() / matrix.double().norm()
        for a, b, c in triples(how):
            gram = made @ made.T
            made = a * made + (b * gram + c * gram @ gram) @ made
        result.copy_(made)


@pytest.mark.parametrize("name", run.SIGNED)
def test_compiled_matrix_signs_differ_by_their_products_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exact ones the compiled optimizer is as near to its meaning as any other."""
    monkeypatch.setattr(stages, "matrix_sign", exact_sign)
    assert run.measure_compiled(name) < compare.ROUNDING


@pytest.mark.parametrize("name", OWN)
def test_spec_builds_and_is_documented(name: str) -> None:
    made = signconv.build(run.spec_of(table.AGREES[name]))
    assert made.program.doc.strip()


@pytest.fixture
def one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU backend, which takes most of the time, is left to ``test_verified``."""
    from signconv.verification import differential

    monkeypatch.setattr(differential, "HAS_LLVM", False)


@pytest.mark.parametrize("name", SAMPLE[:1])
def test_sample_is_verified(name: str, one_backend: None) -> None:
    report = signconv.verify(run.spec_of(table.AGREES[name]), state="fp32", device="cpu", steps=1)
    assert report.ok, str(report)


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLE[1:])
def test_others_of_the_sample_are_verified(name: str, one_backend: None) -> None:
    test_sample_is_verified(name, one_backend)


@pytest.mark.long
@pytest.mark.parametrize("name", OWN)
def test_verified(name: str) -> None:
    report = signconv.verify(run.spec_of(table.AGREES[name]), state="fp32", device="cpu", steps=1)
    assert report.ok, str(report)


@pytest.mark.integration
def test_tables_hold_the_installed_release() -> None:
    collection = pytest.importorskip("pytorch_optimizer")
    titles = {n: "" for n in collection.get_supported_optimizers()}
    assert run.strangers(titles) == []


@pytest.mark.integration
@pytest.mark.parametrize("name", sorted(table.AGREES))
def test_follows_the_collection(name: str) -> None:
    pytest.importorskip("pytorch_optimizer")
    assert run.measure(name) <= table.AGREES[name].tolerance
