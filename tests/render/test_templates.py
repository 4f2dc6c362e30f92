"""Templates hold structure, printers hold arithmetic, and neither knows an optimizer."""

import ast
import hashlib
import json
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from signconv.passes.base import registry
from signconv.pipeline import build, builtin_names, resolve
from signconv.render import printers
from signconv.render.environment import environment
from signconv.runtime.kernel import ops as kernel_ops
from signconv.runtime.reference import ops as reference_ops
from tests.support import ROOT, python

CONFIGURATIONS = [
    (spec, convert, state)
    for spec in builtin_names()
    for convert in (None, "stosign")
    for state in ("fp8", "fp32")
    if convert is None or resolve(spec).link != "stosign"
]
TEMPLATES = sorted((ROOT / "templates").glob("*.j2"))
LAYERS = ("passes", "lower", "render")


@pytest.fixture(scope="module")
def sources() -> dict[tuple, str]:
    return {c: build(c[0], convert=c[1], state=c[2]).module.source for c in CONFIGURATIONS}


# ---------------------------------------------------------------- undefined variables


@pytest.mark.parametrize("template", [t.name for t in TEMPLATES])
def test_a_missing_variable_raises(template: str) -> None:
    with pytest.raises(UndefinedError):
        environment().get_template(template).render({})


def test_a_misspelt_variable_raises() -> None:
    with pytest.raises(UndefinedError, match="hasch"):
        environment().from_string("Program {{ hasch }}.").render({"hash": "1"})


# ---------------------------------------------------------------- nothing knows an optimizer


def own_files() -> list[Path]:
    code = [p for layer in LAYERS for p in sorted((ROOT / "signconv" / layer).glob("*.py"))]
    return [*TEMPLATES, *code]


def optimizer_names() -> set[str]:
    """Names and class names of the built-in specs, but for words that mean something else."""
    programs = {name: resolve(name) for name in builtin_names()}
    names = {*programs, *(p.name for p in programs.values())}
    return names - set(registry()) - {p.title for p in registry().values()}


def code_of(path: Path) -> str:
    """A file without what is for people: comments, docstrings and the pass's own summary."""
    text = path.read_text()
    if path.suffix == ".j2":
        return re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [b for b in body if not _is_docstring(b)] or [ast.Pass()]
        if isinstance(node, ast.keyword) and node.arg in ("summary", "requires", "provides"):
            node.value = ast.Constant("")
    return ast.unparse(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@pytest.mark.parametrize("path", own_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_template_printer_or_pass_names_an_optimizer(path: Path) -> None:
    code = code_of(path)
    found = {n for n in optimizer_names() if re.search(rf"\b{n}\b", code)}
    # A message to the user may compare with AdamW, whose step length everyone knows.
    messages = "\n".join(
        re.findall(r"'[^'\n]* [^'\n]* [^'\n]*'|\"[^\"\n]* [^\"\n]* [^\"\n]*\"", code)
    )
    found -= {n for n in found if re.search(rf"\b{n}\b", messages)}
    assert not found


@pytest.mark.parametrize("path", own_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_template_printer_or_pass_names_a_moment(path: Path) -> None:
    """As a string, or (in templates) as a word of the output that no loop variable puts there."""
    moments = {m.name for name in builtin_names() for m in resolve(name).moments}
    installed = {"G", "s"}  # the states that passes install bear these names by contract
    code = code_of(path)
    quoted = set(re.findall(r"[\"'](\w+)[\"']", code))
    assert not quoted & (moments - installed if "passes" in path.parts else moments)
    if path.suffix == ".j2":
        output = re.sub(r"\{[{%].*?[%}]\}", "#", code, flags=re.DOTALL)
        words = set(re.findall(r"(?<![\w#])[A-Za-z_]\w*(?![\w#])", output))
        assert not words & {f"{m}{end}" for m in moments for end in ("_prev", "_ptr", "_format")}
        assert not words & (moments - {"s"})  # s: the row of scalars in the kernel


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_output_compiles_and_is_tidy(configuration: tuple, sources: dict) -> None:
    source = sources[configuration]
    compile(source, "generated.py", "exec")
    assert source.endswith("\n") and not source.endswith("\n\n")
    assert not [line for line in source.splitlines() if line != line.rstrip() or "\t" in line]
    assert "{{" not in source and "{%" not in source and "Undefined" not in source


ALLOWED = re.compile(
    r"import (math|torch)$|from torch import Tensor$|from torch\.optim\.optimizer import ParamsT$"
    r"|from collections\.abc import Sequence$"
    r"|from signconv\.runtime(\.\w+)? import .*$|from __future__ import annotations$"
)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_output_imports_only_torch_and_the_runtime(configuration: tuple, sources: dict) -> None:
    imports = [
        ast.unparse(n)
        for n in ast.walk(ast.parse(sources[configuration]))
        if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    assert imports
    assert [line for line in imports if not ALLOWED.match(line)] == []


def runtime_names(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r"\b(dev|ref)\.(\w+)", text))


MODULES = {"dev": kernel_ops, "ref": reference_ops}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_runtime_names_of_the_output_exist(configuration: tuple, sources: dict) -> None:
    source = sources[configuration]
    names = runtime_names(source)
    imported = re.findall(r"^from signconv\.runtime\.\w+ import ops as (\w+)$", source, re.M)
    assert {m for m, _ in names} == set(imported)
    assert [f"{m}.{n}" for m, n in sorted(names) if not hasattr(MODULES[m], n)] == []


def test_runtime_names_of_printers_and_templates_exist() -> None:
    names = {
        pair
        for printer in vars(printers).values()
        if isinstance(printer, type)
        for pair in runtime_names(" ".join(getattr(printer, "calls", {}).values()))
    }
    for template in TEMPLATES:
        names |= runtime_names(template.read_text())
    assert len(names) > 20
    assert [f"{m}.{n}" for m, n in sorted(names) if not hasattr(MODULES[m], n)] == []


def test_elementwise_printers_have_the_same_functions() -> None:
    """A function that only one backend prints would be found by a user."""
    triton, torch_ = printers.TritonPrinter, printers.TorchPrinter
    assert set(triton.calls) == set(torch_.calls)
    assert triton.infix == torch_.infix
    scalars = printers.TritonScalarPrinter, printers.PythonScalarPrinter
    known = [set(p.calls) | set(p.infix) for p in scalars]
    assert known[0] - {"where"} == known[1] - {"where"}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_kernel_and_reference_do_the_same_statements(configuration: tuple, sources: dict) -> None:
    """``_math`` and ``_math_reference`` differ by the names of functions and by CODEC alone."""
    bodies = []
    for name in ("_math", "_math_reference"):
        tree = ast.parse(sources[configuration])
        (function,) = [
            n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name
        ]
        text = "\n".join(ast.unparse(s) for s in function.body[1:])
        text = re.sub(r"\b(tl|dev|torch|ref)\.(\w+?)(_rn)?\(", r"\2(", text)
        text = text.replace(", CODEC)", ")").replace("divide(", "div(")
        text = text.replace("_reference(", "(")
        # PyTorch's where takes no two numbers
        text = re.sub(r"\beither\(", "where(", text)
        bodies.append(text)
    assert bodies[0] == bodies[1]


# ---------------------------------------------------------------- determinism

HASHES = """
import hashlib, json, sys
from signconv.pipeline import build
sources = [build(c[0], convert=c[1], state=c[2]).module.source for c in json.loads(sys.argv[1])]
print(json.dumps([hashlib.sha256(s.encode()).hexdigest() for s in sources]))
"""


def test_same_bytes_under_another_hash_seed(sources: dict) -> None:
    some = CONFIGURATIONS[::3]
    here = [hashlib.sha256(sources[c].encode()).hexdigest() for c in some]
    for seed in ("1", "2"):
        done = python("-c", HASHES, json.dumps(some), PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == here


def test_no_path_user_or_date_in_the_output(sources: dict) -> None:
    home = str(Path.home())
    for source in sources.values():
        assert str(ROOT) not in source and home + "/" not in source
        assert not re.search(r"\b20[2-9]\d-\d\d-\d\d\b", source)


def test_spec_file_enters_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from signconv.dsl import Optimizer\n\n\nclass Mine(Optimizer):\n"
        "    lr = hyper(1.0)\n    numerator = grad\n"
    )
    source = build(f"{tmp_path / 'mine.py'}:Mine").module.source
    assert str(tmp_path) not in source
    assert "signconv build mine.py:Mine" in source
