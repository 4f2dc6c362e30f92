"""Long lines are broken as ``ruff format`` breaks them, and mean what they meant."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from signconv.ir.nodes import Const, Expr, Op, Ref
from signconv.pipeline import build
from signconv.render import layout
from signconv.render.printers import PythonScalarPrinter, TorchPrinter, TritonPrinter
from tests.support import ROOT


def formatted(text: str, folder: Path) -> str:
    path = folder / "made.py"
    path.write_text(text)
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", str(path)]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path.read_text()


def same_meaning(a: str, b: str) -> bool:
    trees = [ast.dump(ast.parse(textwrap.dedent(x))) for x in (a, b)]
    return trees[0] == trees[1]


# ---------------------------------------------------------------- expressions

NAMES = ["p", "g", "m_prev", "one_minus_beta2", "momentum_of_order_three", "x" * 40]
FUNCTIONS = [
    ("add", 2), ("sub", 2), ("mul", 2), ("div", 2), ("max", 2), ("sqrt", 1), ("abs", 1),
    ("where", 3), ("neg", 1),
]  # fmt: skip


def expression(r: random.Random, depth: int) -> Expr:
    if depth == 0 or r.random() < 0.15:
        if r.random() < 0.2:
            return Const(r.choice([0.5, -1.5, 2.0, 1e-8]))
        return Ref("local", r.choice(NAMES))
    fn, n = r.choice(FUNCTIONS)
    args = [expression(r, depth - 1) for _ in range(n)]
    if fn == "where":
        args[0] = Op(r.choice(["lt", "ge", "eq"]), (args[0], expression(r, depth - 1)))
    return Op(fn, tuple(args))


@pytest.mark.parametrize("printer", [TritonPrinter, TorchPrinter, PythonScalarPrinter])
def test_random_statements_stand_as_ruff_leaves_them(printer: type, tmp_path: Path) -> None:
    r = random.Random(5)
    functions = []
    for i in range(400):
        target = f"t{i}" if r.random() < 0.8 else "target_" * r.randint(1, 5) + "z"
        code = printer().whole(expression(r, r.randint(1, 5)))
        made = layout.statement(4, target, code)
        assert same_meaning(made, f"{target} = {code}")
        functions.append(f"def f{i}():\n{made}\n")
    text = "\n\n".join(functions)
    assert sum("\n" in f[:-1].split(":\n")[1] for f in functions) > 60  # enough of them are long
    assert formatted(text, tmp_path) == text


def test_a_comment_stands_beside_or_above() -> None:
    assert layout.statement(4, "x", "a + b", "the sum") == "    x = a + b  # the sum"
    long = "words " * 15
    above = layout.statement(4, "x", "a + b", long.strip())
    assert above == f"    # {long.strip()}\n    x = a + b"


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("(a if c else b)", "a if c else b"),
        ("((a + b))", "a + b"),
        ("(a + b) * (c + d)", "(a + b) * (c + d)"),
        ("f(a)", "f(a)"),
        ("(a", "(a"),
    ],
)
def test_parentheses_around_the_whole_go(code: str, kept: str) -> None:
    assert layout.bare(code) == kept


@pytest.mark.parametrize("terms", [300, 1500])
def test_long_sums(terms: int) -> None:
    code = " + ".join(f"dev.sqrt(a{i}, CODEC)" for i in range(terms))
    made = layout.statement(4, "x", code)
    lines = made.split("\n")
    assert (lines[0], lines[-1]) == ("    x = (", "    )")
    assert " ".join(line.strip() for line in lines[1:-1]) == code


@pytest.mark.parametrize(
    "code", [" + ".join(["a"] * 50_000), "f(" * 300 + "x" + ")" * 300, "a +" + " " * 120]
)
def test_what_python_cannot_parse_comes_back(code: str) -> None:
    assert layout.fitted(f"    x = {code}") == f"    x = {code}"


# ---------------------------------------------------------------- statements of templates

LONG = [f"a_name_of_some_length_{i}" for i in range(6)]
DEFAULTS = (0.5, 0.52, 0.54, 0.56, 0.58, 0.625)
MODULE = f"""\
def f(
    {LONG[0]}: int,
    *,
    betas: tuple[float, float, float, float, float, float] = {DEFAULTS},
):
    "{"a docstring stays as it is, " * 6}too."
    {", ".join(LONG)} = f(
        a,
        b,
    )
    {", ".join(LONG)} = f(a, b)
    p, m = f({", ".join(LONG)})
    {LONG[0]} += {" * ".join(LONG)}
    f({LONG[0]} + {LONG[1]}, {LONG[2]}, key={LONG[3]}, other=({LONG[4]}, {LONG[5]}))
    left = {LONG[0]}[:, None] + f({LONG[1]}, {LONG[2]}, {LONG[3]}).to({LONG[4]})
    left = ({LONG[0]} + {LONG[1]}) * ({LONG[2]} + {LONG[3]}) - f()
    g(
        HyperSlot("{LONG[0]}", 0.9, "betas", index=0, ge=0.0000001234, lt=123456.789),
        memory=(("{LONG[0]}", 1.0), ("{LONG[1]}", 1.0), ("{LONG[2]}", 1.0)),
    )
    return {", ".join(LONG)}
"""


def test_statements_of_templates_stand_as_ruff_leaves_them(tmp_path: Path) -> None:
    made = layout.fitted(MODULE)
    assert same_meaning(made, MODULE)
    long = [line for line in made.split("\n") if len(line) > layout.WIDTH]
    assert [line.strip()[:12] for line in long] == ['"a docstring']
    assert formatted(made, tmp_path) == made


def test_what_fits_is_not_touched() -> None:
    text = "x = (  a )\ny = f(a,\n  b)\n"
    assert layout.fitted(text) == text


SPECS = {
    "four moments of 18 letters": ("momentum_of_order_", 4),
    "18 moments": ("m", 18),
    "names of 64 letters": ("a_moment_whose_name_is_quite_long_indeed_and_goes_on_for_ever_", 2),
}


@pytest.mark.parametrize("case", SPECS)
def test_modules_with_many_or_long_names(case: str, tmp_path: Path) -> None:
    stem, n = SPECS[case]
    lines = ["lr = hyper(1e-2, ge=0)"]
    lines += [f"beta{i + 1} = hyper({0.5 + i / 50}, ge=0, lt=1)" for i in range(n)]
    lines += [f"{stem}{i} = ema(grad, beta{i + 1})" for i in range(n)]
    lines += ["update = " + " + ".join(f"{stem}{i}" for i in range(n))]
    body = textwrap.indent("\n".join(lines), "    ")
    (tmp_path / "mine.py").write_text(
        f"from signconv.dsl import *\n\n\nclass Mine(Optimizer):\n{body}\n"
    )
    source = build(f"{tmp_path / 'mine.py'}:Mine").module.source
    assert formatted(source, tmp_path) == source


def test_no_pattern_reads_code() -> None:
    """Layout goes by the tree: neither regular expressions nor searches for names of functions."""
    for path in (ROOT / "signconv" / "render").glob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert "re" not in imported, path.name
