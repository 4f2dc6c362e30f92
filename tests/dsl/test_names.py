"""A spec's names against the names that the generated code uses for itself.

A spec is built with the name ``qqq``.  For every other identifier of the generated functions we
ask whether writing it instead of ``qqq`` would capture a variable: whether some load would then
see what the other side stored.  Such a name has to be refused, with the user's line.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from signconv.errors import BuildError, SpecError
from signconv.pipeline import Build, build
from signconv.runtime.groups import META
from tests.support import spec_file

TEMPLATE = """\
{h} = hyper(0.99, ge=0, lt=1)
{m} = ema(grad, 0.9)
{v} = ema(grad**2, {h})
{k} = 1 - {h}**t
{c} = {m} / {k} + {m}.prev
numerator = {c} - {m}.prev * {k}
denominator = sqrt({v}) + 1
"""
NAMES = {"h": "hh", "m": "mm", "v": "vv", "c": "cc", "k": "kk"}
KINDS = {
    "h": "hyperparameter",
    "m": "moment",
    "v": "denominator's moment",
    "c": "temporary",
    "k": "scalar temporary",
}

Event = tuple[str, str]  # "load" or "store", identifier


def events(node: ast.AST) -> Iterator[Event]:
    """Loads and stores of names in the order in which they happen; annotations left out."""
    if isinstance(node, ast.Assign | ast.AugAssign):
        yield from events(node.value)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from events(target)
    elif isinstance(node, ast.Name):
        yield ("store" if isinstance(node.ctx, ast.Store) else "load", node.id)
    elif isinstance(node, ast.FunctionDef):
        everything = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        everything += [a for a in (node.args.vararg, node.args.kwarg) if a]
        for a in everything:
            yield "store", a.arg
        for statement in node.body:
            yield from events(statement)
    else:
        for child in ast.iter_child_nodes(node):
            yield from events(child)


def functions(source: str) -> dict[str, list[Event]]:
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = list(events(node))
    return found


def renamed(sequence: list[Event], new: str) -> list[Event]:
    return [(what, name.replace("qqq", new)) for what, name in sequence]


def captures(sequence: list[Event], new: str) -> bool:
    """Whether writing ``new`` for ``qqq`` changes what some load sees."""
    local = {name for what, name in renamed(sequence, new) if what == "store"}
    owner: dict[str, str] = {}
    loaded = False
    for (what, name), (_, old) in zip(renamed(sequence, new), sequence):
        if what == "store":
            if not loaded and owner.get(name, old) != old:
                return True  # two arguments of one name
            owner[name] = old
        elif name in local and owner.get(name) != old:
            return True
        loaded |= what == "load"
    return False


def accepted(folder: Path, kind: str, name: str) -> Build | None:
    """The build with ``name``, or None where the DSL refuses it."""
    try:
        return build(spec_file(folder, TEMPLATE.format(**NAMES | {kind: name})).spec)
    except SpecError:
        return None


def clashes(folder: Path, kind: str, name: str, made: dict[str, list[Event]]) -> bool:
    """Whether ``name`` is accepted, would be captured, and the compiler did not step aside."""
    if not any(captures(sequence, name) for sequence in made.values()):
        return False
    try:
        other = accepted(folder, kind, name)
    except BuildError:  # one argument list with the same name twice
        return True
    return other is not None and functions(other.module.source) == {
        function: renamed(sequence, name) for function, sequence in made.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_the_generated_code_are_refused(kind: str, tmp_path: Path) -> None:
    made_with_qqq = accepted(tmp_path, kind, "qqq")
    assert made_with_qqq is not None
    made = functions(made_with_qqq.module.source)
    names = {name for sequence in made.values() for _, name in sequence if "qqq" not in name}
    bad = [name for name in sorted(names) if clashes(tmp_path, kind, name, made)]
    assert not bad, f"as name of a {KINDS[kind]}: {', '.join(bad)}"


@pytest.mark.parametrize("name", [*META, "param_names"])
def test_keys_of_a_param_group_are_no_hyperparameters(name: str, tmp_path: Path) -> None:
    assert accepted(tmp_path, "h", name) is None


@pytest.mark.parametrize("name", ["mm_scale", "step", "offset"])
def test_keys_of_state_are_no_moments(name: str, tmp_path: Path) -> None:
    """mm_scale would share a key with the block scales of mm."""
    assert accepted(tmp_path, "v", name) is None


def test_a_name_that_only_looks_dangerous_is_fine(tmp_path: Path) -> None:
    assert all(accepted(tmp_path, kind, name) for kind in KINDS for name in ("x", "rate", "v2"))
