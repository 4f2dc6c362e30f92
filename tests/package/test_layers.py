"""Who may import whom, and what a user's process loads."""

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest

from signconv.pipeline.catalogue import GENERATED, Entry
from signconv.runtime import backend
from tests.render.test_generated import label
from tests.support import ROOT, python
from tests.support.entries import path_of

PACKAGE = ROOT / "signconv"
#: Layer -> the parts of signconv it may import (docs/architecture.md#folders; all share ir, and ir
#: with the runtime what a reduction runs over).
ALLOWED = {
    "errors": set(),
    "ir": {"ir", "errors", "runtime.axes", "runtime.polar"},
    "prove": {"prove", "ir", "errors", "runtime.formats", "runtime.polar"},
    "dsl": {"dsl", "ir", "errors", "runtime.polar"},
    "specs": {"dsl"},
    "passes": {"passes", "ir", "errors"},
    "lower": {
        "lower",
        "ir",
        "errors",
        "runtime.axes",
        "runtime.formats",
        "runtime.reference.scalars",
    },
    "render": {"render", "lower", "ir", "errors", "runtime.axes", "runtime.formats"},
    "runtime": {"runtime"},
    "integrations": {"integrations", "runtime", "generated", "errors"},
    "generated": set(),
}
#: They describe and measure what was built, for `signconv show`: above the pipeline.
ABOVE = {"prove/report.py", "prove/page.py", "prove/excess.py"}
#: The files of the runtime that need the extra ``cpu``.
LLVM = {
    f"runtime/cpu/{name}.py" for name in ("compile", "lanes", "pieces", "rows", "trace", "walk")
}
#: What files of the runtime need beside torch and Triton, and import when they are called for.
CALLED = {"runtime/inspect.py": {"rich"}, **{file: {"llvmlite"} for file in LLVM}}
COMPILER = (
    "dsl", "ir", "prove", "passes", "lower", "render", "specs", "pipeline", "verification", "cli",
    "bench",
)  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module a file imports, at any depth, but for type checking alone."""
    tree = ast.parse(path.read_text())
    skipped = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    ]
    hidden = {inner for n in skipped for inner in ast.walk(n)}
    found = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def parts(names: set[str]) -> set[str]:
    """signconv's own among ``names``, without the package's name."""
    return {n.removeprefix("signconv.") for n in names if n.startswith("signconv.")}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_rules(path: Path) -> None:
    allowed = ALLOWED.get(layer(path))
    if allowed is None or str(path.relative_to(PACKAGE)) in ABOVE:
        return
    for name in parts(imported(path)):
        assert any(name == a or name.startswith(f"{a}.") for a in allowed), (
            f"{path.relative_to(ROOT)} imports signconv.{name}"
        )


def test_every_layer_has_a_rule() -> None:
    """What lies above them (the command line, pipeline, verification, bench) may import all."""
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders - {"pipeline", "tuning", "verification", "bench"} <= ALLOWED.keys()


def test_only_the_command_line_imports_bench() -> None:
    """Nothing that makes or runs an optimizer may depend on what measures it."""
    importers = {
        layer(p) for p in modules() if any(n.startswith("bench") for n in parts(imported(p)))
    }
    assert importers == {"bench", "cli"}


def test_other_libraries_are_imported_by_the_adapters_alone() -> None:
    """Inside a function that names them, so that none of them is needed."""
    peers = {"flashoptim", "torchao", "bitsandbytes", "heavyball", "lion_pytorch"}
    for path in modules():
        assert not {n.partition(".")[0] for n in imported(path)} & peers, path


@pytest.mark.parametrize("path", sorted((PACKAGE / "ir").glob("*.py")), ids=lambda p: p.name)
def test_ir_imports_no_torch_and_no_templates(path: Path) -> None:
    outside = {n.partition(".")[0] for n in imported(path)}
    assert not outside & {"torch", "triton", "jinja2", "typer", "rich"}


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "runtime").rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_runtime_imports_torch_and_triton_alone(path: Path) -> None:
    """And what is loaded when it is called: llvmlite by the CPU backend, rich for a table."""
    outside = {n.partition(".")[0] for n in imported(path)} - set(sys.stdlib_module_names)
    allowed = {"torch", "triton", "signconv"}
    assert outside <= allowed | CALLED.get(str(path.relative_to(PACKAGE)), set())
    assert all(n.startswith("runtime") for n in parts(imported(path)))


#: The folders of the runtime that step (docs/architecture.md#folders) -> those they may import.
BACKENDS = {"kernel": set(), "reference": set(), "cpu": {"reference"}}


def backends_of(path: Path) -> set[str]:
    """The backends' folders that a file of the runtime imports from."""
    names = {n.split(".")[1] for n in parts(imported(path)) if n.startswith("runtime.")}
    return names & BACKENDS.keys()


def test_backends_know_nothing_of_one_another() -> None:
    for folder, allowed in BACKENDS.items():
        files = sorted((PACKAGE / "runtime" / folder).glob("*.py"))
        assert len(files) > 3
        for path in files:
            assert backends_of(path) <= {folder} | allowed, path


def test_every_backend_has_a_rule() -> None:
    folders = {p.parent.name for p in (PACKAGE / "runtime").glob("*/backend.py")}
    assert folders == BACKENDS.keys()
    assert {module.split(".")[2] for module, _ in backend.BACKENDS.values()} == folders


def test_the_optimizer_knows_the_interface_of_backends_alone() -> None:
    for name in ("optimizer.py", "backend.py"):
        assert not backends_of(PACKAGE / "runtime" / name), name


def test_llvm_is_imported_where_cpu_kernels_are_compiled() -> None:
    found = {p for p in modules() if any(n.startswith("llvmlite") for n in imported(p))}
    assert {str(p.relative_to(PACKAGE)) for p in found} == LLVM


def test_triton_is_imported_in_one_place() -> None:
    """compat.py, which works without it; and where kernels are compiled ahead of time."""
    found = {
        str(p.relative_to(PACKAGE))
        for p in modules()
        if any(n.partition(".")[0] == "triton" for n in imported(p))
    }
    assert found <= {"runtime/compat.py", "verification/aot.py"}


# ---------------------------------------------------------------- what a process loads

LOADED = """
import json, sys
import torch
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded(code: str) -> set[str]:
    done = python("-c", LOADED.format(code=code))
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


EVERY_FILE = "\n".join(f"import signconv.generated.{path_of(e).stem}" for e in GENERATED)


@pytest.mark.parametrize(
    "code",
    ["import signconv", "import signconv.runtime.optimizer", EVERY_FILE],
    ids=["signconv", "runtime", "generated"],
)
def test_an_optimizer_loads_no_compiler(code: str) -> None:
    """Beyond what torch itself may have loaded."""
    names = loaded(code)
    unwanted = {"sympy", "jinja2", "typer", "rich", "mpmath", "llvmlite", "numba"}
    assert not {n.partition(".")[0] for n in names} & unwanted
    assert not {n for n in names if n.startswith(tuple(f"signconv.{x}" for x in COMPILER))}


def test_the_command_line_starts_without_torch_and_compiler() -> None:
    """`signconv --help` should not take two seconds."""
    done = python("-c", "import sys, signconv.cli; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False"


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from signconv.runtime.compat import HAS_TRITON
from signconv.generated.adamw_stosign import AdamWStoSign
assert not HAS_TRITON
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(8, 32))
before = weight.detach().clone()
optimizer = AdamWStoSign([weight], lr=1e-3)
for _ in range(3):
    weight.grad = torch.randn(8, 32)
    optimizer.step()
print((weight.detach() - before).abs().sum().item())
try:
    AdamWStoSign([weight], backend="triton").step()
except RuntimeError as error:
    print(error)
"""
WITH_TRITON = WITHOUT_TRITON.replace('sys.modules["triton"] = None', "").replace(
    "assert not HAS_TRITON", "assert HAS_TRITON"
)


def test_without_triton_the_reference_steps() -> None:
    """macOS and Windows: same numbers, and a clear word where a kernel is asked for."""
    without = python("-c", WITHOUT_TRITON)
    assert without.returncode == 0, without.stderr[-2000:]
    moved, refusal = without.stdout.splitlines()
    assert float(moved) > 0.1
    assert "needs Triton and a GPU" in refusal
    assert python("-c", WITH_TRITON).stdout.splitlines()[0] == moved


@pytest.mark.parametrize("entry", GENERATED, ids=label)
def test_generated_files_import_as_a_user_would(entry: Entry) -> None:
    """Under the name in their docstring, from the checkout."""
    module = importlib.import_module(f"signconv.generated.{path_of(entry).stem}")
    assert Path(module.__file__) == path_of(entry)
