"""Which passes commute (docs/design.md#commutation), the canonical order, and what is refused.

Programs are compared by what their links are applied to, not by signs, which hide most
differences; the wrong orders are reached by applying the passes directly.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from signconv.errors import PassError
from signconv.ir.nodes import Program
from signconv.passes.base import parse, registry, transform
from signconv.pipeline import build
from tests.support import program_of
from tests.support.runs import OWN, converted, in_this_order, updates
from tests.support.symbols import same, unroll

LINKS = ("stosign", "expected", "sign")
ZERO_START = OWN + "MomentumFromZero"


def equal(a: Program, b: Program, **values: str) -> bool:
    """Whether their links are the same and have the same arguments over three steps."""
    steps = zip(unroll(a, 3, values), unroll(b, 3, values))
    return a.link == b.link and all(same(x.argument, y.argument) for x, y in steps)


#: spec, two passes, whether their order matters not.
TABLE = [
    *((spec, "presign", x, True) for spec in ("adamw", "sgd") for x in ("nesterov", *LINKS)),
    *((spec, "presign", f"soft:p={p}", True) for spec in ("adamw", "sgd") for p in (1, 2, 3)),
    *((spec, "nesterov", "sign", True) for spec in ("adamw", "sgd", "adamax")),
    *((spec, "nesterov", x, True) for spec in ("adamw", "adamax") for x in LINKS[:2]),
    *((spec, "nesterov", x, False) for spec in ("sgd", ZERO_START) for x in LINKS[:2]),
]


@pytest.mark.parametrize(("spec", "a", "b", "commute"), TABLE)
def test_table(spec: str, a: str, b: str, commute: bool) -> None:
    one, two = in_this_order(spec, a, b), in_this_order(spec, b, a)
    assert equal(one, two) is commute


@pytest.mark.parametrize("link", LINKS)
def test_soft_after_a_link_is_refused(link: str) -> None:
    """They commute up to a moment nobody reads; the pass refuses instead of leaving it."""
    with pytest.raises(PassError, match=f"needs a ratio m/sigma; AdamW has the link {link}"):
        in_this_order("adamw", link, "soft:p=2")


@pytest.mark.parametrize(("spec", "alike"), [("sgd", True), ("adamw", False)])
def test_sign_then_stosign_forgets_the_denominator(spec: str, alike: bool) -> None:
    """Equal to stosign alone only where there was no denominator to lose."""
    both = in_this_order(spec, "sign", "stosign")
    assert both.moments[-1].name == "G"
    assert equal(both, converted(spec, "stosign")) is alike


def test_soft_q_after_soft_p_is_soft_q() -> None:
    twice = in_this_order("adamw", "soft:p=2", "soft:p=3")
    names = {h.name: "b" for h in twice.hypers if "beta" in h.name}
    once = converted("adamw", "soft:p=3")
    assert len(twice.moments) == 2
    assert all(
        same(x.argument, y.argument)
        for x, y in zip(unroll(twice, 3, names), unroll(once, 3, {"beta": "b"}))
    )


# ---------------------------------------------------------------- what the wrong order costs


LAGGING = """
beta = hyper(0.95, ge=0, lt=1)
m = ema(grad, beta)
s = moment(abs(grad), order={p}, beta=beta)
numerator = beta * m + (1 - beta) * grad
denominator = root(s, {p})
"""


@pytest.mark.parametrize(("p", "largest"), [(1, 1.95), (2, 1.0235), (3, 1.0105)])
def test_soft_of_nesterov_would_break_the_bound(p: int, largest: float, tmp_path: Path) -> None:
    """s would lag one step behind the numerator: 1 + b for p = 1; the right order gives 1.

    The pass refuses that order, so what it would make is written here.
    """
    for spec in ("sgd", "adamw"):
        with pytest.raises(PassError, match="looks ahead already: soft comes first"):
            in_this_order(spec, "nesterov", f"soft:p={p}")
    b, k = 0.95, np.arange(400)
    ahead, behind = (1 - b) * b ** (k + 1), (1 - b) * b**k
    ahead[0] = 1 - b * b
    power = 1 / (p - 1) if p > 1 else 40.0  # p = 1: all weight on the best ratio
    grads = list(((ahead / behind) ** power)[::-1, None])
    got = updates(program_of(tmp_path, LAGGING.format(p=p)), grads, beta=b)[-1][0]
    assert got == pytest.approx(largest, abs=1e-4)
    assert abs(updates(converted("sgd", f"soft:p={p},nesterov"), grads, beta=b)[-1][0]) <= 1


def test_nesterov_after_stosign_escapes_its_maximum() -> None:
    """G bounds m, the update uses n: sup |n|/G = 1 + 2b, where the momentum turns over."""
    b = 0.9
    grads = [np.array([-1.0]), np.array([(1 + b) / (1 - b)])]
    wrong = updates(in_this_order("sgd", "stosign", "nesterov"), grads, momentum=b)
    right = updates(converted("sgd", "nesterov,stosign"), grads, momentum=b)
    assert wrong[-1][0] == pytest.approx(1 + 2 * b, abs=1e-12)
    assert abs(right[-1][0]) <= 1


# ---------------------------------------------------------------- the canonical order

ALL = ("presign", "soft:p=2", "nesterov", "stosign")


def test_canonical_order_whatever_order_is_typed() -> None:
    wanted = build("adamw", convert=",".join(ALL), state="fp32")
    assert wanted.program.history == ALL
    for order in permutations(ALL):
        made = build("adamw", convert=",".join(order), state="fp32")
        assert (made.program, made.module) == (wanted.program, wanted.module)


@pytest.mark.parametrize("link", LINKS)
def test_canonical_order_with_every_link(link: str) -> None:
    a = build("adamw", convert=f"{link},nesterov,soft:p=2")
    b = build("adamw", convert=f"soft:p=2,nesterov,{link}")
    assert a.module == b.module
    assert a.program.history == ("soft:p=2", "nesterov", link)


def test_registry_is_in_canonical_order() -> None:
    places = [("presign", 0), ("soft", 1), ("nesterov", 2), *((x, 3) for x in LINKS)]
    orders = [registry()[name].order for name, _ in places]
    assert [sorted(set(orders)).index(x) for x in orders] == [place for _, place in places]


# ---------------------------------------------------------------- refusals

REFUSED = {
    **{f"{a},{b}": "exclude each other" for a in LINKS for b in LINKS if a != b},
    **{f"{x},{x}": "asked for twice" for x in ("presign", "nesterov", *LINKS)},
    "soft:p=2,soft:p=2": "asked for twice",
    "soft:p=2,soft:p=3": "asked for twice",
    "nesterov,soft:p=2,nesterov": "'nesterov' is asked for twice; it applies once",
    "soft": "soft needs its order: soft:p=3",
    "soft:p=two": "not a number",
    "soft:p=0": "the order is a number 1 <= p <= 8",
    "soft:p=0.5": "the order is a number 1 <= p <= 8",
    "soft:p=nan": "the order is a number",
    "soft:p=inf": "the order is a number",
    "soft:p=99": "the order is a number",
    "nesterov:a=0.5": "no option 'a=0.5'",
}


@pytest.mark.parametrize("convert", REFUSED)
def test_refused(convert: str) -> None:
    with pytest.raises(PassError, match=REFUSED[convert]):
        build("adamw", convert=convert)


@pytest.mark.parametrize(
    ("spec", "convert", "message"),
    [
        ("signsgd", "nesterov", "reads none"),
        ("lion", "nesterov", "reads none"),
        ("rmsprop", "nesterov", "reads none"),
        ("rmsprop", "soft:p=2", "reads one EMA; RMSprop's reads no moment"),
        ("adan", "soft:p=2", "reads one EMA; Adan's reads d, m"),
        ("s3", "soft:p=3", "an EMA and nothing else.*S3's is beta . m.*looks ahead already"),
        (
            "s3",
            "nesterov",
            "looks ahead already: it adds g, the newest input of m.* twice",
        ),
        ("nadam", "nesterov", "look ahead twice"),
        ("adan", "nesterov", "d averages the change of the gradient.* twice"),
        ("signum", "soft:p=2", "has the link sign"),
        ("signum", "sign", "has the link sign already"),
        ("stosignsgd", "stosign", "already has the link stosign"),
        ("stosignsgd", "expected", "already has the link stosign"),
        ("s3gd", "presign", "reads sign"),
    ],
)
def test_does_not_apply(spec: str, convert: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        build(spec, convert=convert)


@pytest.mark.parametrize("name", ["presign", "nesterov", *LINKS])
def test_twice_by_hand_is_refused_too(name: str) -> None:
    once = transform(converted("adamw"), parse(name))
    with pytest.raises(PassError):
        transform(once, parse(name))
