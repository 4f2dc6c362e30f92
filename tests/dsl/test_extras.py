"""What a spec may say of extra inputs, and what follows from it before any step is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from signconv.errors import LoweringError, PassError, SpecError
from signconv.ir.analysis import Degrees, Ranges
from signconv.ir.describe import remarks
from signconv.ir.drawn import drawn
from signconv.ir.evaluate import Evaluator
from signconv.ir.extras import needed, reads_extra
from signconv.lower.identity import program_hash
from signconv.pipeline import apply_passes, build, requests_of, resolve
from signconv.prove.proofs import prove
from signconv.verification.witnesses import reference_row
from tests.support import class_of, program_of, spec_file

H = 'h = extra(per="element")\n'
REFUSED = {
    'h = extra(per="tensor")\nupdate = grad * h': r"extra\(per='tensor'\).*SC165",
    'h = extra(per="step", ge=1)\nupdate = grad * h': r"ge=1\): ge=0 is the one thing.*SC165",
    'h = extra(per="step", ge=False)\nupdate = grad * h': "SC165",
    "update = where(given(grad), grad, 0)": "asks for an extra input.*SC166",
    "m = ema(grad, 0.9)\nupdate = where(given(m), m, 0)": "SC166",
    f"{H}update = grad": "the extra input 'h' is never read.*SC139",
    f"{H}update = h": "does not depend on the gradient.*SC140",
    f"{H}update = grad * given(h)": "first place of where.*SC143",
    f"{H}update = grad * ema(h, 0.9)": "has no name.*SC116",
    f"{H}h_given = 2 * grad\nupdate = h * h_given": "generated code appends _given.*SC113",
    f"h_given = 2 * grad\n{H}update = h * h_given": "generated code appends _given.*SC113",
    'closure = extra(per="step")\nupdate = grad * closure': "'closure' is reserved.*SC113",
    f"{H}update = grad * h\nh = 3": "bound twice.*SC114",
    f"extra = 3\n{H}update = grad * h": "a name of the DSL.*SC112",
    f"{H}m = ema(grad, h)\nupdate = m": "the same for all elements.*SC147",
    f"{H}G = max_ema(h)\nupdate = grad * G": "never negative.*SC148",
    f"{H}update = grad * h\neval_param = param * h": "eval_param is made of.*SC160",
    f"{H}update = grad * root(h, 2) * h**1.5": "may be negative.*SC146",
}


@pytest.mark.parametrize("body", REFUSED)
def test_refused_by_name(body: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=REFUSED[body]):
        program_of(tmp_path, body)


NEEDED = {
    "update = grad * h": True,
    "update = where(given(h), grad * h, grad)": False,
    "update = where(given(h), grad, h)": True,
    "u = h * 2\nupdate = where(given(h), grad * u, grad)": False,
    "u = h * 2\nupdate = where(given(h), grad * u, grad) + u": True,
    "known = given(h)\nupdate = where(known, grad * h, grad)": False,
    "s = state()\ns.next = where(given(h), h, s.prev)\nupdate = grad * s": False,
    "s = ema(h, 0.9)\nupdate = where(given(h), grad * s, grad)": True,
    "update = where(given(h), where(grad > 0, grad * h, h), grad)": False,
    "update = where(grad > h, grad, 0)": True,
    "update = where(given(h), where(grad > h, grad, 0), 0)": False,
    "u = where(given(h), h, 0)\nupdate = grad * where(given(h), u, u)": False,
}


@pytest.mark.parametrize("body", NEEDED)
@pytest.mark.parametrize("per", ["element", "step"])
def test_what_a_step_cannot_do_without(body: str, per: str, tmp_path: Path) -> None:
    program = program_of(tmp_path, f'h = extra(per="{per}")\n{body}')
    assert (needed(program) == {"h"}) == NEEDED[body]
    assert reads_extra(program, program.numerator)
    when = "at every step" if NEEDED[body] else "at any step or none"
    assert any(f"h is an extra input, one number {'per' if per == 'element' else 'for'}" in x
               and when in x for x in remarks(program))  # fmt: skip
    evaluator = Evaluator(program, lr=0.1)
    p = np.ones(3)
    if NEEDED[body]:
        with pytest.raises(LoweringError, match=r"Mine reads h: pass extras.*SC315"):
            evaluator.step(p, p, evaluator.initial_state(p), 1)
    else:
        assert np.isfinite(evaluator.step(p, p, evaluator.initial_state(p), 1)[0]).all()


def test_nothing_is_known_of_its_size(tmp_path: Path) -> None:
    """Neither a degree nor, unless declared, a sign: stored in bf16, and no bound is proved."""
    for ge in ("", ", ge=0"):
        body = f'h = extra(per="element"{ge})\nv = ema(h, 0.99)\nm = ema(grad, 0.9)\n'
        program = program_of(tmp_path, f"{body}numerator = m\ndenominator = sqrt(abs(v))")
        assert Degrees(program).moments == {"v": None, "m": 1}
        assert ("v" in Ranges(program).nonneg_moments) == bool(ge)
        assert any(">= 0" in x for x in remarks(program)) == bool(ge)
        made = build(spec_file(tmp_path, f"{body}update = m / sqrt(abs(v))").spec)
        assert {m.name: m.format for m in made.kernel.moments}["v"] == "bf16"
        assert prove(program).status == "unproved"
    with pytest.raises(LoweringError, match="SC311"):
        build(spec_file(tmp_path, 'h = extra(per="element")\nv = ema(h, 0.9, store="fp8")\n'
                                  "update = grad * v").spec)  # fmt: skip


def test_never_negative_is_never_minus_zero(tmp_path: Path) -> None:
    """What is proved of a declared input holds of +0, and a kernel may order zeros no more."""
    body = (
        'a = extra(per="element", ge=0)\nb = extra(per="element", ge=0)\nupdate = grad * max(a, b)'
    )
    made = build(spec_file(tmp_path, body).spec)
    assert "a = a + 0.0" in made.module.source
    assert "nonneg_maximum(a, b)" in made.module.source


@pytest.mark.parametrize("convert", ["stosign", "expected", "sign", "stosign:eps=keep"])
def test_a_denominator_that_may_be_negative(convert: str, tmp_path: Path) -> None:
    head = 'm = ema(grad, 0.9)\nloss = extra(per="step")\n'
    refused = [f"{H}denominator = h", f"{H}v = ema(h, 0.9)\ndenominator = abs(v) + v",
               f"{H}v = state()\nv.next = h\ndenominator = v * 2"]  # fmt: skip
    size = H.replace(")", ", ge=0)")
    accepted = [f"{H}denominator = max(h, 1e-8)", f"{H}denominator = sqrt(abs(h)) + 1e-8",
                f"{size}v = ema(h, 0.9)\ndenominator = v + 1e-8"]  # fmt: skip
    for bodies, fine in ((refused, False), (accepted, True)):
        for body in bodies:
            program = program_of(tmp_path, f"{head}{body}\nnumerator = m * loss")
            if fine:
                assert apply_passes(program, requests_of(convert)).link != "ratio"
                continue
            with pytest.raises(PassError, match=r"a denominator that is never negative.*SC225"):
                apply_passes(program, requests_of(convert))


def test_a_number_passed_in_is_no_eps(tmp_path: Path) -> None:
    body = 'loss = extra(per="step", ge=0)\neps = hyper(1e-8, ge=0)\nv = ema(grad**2, 0.9)\n'
    body += "numerator = grad\ndenominator = sqrt(v) + loss + eps"
    made = apply_passes(program_of(tmp_path, body), requests_of("stosign"))
    assert [x.name for x in made.extras] == ["loss"]
    assert [h.name for h in made.hypers] == ["lr"]


def test_passes_leave_it_alone(tmp_path: Path) -> None:
    """It is no gradient: neither its sign is taken nor is it clipped."""
    body = (
        f'{H}v = ema(h, 0.9, init="first")\nm = ema(grad, 0.9, init="first")\nupdate = m * abs(v)'
    )
    made = apply_passes(program_of(tmp_path, body), requests_of("presign,clip"))
    assert made.moment("v").init == "first"
    assert made.moment("v") == program_of(tmp_path, body).moment("v")
    assert made.moment("m").init == "zero"


def test_it_belongs_to_the_identity_of_a_program(tmp_path: Path) -> None:
    found = set()
    for per in ("element", "step"):
        for name in ("h", "k"):
            body = f'{name} = extra(per="{per}")\nm = ema(grad, 0.9)\nupdate = m * {name}'
            made = build(spec_file(tmp_path, body).spec)
            found.add(program_hash(made.kernel))
    assert len(found) == 4


def test_draws_are_of_what_is_declared() -> None:
    program = resolve("sophia")
    assert drawn(program, 2, 64) == {}
    assert (drawn(program, 1, 64)["hessian"] < 0).any()


@pytest.mark.parametrize("body", [
    "update = grad + mean(h)",
    "update = grad + h * mean(grad, axis=-1)",
    "s = ema(h * norm(grad), 0.9)\nupdate = grad + s",
    "row = ema(mean(h, axis=-1), 0.9)\nupdate = grad + row",
])  # fmt: skip
def test_reductions_take_it_as_elements(tmp_path: Path, body: str) -> None:
    text = f'h = extra(per="element")\n{body}'
    cls = class_of(build(spec_file(tmp_path, text).spec, state="fp32"), tmp_path)
    program = program_of(tmp_path, text)
    rng = np.random.default_rng(0)
    x, g, h = (rng.standard_normal((3, 5)) for _ in range(3))
    p = torch.nn.Parameter(torch.tensor(x, dtype=torch.float32))
    p.grad = torch.tensor(g, dtype=torch.float32)
    optimizer = cls([p], lr=0.1)
    optimizer.step(h=[torch.tensor(h, dtype=torch.float32)])
    evaluator = Evaluator(program, lr=0.1)
    wanted, _ = evaluator.step(x, g, evaluator.initial_state(x), 1, extras={"h": h})
    np.testing.assert_allclose(p.detach().numpy(), wanted, atol=1e-5)


def test_the_witness_gives_them_the_shape_of_its_parameter(tmp_path: Path) -> None:
    text = (
        'h = extra(per="element")\nm = ema(grad, 0.9)\n'
        "row = mean(h, axis=-1)\nupdate = m * (1 + abs(row))"
    )
    cls = class_of(build(spec_file(tmp_path, text).spec, state="fp32"), tmp_path)
    row = reference_row(program_of(tmp_path, text), cls, steps=3)
    assert row.ok, row.detail
