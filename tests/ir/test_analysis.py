"""What is proved of expressions: degree in the gradient, sign, order of evaluation."""

from pathlib import Path

import pytest

from signconv.ir.analysis import Degrees, Ranges, evaluation_order, unread
from tests.support import program_of

HYPERS = """\
beta = hyper(0.9, ge=0, lt=1)
closed = hyper(0.9, ge=0, le=1)
loose = hyper(0.9)
positive = hyper(0.5, gt=0)
"""
ANY = Degrees.ANY

#: Input of one moment `q`, its degree (None: none), and whether q >= 0 is proved.
MOMENTS = {
    "ema(grad, beta)": (1, False),
    "ema(grad**2, beta)": (2, True),
    "ema(grad*grad, beta)": (2, True),
    "ema(grad*(2*grad), beta)": (2, False),
    "ema(abs(grad), beta)": (1, True),
    "ema(abs(grad)**3, beta)": (3, True),
    "ema(grad**3, beta)": (3, False),
    "moment(grad, order=4, beta=beta)": (4, True),
    "max_ema(abs(grad))": (1, True),
    "max_ema(grad**2, beta)": (2, True),
    "ema(sign(grad), beta)": (0, False),
    "ema(abs(sign(grad)), beta)": (0, True),
    "ema(grad + param, beta)": (None, False),
    "ema(param**2, beta)": (None, True),
    "ema(grad + 1, beta)": (None, False),
    "ema(grad + 0, beta)": (1, False),
    "ema(3 * grad, beta)": (1, False),
    "ema(grad / 3, beta)": (1, False),
    "ema(grad**2 / abs(grad), beta)": (1, True),
    "ema(sqrt(grad**2), beta)": (1, True),
    "ema(root(abs(grad)**3, 3), beta)": (1, True),
    "ema(max(grad, 0), beta)": (1, False),  # could be -0: max(-0, 0) is settled, grad alone is not
    "ema(max(abs(grad), 0), beta)": (1, True),
    "ema(max(grad, 1), beta)": (None, False),
    "ema(min(abs(grad), grad**2), beta)": (None, True),
    "ema(clip(grad, -1, 1), beta)": (None, False),
    "ema(where(grad > 0, grad, 0), beta)": (1, False),
    "ema(where(grad > 0, grad**2, abs(grad)), beta)": (None, True),
    "ema(where(grad > 1, grad, 0), beta)": (None, False),
    "ema(-grad, beta)": (1, False),
    "ema(grad - grad, beta)": (1, False),
    "ema(exp(grad), beta)": (None, True),
    "ema(grad * beta**t, beta)": (1, False),
    "ema(grad**2 * (1 - beta**t), beta)": (2, True),
    "ema(grad**2 * (1 - loose**t), beta)": (2, False),
    "ema(grad**2 * positive, beta)": (2, True),
    "ema(grad**2 * loose, beta)": (2, False),
    # the weights of the average matter too
    "ema(grad**2, closed)": (2, True),
    "ema(grad**2, loose)": (2, False),
    "ema(grad**2, 1 - beta)": (2, True),
    "ema(grad**2, beta * closed)": (2, True),
    "max_ema(abs(grad), positive)": (1, True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_degree_and_sign_of_a_moment(moment: str, tmp_path: Path) -> None:
    used = [line for line in HYPERS.splitlines() if line.split()[0] in moment]
    p = program_of(tmp_path, "\n".join([*used, f"q = {moment}", "numerator = grad + q"]))
    degree, nonneg = MOMENTS[moment]
    assert Degrees(p).moments["q"] == degree
    assert ("q" in Ranges(p).nonneg_moments) is nonneg


#: Body with a state `q`, its degree, and whether q >= 0 is proved.
STATES = {
    "q = state()\nq.next = q.prev + grad**2": (2, True),
    "q = state()\nq.next = q.prev + grad": (1, False),
    "q = state(init=1)\nq.next = q.prev + grad**2": (None, True),
    "q = state(init=1)\nq.next = q.prev * 0.5": (0, True),
    "q = state(init=-1)\nq.next = abs(q.prev)": (0, False),
    "q = state(init=param)\nq.next = 0.5*q.prev + grad": (None, False),
    "q = state()\nq.next = q.prev": (ANY, True),
    "q = state()\nq.next = max(q.prev, abs(grad))": (1, True),
    "q = state()\nr = state()\nq.next = r.prev + grad**2\nr.next = q.prev": (2, True),
    "q = state()\nr = state()\nq.next = r.prev + grad**2\nr.next = q.prev - grad**2": (2, False),
    "q = state()\nr = ema(grad, 0.9)\nq.next = r**2": (2, True),
}


@pytest.mark.parametrize("body", STATES)
def test_degree_and_sign_of_a_state(body: str, tmp_path: Path) -> None:
    p = program_of(tmp_path, f"{body}\nnumerator = grad + q")
    degree, nonneg = STATES[body]
    assert Degrees(p).moments["q"] == degree
    assert ("q" in Ranges(p).nonneg_moments) is nonneg


@pytest.mark.parametrize(
    ("update", "degree"),
    [
        ("m.corrected / (sqrt(v.corrected) + 1e-8)", None),
        ("m.corrected / sqrt(v.corrected)", 0),
        ("c / sqrt(v)", 0),
        ("c", 1),
        ("sign(c)", 0),
        ("sign(c + 1)", None),
    ],
)
def test_degree_of_an_update(update: str, degree: object, tmp_path: Path) -> None:
    body = "m = ema(grad, 0.9)\nv = ema(grad**2, 0.99)\nc = m.prev + grad\n"
    p = program_of(tmp_path, f"{body}denominator = 1 + v + abs(c) + m**2\nnumerator = {update}")
    assert Degrees(p).of(p.numerator) == degree


@pytest.mark.parametrize(
    ("scalar", "positive", "at_most_one"),
    [
        ("beta", False, True),
        ("loose", False, False),
        ("positive", True, False),
        ("1 - beta", True, True),
        ("1 - closed", False, True),
        ("1 - beta**t", True, True),
        ("1 - closed**t", False, True),
        ("1 - loose**t", False, False),
        ("positive * 2", True, False),
        ("positive + beta", True, False),
        ("t", True, False),
        ("sqrt(positive) / t", True, False),
        ("0.5", True, True),
        ("0.0", False, True),
        # exponents: negative ones, and those that are negative at first or by choice
        ("beta**(0 - t)", False, False),
        ("1 - beta**(0 - t)", False, True),
        ("1 - beta**(t - 3)", False, True),
        ("1 - beta**(0.5*t - 3)", False, True),
        ("1 - beta**loose", False, True),
        ("1 - beta**positive", True, True),
        ("1 - beta**closed", False, True),
        ("positive**2", True, False),
        ("positive**400", False, False),
    ],
)
def test_sign_and_size_of_scalars(
    scalar: str, positive: bool, at_most_one: bool, tmp_path: Path
) -> None:
    used = [line for line in HYPERS.splitlines() if line.split()[0] in scalar]
    p = program_of(tmp_path, "\n".join([*used, f"numerator = grad * ({scalar})"]))
    e = p.numerator.args[1]
    assert Ranges(p).positive(e) is positive
    assert Ranges(p).at_most_one(e) is at_most_one


@pytest.mark.parametrize(
    ("body", "order"),
    [
        ("a = ema(grad, 0.9)\nb = ema(a, 0.9)\nnumerator = b", "a b"),
        # as written where nothing forces another order
        ("b = ema(grad, 0.9)\na = ema(grad, 0.8)\nnumerator = a + b", "b a"),
        # .prev is no dependence, the new value is
        ("b = state()\na = ema(grad, 0.9)\nb.next = a.prev + grad\nnumerator = a + b", "b a"),
        ("b = state()\na = ema(grad, 0.9)\nb.next = a + grad\nnumerator = a + b", "a b"),
        ("b = state()\nc = grad*2\nb.next = c\nd = b + c\nnumerator = d", "c b d"),
        # moments that read each other's last value
        ("a, b = state(), state()\na.next = b.prev+grad\nb.next = a.prev\nnumerator=a+b", "a b"),
    ],
)
def test_evaluation_order(body: str, order: str, tmp_path: Path) -> None:
    p = program_of(tmp_path, body)
    assert [x.name for x in evaluation_order(p)] == order.split()


def test_unread_sees_through_chains(tmp_path: Path) -> None:
    p = program_of(tmp_path, "a = ema(grad, 0.9)\nb = ema(a, 0.9)\nc = b * 2\nnumerator = c")
    assert unread(p, ["a", "b", "c", "lr"]) == ["lr"]
