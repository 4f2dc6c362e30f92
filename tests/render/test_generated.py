"""The committed files in generated/: rebuilt to the same bytes, run, and read like hand-written."""

import doctest
import importlib.util
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from signconv.pipeline import build, builtin_names
from signconv.pipeline.catalogue import GENERATED, Entry
from signconv.verification import bits, differential
from signconv.verification.witnesses import reference_row
from tests.support import ROOT
from tests.support.entries import CORE, class_for, first_move, path_of
from tests.support.runs import built, converted

FOLDER = ROOT / "generated"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

ISSUE = ("adamw.py", "adamw_stosign.py", "sgd_stosign.py")


def label(entry: Entry) -> str:
    return entry.label


every = pytest.mark.parametrize("entry", GENERATED, ids=label)


@every
def test_rebuilding_gives_the_same_bytes(entry: Entry) -> None:
    made = build(**asdict(entry)).module
    assert made.file_name == path_of(entry).name
    committed = (FOLDER / made.file_name).read_bytes()
    assert committed == made.source.encode(), f"`signconv build --all` changes {made.file_name}"


def test_no_stray_and_no_missing_file() -> None:
    wanted = {path_of(e).name for e in GENERATED}  # that its build has this name is tested above
    assert len(wanted) == len(GENERATED)
    assert {p.name for p in FOLDER.iterdir() if p.name != "__pycache__"} == wanted


def test_every_spec_and_the_usual_conversions_are_there() -> None:
    """Each is one row of the catalogue, and so in every test here."""
    assert set(ISSUE) <= {p.name for p in FOLDER.iterdir()}
    plain = {e.spec for e in GENERATED if e == Entry(e.spec)}
    assert plain == set(builtin_names())
    stosign = {e.spec for e in GENERATED if e.convert == "stosign"}
    assert stosign >= {"adamw", "sgd", "adamax", "rmsprop", "lion", "nadam"}
    soft = {e.convert for e in GENERATED if e.spec == "adamw"}
    assert soft >= {"soft:p=2", "soft:p=2,nesterov", "soft:p=2,nesterov,stosign"}
    assert Entry("s3gd", state="fp8-raw", math="bf16") in GENERATED


def effort(entry: Entry, turn: int) -> dict[str, int]:
    """Every bit of state and parameters is compared after each step, so that the first step shows
    what the entry's own functions do.  A second one and state of a longer training are for what all
    kernels share (buckets that are used again, noise of even and odd steps): in `make test` with
    one entry of every kind."""
    if entry in CORE or turn == 1:
        return {"steps": 2}
    # AdaMuon's v averages squares that are all about 1/n: few codes are left of it later
    return {"steps": 1, "warm_up": 2 if entry.spec == "adamuon" else 10}


@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.long)])
@every
def test_kernel_equals_reference_bit_for_bit(entry: Entry, turn: int) -> None:
    """From trained state, in this process (conftest.py); of fp32 and bf16 parameters one in
    `make test`, by turns, and the other in `make test-long`."""
    dtype = (torch.float32, torch.bfloat16)[(GENERATED.index(entry) + turn) % 2]
    row = bits.compare(class_for(entry), dtype, DEVICE, **effort(entry, turn))
    assert row.ok, f"{row.subject}: {row.detail}"


@pytest.mark.parametrize("entry", [e for e in GENERATED if e.convert], ids=label)
def test_reference_follows_the_evaluator(entry: Entry) -> None:
    """The conversions, with fp32 state; for the plain specs it is in test_specs.py."""
    row = reference_row(converted(entry.spec, entry.convert), built(entry.spec, entry.convert))
    assert row.ok, row.detail


def test_kernel_equals_reference_as_verify_runs_it() -> None:
    """In a process of its own; three steps, its default, in tests/docs/test_docs.py."""
    rows = differential.kernel_rows(FOLDER / "adamw_stosign.py", DEVICE, steps=1)
    subjects = ["scalars", "float32 parameters", "bfloat16 parameters"]
    assert [r.subject for r in rows] == subjects
    for row in rows:
        assert row.ok, f"{row.subject}: {row.detail}"


@every
def test_file_names_the_command_that_makes_it(entry: Entry) -> None:
    source = path_of(entry).read_text()
    command = next(line for line in source.splitlines() if line.startswith("    signconv build "))
    words = command.split()
    assert words[2] == entry.spec
    assert ("--convert" in words) is (entry.convert is not None)
    assert ("--state" in words) is (entry.state != "fp8")


@every
def test_docstring_example_runs(entry: Entry) -> None:
    cls = class_for(entry)
    names = {"torch": torch, cls.__name__: cls}
    examples = doctest.DocTestFinder(recurse=False).find(cls, globs=names)
    (example,) = [e for e in examples if e.examples]
    assert len(example.examples) >= 4
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert result.attempted == len(example.examples)
    assert result.failed == 0


@every
def test_example_moves_the_parameters(entry: Entry) -> None:
    """An example that runs and does nothing would pass as well."""
    cls = class_for(entry)
    model = torch.nn.Linear(32, 8)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = cls(model.parameters())
    model(torch.randn(4, 32)).square().mean().backward()
    for t in range(1, first_move(cls) + 1):
        optimizer.step()
        for old, new in zip(before, model.parameters()):
            moved = (old != new).float().mean().item()
            assert moved > 0.9 if t == first_move(cls) else moved == 0


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff(arguments: tuple[str, ...]) -> None:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, str(FOLDER)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@every
def test_lines_fit(entry: Entry) -> None:
    assert max(map(len, path_of(entry).read_text().splitlines())) <= 100
