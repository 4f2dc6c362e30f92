"""How each moment is stored where the build or the spec names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import signconv
from signconv.errors import LoweringError, SpecError
from signconv.pipeline import Build, build
from signconv.prove.report import assemble
from tests.support import HEAD, class_of, spec_file

ADAM = "m = ema(grad, 0.9{m})\nv = ema(grad**2, 0.999{v})\nnumerator = m\ndenominator = sqrt(v)"


def made(tmp_path: Path, state: str = "fp8", m: str = "", v: str = "") -> Build:
    body = ADAM.format(m=m and f", store={m!r}", v=v and f", store={v!r}")
    return build(spec_file(tmp_path, body).spec, state=state)


def formats(b: Build) -> dict[str, str]:
    return {m.name: m.format for m in b.kernel.moments}


@pytest.mark.parametrize(
    ("state", "wanted", "text"),
    [
        ("m=fp8,v=fp4", {"m": "e4m3", "v": "e4m0"}, "v=fp4"),
        ("v=fp4", {"m": "e4m3", "v": "e4m0"}, "v=fp4"),
        ("fp4,m=fp8", {"m": "e4m3", "v": "e4m0"}, "v=fp4"),
        ("fp4,v=bf16", {"m": "e2m1", "v": "bf16"}, "m=fp4,v=bf16"),
        ("m=fp32, v=fp32", {"m": "fp32", "v": "fp32"}, "fp32"),
        ("m=fp8", {"m": "e4m3", "v": "e5m3"}, "fp8"),
        ("fp4", {"m": "e2m1", "v": "e4m0"}, "fp4"),
    ],
)
def test_moments_by_name(tmp_path: Path, state: str, wanted: dict[str, str], text: str) -> None:
    b = made(tmp_path, state)
    assert (formats(b), b.kernel.storage) == (wanted, text)
    assert f"--state {text}" in b.command or text == "fp8"


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("fp8", {"m": "fp32", "v": "e5m3"}),  # the spec's word holds …
        ("fp4", {"m": "fp32", "v": "e4m0"}),
        ("bf16", {"m": "fp32", "v": "bf16"}),
        ("m=fp8", {"m": "e4m3", "v": "e5m3"}),  # … until the build names the moment
    ],
)
def test_the_build_is_asked_before_the_spec(
    tmp_path: Path, state: str, wanted: dict[str, str]
) -> None:
    b = made(tmp_path, state, m="fp32")
    assert formats(b) == wanted
    assert made(tmp_path, b.kernel.storage, m="fp32").module.source == b.module.source


def test_a_spec_s_own_width_changes_no_name(tmp_path: Path) -> None:
    assert made(tmp_path, m="fp32").module.file_name == made(tmp_path).module.file_name


def test_files_and_classes_say_it() -> None:
    b = build("adamw", state="fp4,m=fp8")
    assert (b.module.file_name, b.module.class_name) == ("adamw_v_fp4.py", "AdamWVFP4")


@pytest.mark.parametrize(
    ("spec", "convert"),
    [*((s, None) for s in ("adamw", "amsgrad", "stosignsgd", "adabelief")), ("lamb", "stosign")],
)
@pytest.mark.parametrize("first", ["", "fp4,", "bf16,"])
def test_what_a_file_says_builds_it_again(spec: str, convert: str | None, first: str) -> None:
    """Under fp4 a moment that does not fit has its byte; by name that would be refused.  LAMB's G
    reads the parameter: fp32 is its default, and by name it is no successor of bf16."""
    names = [m.name for m in build(spec, convert=convert).kernel.moments]
    made = 0
    for word in ("fp8", "fp4", "bf16", "fp32"):
        for name in names:
            try:
                b = build(spec, convert=convert, state=f"{first}{name}={word}")
            except LoweringError:
                continue
            again = build(spec, convert=convert, state=b.kernel.storage)
            assert again.module.source == b.module.source
            made += 1
    assert made


def test_reports_ask_what_a_spec_s_own_width_would_refuse(tmp_path: Path) -> None:
    """G in 4 bits is the spec's wish; the build stores it in 8, and show compares storages."""
    body = """
    m = ema(grad, 0.9)
    G = max_ema(abs(grad), 0.9, store="fp4")
    numerator = m
    denominator = G + 1e-8
    """
    spec = spec_file(tmp_path, body).spec
    with pytest.raises(LoweringError, match="G=fp4: 4 bits are for"):
        build(spec)
    report = assemble(build(spec, state="G=fp8"))
    assert report["built"]["moments"]["G"]["format"] == "e4m3"
    assert set(report["state"]) >= {"fp8", "bf16", "fp32"}


def test_a_header_names_the_spec_s_own_widths(tmp_path: Path) -> None:
    text = made(tmp_path, m="fp32").module.source
    assert text.startswith('"""Mine, FP8 state but for m (fp32).')
    assert made(tmp_path, "m=fp8", m="fp32").module.source.startswith('"""Mine, m=fp8 state.')


@pytest.mark.parametrize(
    ("spec", "state", "words"),
    [
        ("adamw", "q=fp8", "no moment 'q'; valid: m, v"),
        ("adamw", "m=fp8,m=fp4", "m is given twice"),
        ("adamw", "fp8,fp4", "fp8 and fp4 are both for every moment"),
        ("adamw", "m=fp9", "'fp9'; did you mean 'fp8'"),
        ("adamw", "m=", "unknown state format ''"),
        ("signsgd", "m=fp8", "SignSGD has no moments"),
        ("stosignsgd", "G=fp4", "4 bits are for averages"),  # a maximum would climb
        ("lamb", "v=fp4", "LAMB's v does not fit: use v=fp8"),
        ("adan", "m=fp4", "keeps no bound between its moments"),
        ("nadam", "mu_product=fp32", "mu_product is one float64 number per parameter"),
    ],
)
def test_what_cannot_be_is_one_line(spec: str, state: str, words: str) -> None:
    with pytest.raises(LoweringError) as error:
        build(spec, state=state)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_name_asks_for_what_a_word_alone_would_not(tmp_path: Path) -> None:
    """G gathers the rounding of m: only who names m gets it in 4 bits."""
    with pytest.raises(LoweringError, match="SC311"):
        build("stosignsgd", state="fp4")
    assert formats(build("stosignsgd", state="m=fp4")) == {"m": "e2m1", "G": "e4m3"}


def test_an_unknown_width_in_a_spec_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="store='fp5' is no state format; did you mean") as error:
        made(tmp_path, m="fp5")
    assert error.value.origin is not None
    assert error.value.origin.line == len(HEAD.splitlines()) + 1


def test_it_trains_saves_and_loads() -> None:
    cls = signconv.compile("adamw", state="m=fp8,v=fp4")
    p = torch.nn.Parameter(torch.ones(4, 64))
    optimizer = cls([p], lr=0.1, seed=3)
    for _ in range(3):
        p.grad = p.detach().clone()
        optimizer.step()
    assert optimizer.state[p]["m"].shape == (4, 64) and optimizer.state[p]["v"].shape == (4, 32)
    q = torch.nn.Parameter(p.detach().clone())
    other = cls([q], lr=0.1, seed=3)
    other.load_state_dict(optimizer.state_dict())
    gradient = p.detach().clone()
    for x, o in ((p, optimizer), (q, other)):
        x.grad = gradient
        o.step()
    assert torch.equal(p, q)


LOOKAHEAD = """
inner = ema(grad, 0.9)
fast = state(init=param)
fast.next = 0.5 * fast.prev + 0.5 * param
slow = ema(fast, 0.9)
m = ema(grad + grad**2, 0.9)
update = inner + 0.1 * (param - slow) + m
"""


@pytest.mark.parametrize("state", ["fp8", "fp4"])
def test_what_follows_the_parameter_is_fp32(state: str, tmp_path: Path) -> None:
    """By way of another moment too; bf16 is for what has no bound and does not."""
    b = build(spec_file(tmp_path, LOOKAHEAD).spec, state=state)
    wanted = {"fp8": "e4m3", "fp4": "e2m1"}[state]
    assert formats(b) == {"inner": wanted, "fast": "fp32", "slow": "fp32", "m": "bf16"}
    narrow = build(spec_file(tmp_path, LOOKAHEAD).spec, state=f"{state},slow=bf16")
    assert formats(narrow)["slow"] == "bf16"


def test_what_was_bf16_before_loads(tmp_path: Path) -> None:
    """A checkpoint of a program whose slow weights were bf16 goes on in fp32."""
    spec = spec_file(tmp_path, LOOKAHEAD).spec
    old, new = (
        class_of(build(spec, state=state), tmp_path) for state in ("fp8,fast=bf16,slow=bf16", "fp8")
    )
    assert new.program.former == (old.program.hash, {"fast": "bf16", "slow": "bf16"})
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 99).view(3, 33)) for _ in range(2))
    first, second = old([p], lr=0.1, seed=1), new([q], lr=0.1, seed=1)
    p.grad = torch.ones_like(p)
    first.step()
    second.load_state_dict(first.state_dict())
    for name in ("fast", "slow"):
        assert torch.equal(second.state[q][name], first.state[p][name].float())
        assert second.state[q][name].dtype == torch.float32
    q.grad = torch.ones_like(q)
    second.step()
