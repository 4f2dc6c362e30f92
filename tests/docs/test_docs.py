"""The documentation is run: Python blocks, command lines, links, file names, the example.

A block marked ``python raises=SpecError`` must raise that error; all others must not raise. The
blocks of one file share a namespace, so a later one may use what an earlier one defined.
"""

import importlib.util
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import signconv.dsl
from signconv import cli, errors
from signconv.dsl import Optimizer
from signconv.lower import lower
from signconv.passes.base import registry
from signconv.pipeline import apply_passes, requests_of, resolve, write
from signconv.render.module import render
from signconv.verification.bits import load_class
from signconv.verification.inputs import passed
from tests.docs.pages import anchors
from tests.support import ROOT, environment
from tests.support.command import Run

README = ROOT / "README.md"
EXAMPLE = ROOT / "examples" / "custom_optimizer.py"
DOCS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every = pytest.mark.parametrize("path", DOCS, ids=label)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what follows the language, its first line, its text."""

    language: str
    marks: str
    line: int
    text: str


def blocks(path: Path, language: str) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    made = [Block(m[1], m[2].strip(), text.count("\n", 0, m.start()) + 2, m[3]) for m in found]
    return [b for b in made if b.language == language]


# ---------------------------------------------------------------- Python


def run(path: Path) -> dict[str, Any]:
    """Run all Python blocks of a file; errors carry the line in the document."""
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for block in blocks(path, "python"):
        code = compile("\n" * (block.line - 1) + block.text, str(path), "exec", dont_inherit=True)
        if block.marks:
            name = re.fullmatch(r"raises=(\w+)", block.marks)
            assert name, f"{label(path)}:{block.line}: unknown mark {block.marks!r}"
            with pytest.raises(getattr(errors, name[1])) as caught:
                exec(code, namespace)
            origin = caught.value.origin
            lines = range(block.line, block.line + block.text.count("\n"))
            assert origin is not None and Path(origin.file) == path and origin.line in lines
        else:
            exec(code, namespace)
    return namespace


@pytest.fixture(scope="module", params=DOCS, ids=label)
def namespace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each document with what its blocks define."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("docs")
        patch.setenv("SIGNCONV_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield request.param, run(request.param)


def specs(namespace: dict[str, Any]) -> dict[str, type[Optimizer]]:
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }


def test_python_blocks_run_and_their_optimizers_step(
    namespace: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for name, spec in specs(namespace[1]).items():
        links = [None] if spec.program.link == "stosign" else [None, "stosign"]
        for convert in links:
            program = apply_passes(spec.program, requests_of(convert))
            made = render(lower(program), name, f"{name}_{convert}.py", name, "")
            optimizer_class = load_class(write(made, tmp_path)[0])
            p = torch.nn.Parameter(torch.ones(2, 32))
            optimizer = optimizer_class([p], lr=1e-2, backend="reference")
            for t in range(3):
                p.grad = torch.randn(2, 32) + 1
                optimizer.step(**passed(optimizer.program, [p], t))
            assert p.isfinite().all() and (p != 1).any(), (name, convert)


def test_specs_shown_as_built_in_are_the_built_in_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a block of the page writes a file
    monkeypatch.setenv("SIGNCONV_CACHE", str(tmp_path / "cache"))
    shown = specs(run(ROOT / "docs" / "dsl.md"))
    for name in ("AdamW", "Lion"):
        theirs = resolve(name.lower())
        assert replace(shown[name].program, doc=theirs.doc, key=theirs.key) == theirs


def test_language_reference_is_complete() -> None:
    text = (ROOT / "docs" / "dsl.md").read_text(encoding="utf-8")
    code = " ".join(re.findall(r"`[^`\n]+`", text))
    for name in signconv.dsl.__all__:
        assert re.search(rf"\b{name}\b", code), f"docs/dsl.md does not describe {name}"


# ---------------------------------------------------------------- the example


def test_readme_shows_the_example_itself() -> None:
    (block,) = [b for b in blocks(README, "python") if "Optimizer)" in b.text]
    text = EXAMPLE.read_text(encoding="utf-8")
    assert block.text in text and block.text.startswith("from signconv.dsl import")
    assert text.count("\n") < 30


def test_example_trains(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env=environment(SIGNCONV_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    losses = re.fullmatch(r"loss before (\S+), after (\S+)\n", done.stdout)
    assert losses, done.stdout
    assert float(losses[2]) < 0.1 * float(losses[1]) < math.inf


# ---------------------------------------------------------------- command lines


def command_lines(path: Path) -> list[str]:
    lines = [x for b in blocks(path, "console") for x in b.text.splitlines()]
    return [x for x in lines if x.strip()]


SIGNCONV_LINES = sorted({x for d in DOCS for x in command_lines(d) if x.startswith("signconv ")})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the examples where the README says they are."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


@pytest.mark.parametrize("line", SIGNCONV_LINES)
def test_command_line_runs(line: str, workspace: Path, run: Run) -> None:
    done = run(*shlex.split(line)[1:], cwd=workspace)
    assert done.code == 0, done.out + done.err
    if line.startswith("signconv verify"):
        rows = [x for x in done.out.splitlines() if "reference - kernel" in x]
        assert len(rows) == 3 and all(re.search(r"│ ok +│", row) for row in rows), done.out


def test_readme_verifies_the_example_with_stosign() -> None:
    (line,) = [x for x in command_lines(README) if x.startswith("signconv verify")]
    assert "examples/custom_optimizer.py:" in line and "--convert stosign" in line


def test_exit_codes(workspace: Path, run: Run) -> None:
    other = "build adamw --convert stosign --check --out nowhere"
    assert run(*other.split(), cwd=workspace).code == 1
    assert not (workspace / "nowhere").exists()
    wrong = run("build", "adanw", cwd=workspace)
    assert wrong.code == 2 and wrong.err.count("\n") == 1 and "adamw" in wrong.err


@every
def test_make_targets_and_extras_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [*command_lines(path), *re.findall(r"`(make [^`]+)`", text)]
    for target in {x.split()[1] for x in lines if x.startswith("make ")}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no make target {target}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"pip install -e '?\.\[(\w+)\]", text):
        assert extra in extras["optional-dependencies"]


def test_readme_lists_every_command() -> None:
    names = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    listed = set(re.findall(r"^\| `signconv ([\w-]+)", README.read_text("utf-8"), re.MULTILINE))
    assert listed == {n.replace("_", "-") for n in names}


def test_every_pass_has_its_page() -> None:
    assert {p.stem for p in (ROOT / "docs" / "passes").glob("*.md")} == set(registry())


WITHOUT_TRITON = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch
from signconv.generated.adamw_stosign import AdamWStoSign

p = torch.nn.Parameter(torch.ones(4, 32))
optimizer = AdamWStoSign([p], lr=1e-3)
p.grad = torch.randn(4, 32)
optimizer.step()
assert (p != 1).all() and "triton" not in sys.modules
"""


def test_reference_runs_without_triton() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- links and file names


@every
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        destination = (path.parent / file).resolve() if file else path
        assert destination.exists(), f"{label(path)} links to {target}"
        assert not anchor or anchor in anchors(destination), f"{label(path)}: no anchor {target}"


#: Names that stand for a reader's own file, or for what a command writes.
NOT_OURS = {
    "path/to/file.py", "file.py", "FILE.py", "docs/passes/<name>.md", "optimizers/adams_stosign.py",
    "NAME.py", "test_NAME.py", "test_my_optimizer.py",
}  # fmt: skip


@every
def test_files_that_are_named_exist(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", text)
    named = {s.partition(":")[0].split()[-1] for s in spans if s.strip() and s[0] != ":"}
    named |= {s.partition(":")[0] for s in re.findall(r"[\w/.<>-]+\.(?:py|md|j2)\b", text)}
    files = {s for s in named if re.fullmatch(r"[\w/.<>-]+(\.(py|md|j2|toml)|/)", s)} - NOT_OURS
    files = {s for s in files if "<" not in s}  # a placeholder
    folders = ("signconv", "templates", "generated", "tests", "tools", "examples", "docs")
    present = {p.name for folder in folders for p in (ROOT / folder).rglob("*")}
    for name in files:
        near = [ROOT / name, ROOT / "signconv" / name, path.parent / name]
        near.append(ROOT / "signconv" / "runtime" / name)
        found = any(p.exists() for p in near) or ("/" not in name and name in present)
        assert found, f"{label(path)} names {name}, which does not exist"


def test_modules_that_are_named_exist() -> None:
    for path in DOCS:
        for name in re.findall(r"from (signconv[\w.]*) import", path.read_text("utf-8")):
            assert importlib.util.find_spec(name) is not None, name


def test_the_table_of_memory_is_that_of_its_record() -> None:
    """docs/memory.md, between two marks."""
    sys.path.insert(0, str(ROOT / "examples"))
    from memory import table

    text = (ROOT / "docs" / "memory.md").read_text("utf-8")
    (record,) = re.findall(r"<!-- memory: .* --out (\S+) -->\n", text)
    shown = text.split(f"{record} -->\n")[1].split("<!-- memory -->")[0]
    assert shown == table(json.loads((ROOT / record).read_text("utf-8")))


def test_the_program_of_that_table_runs() -> None:
    """On the CPU, where it says that offload needs a GPU."""
    sys.path.insert(0, str(ROOT / "examples"))
    from memory import measure

    row = measure("tiny", "fp8-release", "cpu", batch=1, context=32, steps=1)
    assert row.ms is not None and not row.problem and row.parameters > 50_000
    assert "SC448" in measure("tiny", "fp8-both", "cpu", batch=1, context=32, steps=1).problem


def test_the_door_matrix_is_that_of_the_tests() -> None:
    from tools.docs import doors

    assert doors.PAGE.read_text(encoding="utf-8") == doors.page(), "run `make docs`"
