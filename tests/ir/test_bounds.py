"""Bounds between moments: for which betas there is one, and that it holds whatever betas do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from signconv.ir.bounds import Ties, moment_bounds
from signconv.ir.evaluate import Evaluator
from signconv.ir.nodes import GRAD, PARAM, Op, Ref, add, mul, sub, walk
from signconv.pipeline import build
from tests.support import built_class, program_of, spec_file
from tests.support.runs import converted

HYPERS = "b1, b2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)\n"
SHAPES = {
    "p 2": ("ema(grad, b1)", "ema(grad**2, b2)", "sqrt(v)"),
    "p 1": ("ema(grad, b1)", "ema(abs(grad), b2)", "v"),
    "p 3": ("ema(grad, b1)", "ema(abs(grad)**3, b2)", "root(v, 3)"),
    "maximum": ("ema(grad, b1)", "max_ema(abs(grad), b2)", "v"),
}


def body(shape: str, hypers: str = HYPERS) -> str:
    m, v, below = SHAPES[shape]
    return f"{hypers}m, v = {m}, {v}\nnumerator = m\ndenominator = {below}"


@pytest.mark.parametrize(
    ("b1", "b2", "bounded"),
    [
        ("b1", "b2", True),
        ("1 - b1", "b2", True),
        ("0.9", "0.99", True),
        ("b1", "1 - 1 / t", False),
        ("b1", "where(t % 2 == 0, 0.99, 0.5)", False),
        ("b1**t", "b2", False),
        ("b1", "b2**(0 - 1)", False),
        ("k", "b2", False),
        ("later", "b2", False),
        ("loose", "b2", False),
        ("b1", "2 * b2", False),
    ],
)
def test_which_betas_have_a_bound(b1: str, b2: str, bounded: bool, tmp_path: Path) -> None:
    """Those between 0 and 1 that no step, state or name changes."""
    lines = {
        "loose": "loose = hyper(0.5)\n",
        "k": "k = state(init=0.5)\nk.next = 0.5 * k.prev + 0.25\n",
        "later": "later = 0.5 * b1 / t\n",
    }
    hypers = "".join(
        f"{n} = hyper({x}, ge=0, lt=1)\n"
        for n, x in (("b1", 0.9), ("b2", 0.99))
        if n in b1 + b2 + lines.get(b1, "")
    )
    p = program_of(
        tmp_path,
        f"{hypers}{lines.get(b1, '')}m, v = ema(grad, {b1}), ema(grad**2, {b2})\n"
        "numerator = m\ndenominator = sqrt(v)",
    )
    assert bool(list(moment_bounds(p))) is bounded


@pytest.mark.parametrize("shape", SHAPES)
def test_the_smallest_floor_so_far_holds_for_any_sequence_of_betas(
    shape: str, tmp_path: Path
) -> None:
    """Every step draws its betas and its gradients; the floor of the present betas alone fails."""
    p = program_of(tmp_path, body(shape))
    (bound,) = moment_bounds(p)
    alone, so_far = 0.0, 0.0
    rng = np.random.default_rng(3)
    size = 400
    ev = Evaluator(p)
    x, state = np.zeros(size), ev.initial_state(np.zeros(size))
    lowest = np.full(size, np.inf)
    kept = rng.uniform(0.5, 1, size)  # some runs change their betas seldom
    for t in range(1, 200):
        change = rng.uniform(size=size) > kept if t > 1 else np.ones(size, bool)
        low = np.where(rng.uniform(size=size) < 0.3, 0.0, rng.uniform(0, 0.98, size))
        high = low + (1 - low) * rng.uniform(0.001, 0.999, size)
        for name, value in (("b1", low), ("b2", high)):
            ev.hypers[name] = np.where(change, value, ev.hypers[name])
        g = rng.standard_normal(size) * np.exp(2 * rng.standard_normal(size))
        g = np.where(rng.uniform(size=size) < 0.3, 0.0, g)
        x, state = ev.step(x, g, state, t)
        floor = floor_of(ev, bound.floor)
        lowest = np.minimum(lowest, floor)
        needed = np.abs(state["m"]) ** bound.order
        sound = state["v"] > 1e-250
        share = np.where(sound, needed / np.where(sound, state["v"], 1), 0)
        so_far = max(so_far, float(np.max(lowest * share)))
        alone = max(alone, float(np.max(floor * share)))
    assert so_far <= 1 + 1e-9
    assert alone > 1.2


def floor_of(ev: Evaluator, e):
    """A floor at each element's betas."""
    from signconv.ir.evaluate import _Scope

    with np.errstate(all="ignore"):
        return np.nan_to_num(_Scope(ev, np.zeros(1), np.zeros(1), {}, 1)(e))


def test_a_user_who_changes_betas_keeps_the_stored_moment(tmp_path: Path) -> None:
    """fp32 state without eps, where the floor stands: betas go from (0, 0.999) to (0.99, 0.999),
    whose own floor is far above what was averaged with the first."""
    cls = built_class(tmp_path, body("p 2"), state="fp32")
    assert cls.program.floors == ("v_floor",)
    p = torch.zeros(64, requires_grad=True)
    optimizer = cls([p], lr=1e-3, b1=0.0, b2=0.999, backend="reference")
    v, m = np.zeros(64), np.zeros(64)
    rng = torch.Generator().manual_seed(1)
    for t in range(40):
        b1 = 0.0 if t < 20 else 0.99
        optimizer.param_groups[0]["b1"] = b1
        p.grad = torch.randn(64, generator=rng) * (10.0 if t == 19 else 1e-3)
        optimizer.step()
        g = p.grad.double().numpy()
        m, v = b1 * m + (1 - b1) * g, 0.999 * v + 0.001 * g * g
        assert np.abs(optimizer.state[p]["v"].double().numpy() / v - 1).max() < 1e-4
    assert float(optimizer.state[p]["v_floor"]) == pytest.approx(0.001)


def test_constant_betas_have_no_state_of_floors(tmp_path: Path) -> None:
    made = build(spec_file(tmp_path, body("p 2").replace(HYPERS, "b1, b2 = 0.9, 0.99\n")).spec)
    assert made.kernel.floors == () and made.kernel.scalar_states == ()


# ---------------------------------------------------------------- ratios that stay away from x/0


@pytest.mark.parametrize(
    ("spec", "convert", "wanted"),
    [
        *((spec, None, True) for spec in ("adam", "adamw", "amsgrad", "nadam", "rmsprop", "s3")),
        ("adamw", "soft:p=4,nesterov", True),
        ("adabelief", None, False),  # its average is of (g - m)**2, which a constant g makes 0
        ("adan", None, False),  # no bound between its moments is kept
    ],
)
def test_ratios_whose_recurrences_tie_them(spec: str, convert: str | None, wanted: bool) -> None:
    p = converted(spec, convert)
    assert p.denominator is not None
    roots = [n for n in walk(p.denominator) if isinstance(n, Op) and n.fn in ("sqrt", "root")]
    orders = [2 if n.fn == "sqrt" else n.args[1].value for n in roots]
    ties = Ties(p)
    found = [ties(p.numerator, n.args[0], order) for n, order in zip(roots, orders, strict=True)]
    assert found == [wanted]


def test_an_average_whose_beta_may_be_one_ties_nothing(tmp_path: Path) -> None:
    """At 1 it stays 0 whatever the gradient is."""
    for end, wanted in (("lt", True), ("le", False)):
        text = f"b = hyper(0.9, ge=0, {end}=1)\nv = ema(grad**2, b)\nnumerator = grad\n"
        p = program_of(tmp_path, text + "denominator = sqrt(v)")
        assert Ties(p)(GRAD, Ref("value", "v"), 2) is wanted


def test_what_is_not_tied() -> None:
    """Another degree above or below, a moment that nothing keeps, a square of what may be 0."""
    p = converted("adamw", None)
    ties, m, v = Ties(p), Ref("value", "m"), Ref("value", "v")
    assert ties(m, v, 2) and ties(GRAD, v, 2) and ties(add(m, GRAD), mul(Ref("hyper", "eps"), v), 2)
    assert not ties(m, v, 3)
    assert not ties(v, v, 2)
    assert not ties(mul(m, GRAD), v, 2)
    assert not ties(m, mul(m, m), 2)
    assert not ties(PARAM, v, 2)
    assert not ties(m, sub(v, mul(m, m)), 2)
