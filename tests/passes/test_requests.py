"""What may be asked of the passes: names, company, and the built-ins that a pass refuses."""

from dataclasses import replace

import pytest

from signconv.errors import PassError
from signconv.passes import base
from signconv.passes.base import Request, canonical, parse, registry, transform
from signconv.pipeline import build
from tests.support.runs import converted

LINKS = [p.name for p in registry().values() if p.group == "link"]
POINTS = [p.name for p in registry().values() if p.group == "point"]

REFUSED = {
    "stosing": "unknown pass 'stosing'; did you mean 'stosign'",
    "stosign,": "unknown pass ''",
    **{f"{a},{b}": "exclude each other" for a in LINKS for b in LINKS if a != b},
    **{f"{a},{b}": "each decides what is kept" for a in POINTS for b in POINTS if a != b},
    **{f"{x},{x}": "asked for twice" for x in ("presign", "nesterov", *LINKS)},
    "nesterov,soft:p=2,nesterov": "'nesterov' is asked for twice; it applies once",
}


@pytest.mark.parametrize("convert", REFUSED)
def test_refused(convert: str) -> None:
    with pytest.raises(PassError, match=REFUSED[convert]):
        build("adamw", convert=convert)


def test_no_pass_is_no_refusal() -> None:
    assert build("adamw", convert="").module == build("adamw").module


def test_a_link_of_tomorrow_excludes_those_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    made = registry()
    made["other"] = replace(made["stosign"], name="other", order=41)
    monkeypatch.setattr(base, "registry", lambda: made)
    with pytest.raises(PassError, match="'other' and 'stosign' exclude each other"):
        canonical([Request("other"), Request("stosign")])


def test_a_group_of_tomorrow_excludes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made = registry()
    made |= {n: replace(made["clip"], name=n, group="own") for n in ("one", "other")}
    monkeypatch.setattr(base, "registry", lambda: made)
    with pytest.raises(PassError, match="'one' and 'other' exclude each other: each decides the"):
        canonical([Request("one"), Request("other")])


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
        ("signum", "cautious", "Signum's update is a sign"),
        ("rmsprop", "cautious", "the gradient, which nothing opposes"),
        ("lion", "schedulefree", "is no function of the gradient of one step"),
        ("adan", "schedulefree", "is no function of the gradient of one step"),
        ("schedulefree_adamw", "lookahead", "keeps a second point beside its parameters already"),
        ("adamw", "lookahead:k=0", "not a whole number from 1"),
        ("adamw", "ema:beta=1", "not a number 0 < beta < 1"),
        ("adamw", "schedulefree:beta=1.5", "not a number 0 < beta <= 1"),
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
