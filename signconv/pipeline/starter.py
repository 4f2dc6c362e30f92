"""``signconv new``: a spec to begin with and its test, both or neither."""

from __future__ import annotations

import keyword
import shlex
import sys
import tempfile
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from signconv.dsl import __all__ as language
from signconv.errors import BuildError, SignconvError
from signconv.pipeline.chain import build
from signconv.pipeline.files import create
from signconv.render.environment import environment
from signconv.specs import builtin_names


@dataclass(frozen=True)
class Starter:
    """What ``new`` wrote: the class's name, both files, and the commands to go on with."""

    class_name: str
    spec: Path
    test: Path
    commands: tuple[str, ...]


def new(name: str, folder: Path) -> Starter:
    """Write NAME.py, which holds a working optimizer, and test_NAME.py, which passes.

    Raises BuildError, and writes nothing, where ``name`` cannot name a module and a class of its
    own, where one of the files is there, and where ``folder`` cannot be written.
    """
    class_name = _class_name(name, folder)
    spec, test = folder / f"{name}.py", folder / f"test_{name}.py"
    templates = environment()
    commands = _commands(Path(spec.name), Path(test.name), class_name)
    context = {"name": name, "class_name": class_name, "commands": commands}
    text = templates.get_template("starter/spec.py.j2").render(context)
    _try(text, name, class_name)
    create({spec: text, test: templates.get_template("starter/test.py.j2").render(context)})
    return Starter(class_name, spec, test, _commands(spec, test, class_name))


def _commands(spec: Path, test: Path, class_name: str) -> tuple[str, ...]:
    subject = shlex.quote(f"{spec}:{class_name}")
    return (
        f"python -m pytest {shlex.quote(str(test))}",
        f"signconv show {subject} --convert stosign",
        f"signconv verify {subject}",
        f"signconv build {subject} --convert stosign --out optimizers",
    )


def _class_name(name: str, folder: Path) -> str:
    """``my_adam`` as MyAdam; refuses what would not work, or would be taken for something else."""
    made = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    problem = ""
    if not (name.isidentifier() and name.isascii()):
        problem = "it has to be a Python identifier, my_adam say"
        if name.endswith(".py") and name[:-3].isidentifier():
            problem = f"leave out .py: {name[:-3]}"
        elif Path(name).name != name:
            problem = f"the folder goes into --out: {Path(name).name} --out {Path(name).parent}"
    elif keyword.iskeyword(name) or name.startswith("_"):
        problem = "it is a keyword of Python" if keyword.iskeyword(name) else "it begins with _"
    elif name.replace("_", "").lower() in {x.replace("_", "") for x in builtin_names()}:
        problem = "signconv has an optimizer of that name (signconv list)"
    elif {name, made} & {*language}:
        problem = "the language has a word of that name"
    elif _importable(name, folder):
        problem = "it would hide the Python module of that name"
    if problem:
        raise BuildError("SC318", f"{name!r} cannot name a new optimizer: {problem}")
    return made


def _importable(name: str, folder: Path) -> bool:
    """Whether a module of this name is found outside the folder and the current one."""
    here = {folder.resolve(), Path.cwd()}
    places = [p for p in sys.path if p and Path(p).resolve() not in here]
    found = PathFinder.find_spec(name, places)
    return name in sys.stdlib_module_names or (found is not None and found.loader is not None)


def _try(text: str, name: str, class_name: str) -> None:
    """Build it once, so that what is written is known to work: a class may not be called Tensor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        try:
            build(f"{path}:{class_name}")
        except SignconvError as error:
            raise BuildError(
                "SC318",
                f"{name!r} cannot name a new optimizer: its class would be {class_name}, which "
                "generated code uses itself",
            ) from error
