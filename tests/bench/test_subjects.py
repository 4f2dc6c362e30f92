"""SPECs with passes, storage and parameters of their own, and the bytes counted for them."""

import pytest
import torch

from signconv import pipeline
from signconv.bench.measure import state_bytes
from signconv.bench.subjects import Subject, build, parse
from signconv.errors import BenchError
from signconv.prove import report
from tests.support import spec_file

PLAIN = Subject("")
TEXTS = {
    "adamw": Subject("adamw"),
    "adamw+stosign": Subject("adamw", "stosign"),
    "adamw+soft:p=2+nesterov+stosign@fp32": Subject("adamw", "soft:p=2,nesterov,stosign", "fp32"),
    "s3gd@fp8-raw@math=bf16": Subject("s3gd", None, "fp8-raw", "bf16"),
    "adamw@m=fp8,v=fp4": Subject("adamw", None, "m=fp8,v=fp4"),
    "mine.py:Mine@mat=fp4": Subject("mine.py:Mine", None, "mat=fp4"),
    "lion@bf16@params=fp32": Subject("lion", None, "bf16", "fp32", "fp32"),
    "my.module:Mine+sign": Subject("my.module:Mine", "sign"),
    "odd+name@here/mine.py:Mine+stosign@fp32": Subject("odd+name@here/mine.py:Mine", "stosign",
                                                       "fp32"),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_names_a_subject_and_its_label_is_that_text(text: str) -> None:
    subject = parse(text, PLAIN)
    assert subject == TEXTS[text]
    assert subject.label == text
    assert parse(subject.label, PLAIN) == subject


def test_options_fill_what_a_spec_leaves_out() -> None:
    default = Subject("", "stosign", "fp32", "bf16", "fp32")
    assert parse("adamw", default) == Subject("adamw", "stosign", "fp32", "bf16", "fp32")
    own = parse("adamw+sign@bf16@math=fp32@params=bf16", default)
    assert own == Subject("adamw", "sign", "bf16", "fp32", "bf16")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adamw@fp9", "unknown @fp9; .*fp8-raw"),
        ("adamw@math=fp16", "unknown math 'fp16'; .*valid: bf16, fp32"),
        ("adamw@m=fp9,v=fp8", "unknown @m=fp9,v=fp8"),
        ("adamw@parms=fp16", "unknown @parms=fp16; did you mean 'params=bf16'"),
        ("adamw@", "unknown @;"),
        ("+stosign", "names no optimizer"),
        ("", "names no optimizer"),
    ],
)
def test_unknown_modifiers_are_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        parse(text, PLAIN)


def test_passes_are_named_in_the_order_applied() -> None:
    assert build(parse("sgd+stosign+nesterov", PLAIN)).subject.label == "sgd+nesterov+stosign"


@pytest.mark.parametrize("text", ["adamw", "adamw@fp32@params=fp32", "sgd@bf16", "lamb", "signsgd"])
def test_bytes_are_those_that_show_and_the_state_itself_tell(text: str) -> None:
    assert_bytes(text)


def test_bytes_of_a_state_that_is_one_number_a_block(tmp_path) -> None:
    body = 'v = ema(mean(grad**2, axis="block"), 0.9)\nupdate = grad / (sqrt(v) + 1)'
    assert assert_bytes(spec_file(tmp_path, body).spec) == 4 / 32


def assert_bytes(text: str) -> float:
    """Counted, shown, and held by a parameter of 4 x 64: all the same."""
    built = build(parse(text, PLAIN))
    s = built.subject
    shown = report._state(*_programs(s), s.state)
    assert built.state_bytes == shown["bytes"]
    assert built.moved_bytes == shown["moved"][s.params]
    p = torch.nn.Parameter(torch.ones(4, 64, dtype=s.dtype))
    p.grad = torch.ones_like(p)
    optimizer = built.optimizer([p], backend="reference")
    optimizer.step()
    assert state_bytes(optimizer) == built.state_bytes * p.numel()
    return built.state_bytes


def _programs(s: Subject) -> tuple:
    made = pipeline.build(s.spec, convert=s.convert, state=s.state, math=s.math)
    return made.program, made.kernel


def test_bytes_of_a_step_counted_by_hand() -> None:
    """bf16: parameter read and written, gradient read, two codes with scales read and written."""
    kernel, sizes = pipeline.build("adamw").kernel, {"m": 1 + 1 / 32, "v": 1 + 1 / 32}
    assert report.bytes_moved(kernel, 2, sizes) == 2 + 2 + 2 + 2 * (2 + 2 / 32)
    # LAMB's norms read parameter, gradient and state once more
    lamb = pipeline.build("lamb", state="fp32").kernel
    assert report.bytes_moved(lamb, 4, {"m": 4, "v": 4}) == 12 + 16 + (4 + 4 + 8)
    # Adafactor's first pass reads both, its second the gradient alone
    assert report.bytes_moved(pipeline.build("adafactor").kernel, 2, {}) == 6 + 4 + 2


def test_a_spec_of_the_users_own(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNCONV_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "a+b@c"
    folder.mkdir()
    mine = spec_file(folder, "m = ema(grad, 0.9)\nnumerator = m")
    built = build(parse(f"{mine.spec}@fp32", PLAIN))
    assert (built.subject.state, built.state_bytes) == ("fp32", 4.0)
