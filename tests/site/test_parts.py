"""What the pages are made with: records, pictures, formulas, docstrings."""

from __future__ import annotations

import html
import json
import statistics
from typing import Any

import pytest

from signconv.pipeline import build
from signconv.pipeline.catalogue import Entry
from tests.support import ROOT

pytest.importorskip("mkdocs", reason="needs MkDocs: `make site` installs it")

from markdown import markdown

from tools.site import catalogue, curves, docstrings, figures, formulas, paths


def records(name: str) -> list[dict[str, Any]]:
    lines = (ROOT / "docs" / "results" / f"runs_{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_curve_is_the_mean_of_the_runs_at_the_best_lr() -> None:
    made = build("adamw", convert="stosign")
    setting, (curve,) = curves.recorded(made)
    runs = [r for r in records("noise") if r["optimizer"] == "adamw-stosign-antithetic"]
    by_lr: dict[float, list[float]] = {}
    for r in runs:
        by_lr.setdefault(r["lr"], []).append(r["held_out"][-1][1])
    means = {lr: statistics.mean(x) for lr, x in by_lr.items()}
    assert setting is curves.MAIN and len(means) == 3
    assert curve.lr == min(means, key=means.__getitem__) and curve.last == min(means.values())
    assert curve.points[-1][0] == pytest.approx(100_000_000) and curve.points[0][0] == 0
    assert curves.how_chosen(curve, made).endswith("0.0003, 0.001, 0.003 at this length")


def test_another_storage_or_rounding_is_another_optimizer() -> None:
    of = {s: set(curves.arms(build("adamw", state=s))) for s in ("fp8", "fp4", "fp32")}
    assert "adamw" in of["fp8"] and "adamw-fp4" in of["fp4"] and "adamw-fp32" in of["fp32"]
    assert not of["fp8"] & of["fp4"] and "adamw-raw" not in of["fp32"]
    assert "adamw-theirs" not in set().union(*of.values())


def test_a_curve_on_digits_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"lr": 0.01, "lrs": [[0.003, 0.2], [0.01, 0.1]], "runs": 3}
    row["held_out"] = [[16, 2.0], [32, 0.1]]
    monkeypatch.setattr(curves, "on_digits", lambda label: row)
    text = "".join(catalogue._loss(Entry("lamb")))
    assert "lr=0.01: 0.1000, mean of 3 runs; the best of lr 0.003, 0.01" in text and "<svg" in text


def test_what_was_never_run_has_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    made = build("lamb")
    assert curves.recorded(made) is None
    monkeypatch.setattr(curves, "on_digits", lambda label: None)
    assert "No training run" in "".join(catalogue._loss(Entry("lamb")))
    assert "runs_large.jsonl" in curves.elsewhere(build("adamw")) and not curves.elsewhere(made)


def test_the_end_of_a_range_is_called_so() -> None:
    curve = curves.Curve({}, None, 1e-4, (1e-4, 3e-4), 2, ((0.0, 5.0), (1e8, 0.7)))
    assert curves.how_chosen(curve, build("lion")).endswith(
        "0.0003 at this length, an end of that range"
    )


def test_runs_that_differ_in_clipping_are_two_curves() -> None:
    found = curves.curves(["adamw-ours", "adamw-noclip-ours"], curves.PAPERS)
    runs = {r["optimizer"] for r in records("papers")}
    assert len(found) == len(runs & {"adamw-ours", "adamw-noclip-ours"})
    assert any("clipped to norm 1" in curves.label(c) for c in found)


def test_runs_of_other_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "SETTINGS", ())
    monkeypatch.setattr(curves, "on_digits", lambda label: None)
    assert "runs_noise.jsonl" in "".join(catalogue._loss(Entry("adamw", "stosign")))


def test_an_lr_that_nothing_was_compared_with_is_said_to_be_so() -> None:
    curve = curves.Curve({"betas": (0.9, 0.999)}, None, 1e-3, (1e-3,), 2, ((0.0, 5.0), (1e8, 0.7)))
    assert "not known to be its best" in curves.how_chosen(curve, build("adamw"))


@pytest.mark.parametrize("function", paths.FUNCTIONS, ids=lambda f: f.name)
def test_paths_are_the_same_at_every_build(function: paths.Function) -> None:
    cls = paths.class_of("adamw_stosign")
    first, second = (paths.run(cls, function, 1e-2) for _ in range(2))
    assert first == second and len(first.points) == paths.STEPS + 1
    assert function.value(*function.minimum) == pytest.approx(0, abs=1e-9)
    assert first.last < function.value(*function.start)


def test_a_hessian_is_passed_where_one_is_asked_for() -> None:
    rosenbrock = paths.FUNCTIONS[0]
    found = paths.diagonal(rosenbrock, paths.torch.tensor([1.0, 1.0]))
    assert found.tolist() == pytest.approx([802.0, 200.0])
    run = paths.run(paths.class_of("sophia"), rosenbrock, 1e-2)
    assert run.last < rosenbrock.value(*rosenbrock.start)


def test_pictures_keep_their_labels_and_take_the_pages_colours() -> None:
    with figures.drawn("one", 'a "caption" < b') as picture:
        picture.axes.plot([0, 1.23456], [0, 1], color=figures.LINES[0], label="lr=0.00125")
        picture.axes.legend()
    made = picture.html
    assert "lr=0.00125" in made and "\n" not in made and "var(--figure-1)" in made
    assert not any(stand_in in made for stand_in in figures.COLOURS)
    assert "a &quot;caption&quot; &lt; b" in made and "<style" not in made
    colours = set(figures.COLOURS.values())
    style = (ROOT / "tools" / "site" / "site.css").read_text("utf-8")
    assert all(style.count(f"{c[4:-1]}:") == 2 for c in colours), "light and dark each have one"


def test_formulas_of_a_page_become_mathml() -> None:
    inline = formulas.in_page(r'<p>a <span class="arithmatex">\(x_{1} &lt; 2\)</span></p>')
    assert inline.startswith("<p>a <math") and "<msub>" in inline and "arithmatex" not in inline
    block = formulas.mathml(r"\begin{align*} \mathrm{rate}_{t} ={} & \eta \end{align*}", True)
    assert "<mi>rate</mi>" in block and 'class="right"' in block


def test_arguments_in_a_docstring_become_a_list() -> None:
    text = (
        "First.\n\nlow, high: the first\n    and the last\nsteps: how many\n\nAll: of it, or\nnot"
    )
    made = docstrings.markdown(text)
    assert "- `low`, `high`: the first\n    and the last\n- `steps`: how many" in made
    assert made.startswith("First.\n\n") and made.endswith("\n\nAll: of it, or\nnot")


def test_a_docstring_keeps_its_products_and_links_to_pages() -> None:
    made = docstrings.markdown("lr*w*p and ``*norm*`` (docs/using.md#in-and-out)\n\n    a*b")
    assert made == ("lr\\*w\\*p and ``*norm*`` ([using.md](../using.md#in-and-out))\n\n    a*b")


def test_text_is_shown_as_it_is() -> None:
    text = "abs(a_k)**q * c_k**(1 - q) < 1 | [x] `y` \\z"
    shown = markdown(catalogue.escaped(text))
    assert html.unescape(shown) == f"<p>{text}</p>"
    assert markdown(catalogue.escaped("of ``a_b``")) == "<p>of <code>a_b</code></p>"
