"""The float64 evaluator against torch.optim, and against recurrences written out by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from signconv.errors import LoweringError
from signconv.ir.evaluate import Evaluator
from signconv.pipeline import builtin_names, resolve
from signconv.verification.oracles import ORACLES
from signconv.verification.witnesses import gradients, oracle_row
from tests.support import program_of

STEPS = 100
RNG = np.random.default_rng(0)


def test_oracles_are_of_builtins() -> None:
    assert {"adamax", "adamw", "lion", "rmsprop", "sgd"} <= set(ORACLES) <= set(builtin_names())


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_evaluator_follows_the_oracle(name: str) -> None:
    """AdamW and Lion with weight decay, the others without; AdaMax at eps = 0."""
    row = oracle_row(name, resolve(name), STEPS)
    assert row.ok, row.detail


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_oracle_really_decays(name: str) -> None:
    """An oracle that ignored weight decay would agree with a spec that does."""
    p, grads = np.ones(8), [np.zeros(8)] * 3
    moved = ORACLES[name].run(p, grads, 0.1)
    assert np.allclose(moved, 0.99**3, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_oracle_and_evaluator_move(name: str) -> None:
    """1e-12 apart means something only where the path is long."""
    start, grads = np.zeros(512), [g + 1e-9 for g in gradients(np.random.default_rng(1), STEPS)]
    end = ORACLES[name].run(start, grads, 1e-2)
    assert np.median(np.abs(end)) > 1e-3


# ---------------------------------------------------------------- by hand, element by element

Step = Callable[[float, float, dict[str, float], int], float]


def first_ema(p: float, g: float, s: dict[str, float], t: int) -> float:
    s["m"] = g if t == 1 else 0.9 * s["m"] + 0.1 * g
    return s["m"]


def third_moment(p: float, g: float, s: dict[str, float], t: int) -> float:
    s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * abs(g) ** 3
    return s["m"]


def second_moment_corrected(p: float, g: float, s: dict[str, float], t: int) -> float:
    s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g * g
    return s["m"] / (1 - 0.9**t)


def from_three(p: float, g: float, s: dict[str, float], t: int) -> float:
    s["m"] = 0.5 * s.get("m", 3.0) + g
    return s["m"]


def from_param(p: float, g: float, s: dict[str, float], t: int) -> float:
    s["m"] = 0.5 * s.get("m", p) + 0.25 * p + g
    return s["m"]


def lagged(p: float, g: float, s: dict[str, float], t: int) -> float:
    before = s.get("m", 0.0)
    s["m"] = 0.9 * before + 0.1 * g
    return 2.0 * before + g


def crossed(p: float, g: float, s: dict[str, float], t: int) -> float:
    a, b = s.get("a", 0.0), s.get("b", 1.0)
    s["a"], s["b"] = b + g, a - g
    return s["a"] + s["b"]


def running_max(p: float, g: float, s: dict[str, float], t: int) -> float:
    s["u"] = max(0.5 * s.get("u", 0.0), abs(g))
    return g / s["u"] if s["u"] else 0.0


def every_third(p: float, g: float, s: dict[str, float], t: int) -> float:
    s["m"] = g if t % 3 == 0 else s.get("m", 0.0)
    return s["m"]


def warmed(p: float, g: float, s: dict[str, float], t: int) -> float:
    return g * (1 - 0.9**t)


def sgn(x: float) -> int:
    return int(x > 0) - int(x < 0)


HAND: dict[str, tuple[str, Step]] = {
    "ema from the first": ("m = ema(grad, 0.9, init='first')\nnumerator = m", first_ema),
    "moment of order 3": ("m = moment(grad, order=3, beta=0.9)\nnumerator = m", third_moment),
    "moment of order 2, corrected": (
        "m = moment(grad, order=2, beta=0.9)\nnumerator = m.corrected",
        second_moment_corrected,
    ),
    "moment of order 1 is the ema": (
        "m = moment(grad, order=1, beta=0.9, init='first')\nnumerator = m",
        first_ema,
    ),
    "state from a constant": (
        "m = state(init=3)\nm.next = 0.5*m.prev + grad\nnumerator = m",
        from_three,
    ),
    "state from the parameter": (
        "m = state(init=param)\nm.next = 0.5*m.prev + 0.25*param + grad\nnumerator = m",
        from_param,
    ),
    "prev is last step's": ("m = ema(grad, 0.9)\nnumerator = 2*m.prev + grad", lagged),
    "states read each other's prev": (
        "a, b = state(), state(init=1)\na.next = b.prev + grad\nb.next = a.prev - grad\n"
        "numerator = a + b",
        crossed,
    ),
    "decayed maximum, 0/0 is 0": (
        "u = max_ema(abs(grad), 0.5)\nnumerator = grad\ndenominator = u",
        running_max,
    ),
    "t % k": (
        "m = state()\nm.next = where(t % 3 == 0, grad, m.prev)\nnumerator = m",
        every_third,
    ),
    "beta**t": ("warm = 1 - 0.9**t\nnumerator = grad * warm", warmed),
    "where": (
        "numerator = where(grad > 0.5, 2*grad, -1)",
        lambda p, g, s, t: 2 * g if g > 0.5 else -1.0,
    ),
    "clip": ("numerator = clip(grad, -0.25, 0.5)", lambda p, g, s, t: min(max(g, -0.25), 0.5)),
    "max, min, abs, sign": (
        "numerator = max(grad, 0.1) + min(grad, -0.1) + abs(grad) * sign(grad)",
        lambda p, g, s, t: max(g, 0.1) + min(g, -0.1) + abs(g) * sgn(g),
    ),
    "root": ("numerator = root(abs(grad), 3)", lambda p, g, s, t: abs(g) ** (1 / 3)),
    "sign as update": ("update = sign(grad - 0.2)", lambda p, g, s, t: sgn(g - 0.2)),
    "param": ("numerator = grad + 0.5 * param", lambda p, g, s, t: g + 0.5 * p),
}


@pytest.mark.parametrize("case", HAND)
def test_recurrence_by_hand(case: str, tmp_path: Path) -> None:
    body, step = HAND[case]
    evaluator = Evaluator(program_of(tmp_path, body), lr=0.1)
    start = np.array([1.0, -2.0, 0.0, 0.5])
    grads = np.random.default_rng(4).standard_normal((9, 4))
    grads[:, 2] = 0.0
    p, state = start.copy(), evaluator.initial_state(start)
    for t, g in enumerate(grads, 1):
        p, state = evaluator.step(p, g, state, t)
    for i in range(len(start)):
        x, memory = start[i], {}
        for t, g in enumerate(grads[:, i], 1):
            x -= 0.1 * step(x, g, memory, t)
        assert p[i] == pytest.approx(x, rel=0, abs=1e-13)
        for name, value in memory.items():
            assert state[name][i] == pytest.approx(value, rel=0, abs=1e-13)


DECAYS = {
    "none": ("", lambda p, g, lr: p - lr * g),
    "l2": ("decay = l2(wd)", lambda p, g, lr: p - lr * (g + 0.3 * p)),
    "decoupled": ("decay = decoupled(wd)", lambda p, g, lr: p - lr * g - lr * 0.3 * p),
    "independent": ("decay = independent(wd)", lambda p, g, lr: p - lr * g - lr / 0.1 * 0.3 * p),
}


@pytest.mark.parametrize("kind", DECAYS)
def test_weight_decay_by_hand(kind: str, tmp_path: Path) -> None:
    """At the initial lr, and after a schedule halved it."""
    line, step = DECAYS[kind]
    head = "wd = hyper(0.3, ge=0)\n" if line else ""
    evaluator = Evaluator(program_of(tmp_path, f"{head}numerator = grad\n{line}"), lr=0.1)
    p = np.array([1.0, -2.0])
    for t, lr in ((1, 0.1), (2, 0.05)):
        evaluator.hypers["lr"] = lr
        g = np.array([0.5, 0.25])
        after, _ = evaluator.step(p, g, {}, t)
        assert after == pytest.approx(step(p, g, lr), rel=0, abs=1e-15)
        p = after


def test_l2_decay_enters_the_moments(tmp_path: Path) -> None:
    body = "wd = hyper(0.5)\nm = ema(grad, 0.5)\nnumerator = m\ndecay = l2(wd)"
    evaluator = Evaluator(program_of(tmp_path, body), lr=1.0)
    p, state = np.array([2.0]), {"m": np.array([0.0])}
    p, state = evaluator.step(p, np.array([1.0]), state, 1)
    assert state["m"] == [1.0]  # (1 + 0.5 * 2) / 2
    assert p == [1.0]


def test_weight_of_the_decay_reads_names_and_scalar_states(tmp_path: Path) -> None:
    """Decay begins in step 3 and halves with each step, as the compiled optimizer's does."""
    body = "c = state(1)\nc.next = c.prev / 2\nn = t + 1\nnumerator = grad * n\n"
    body += "decay = decoupled(where(n > 3, c, 0))"
    evaluator = Evaluator(program_of(tmp_path, body), lr=1.0)
    p, state = np.array([1.0]), {"c": np.array([1.0])}
    for t, expected in ((1, 1.0), (2, 1.0), (3, 1 - 1 / 8), (4, (1 - 1 / 8) * (1 - 1 / 16))):
        p, state = evaluator.step(p, np.array([0.0]), state, t)
        assert p == [expected]


@pytest.mark.parametrize("reduction", ["sum", "mean", "norm"])
def test_an_extra_input_that_is_not_passed_has_all_elements(reduction: str, tmp_path: Path) -> None:
    """A sum over a row counts them, whether they were passed or not."""
    body = (
        f"x = extra(per='element')\nnumerator = grad * {reduction}(where(given(x), x, 1), axis=-1)"
    )
    evaluator = Evaluator(program_of(tmp_path, body), lr=1.0)
    p, g = np.zeros((2, 9)), np.ones((2, 9))
    without, _ = evaluator.step(p, g, {}, 1)
    of_ones, _ = evaluator.step(p, g, {}, 1, extras={"x": np.ones((2, 9))})
    assert (without == of_ones).all()
    assert (without == -{"sum": 9.0, "mean": 1.0, "norm": 3.0}[reduction]).all()


def test_nothing_is_changed_in_place(tmp_path: Path) -> None:
    evaluator = Evaluator(resolve("adamw"))
    p, g = np.ones(3), np.full(3, 0.5)
    state = evaluator.initial_state(p)
    evaluator.step(p, g, state, 1)
    assert (p == 1).all() and (g == 0.5).all() and all((x == 0).all() for x in state.values())


def test_unknown_hyperparameter_and_missing_draw(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="no hyperparameter 'momentum'"):
        Evaluator(resolve("adamw"), momentum=0.9)
