"""What the user named: a built-in spec, a class in a file or a module, or the class itself."""

from __future__ import annotations

import contextlib
import dis
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType

from signconv.dsl.optimizer import PREBOUND, Optimizer
from signconv.errors import Origin, SignconvError, SpecError, nearest
from signconv.ir.nodes import Program
from signconv.specs import builtin_names

#: What names an optimizer: a string, or the class that describes it.
Spec = str | type[Optimizer]


def named(spec: Spec) -> Spec:
    """The built-in name for a built-in's class; SpecError for what names no optimizer."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, type) and issubclass(spec, Optimizer) and spec is not Optimizer:
        package, _, name = spec.__module__.rpartition(".")
        return name if package == "signconv.specs" else spec
    raise SpecError(
        "SC101",
        f"{getattr(spec, '__name__', None) or repr(spec)} describes no optimizer: give a subclass "
        'of signconv.dsl.Optimizer, or a string ("adamw", "path/to/file.py:Name")',
    )


def resolve(spec: Spec) -> Program:
    """The Program that a SPEC names; SpecError with the user's file and line where it fails."""
    spec = named(spec)
    if not isinstance(spec, str):
        return spec.program
    if ":" in spec:
        where, _, name = spec.rpartition(":")
        if not name.isidentifier():
            raise SpecError(
                "SC103", f"{spec!r}: after the colon comes the name of an optimizer class"
            )
        return _pick(load(where), name, where)
    if spec.endswith(".py"):
        found = ", ".join(f"{spec}:{n}" for n in sorted(_optimizers(_load_file(Path(spec)))))
        raise SpecError(
            "SC104", f"{spec!r} names a file; name the optimizer in it: {found or spec + ':Name'}"
        )
    if spec not in builtin_names():
        raise SpecError("SC102", f"unknown optimizer {spec!r}; {nearest(spec, builtin_names())}")
    module = importlib.import_module(f"signconv.specs.{spec}")
    (program,) = _optimizers(module).values()
    return replace(program, key=spec)


def _pick(module: ModuleType, name: str, where: str) -> Program:
    found = _optimizers(module)
    if name not in found:
        raise SpecError("SC105", f"{where} defines no optimizer {name!r}; {nearest(name, found)}")
    return found[name]


def _optimizers(module: ModuleType) -> dict[str, Program]:
    return {
        name: value.program
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }


def load(where: str) -> ModuleType:
    """The module in a user's file, ``path/to/file.py``, or of this name; SpecError with the user's
    line where it cannot be imported."""
    return _load_file(Path(where)) if where.endswith(".py") else _load_module(where)


def _load_module(name: str) -> ModuleType:
    found = None
    with contextlib.suppress(Exception, SystemExit):
        found = importlib.util.find_spec(name)
    with _user_errors(found.origin if found and found.origin else name):
        return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SpecError("SC106", f"there is no file {str(path)!r}")
    made = importlib.util.spec_from_file_location(f"signconv_user_{path.stem}", path)
    assert made is not None and made.loader is not None
    module = importlib.util.module_from_spec(made)
    known = sys.modules.get(made.name)
    sys.modules[made.name] = module  # where dataclasses look for what their annotations name
    try:
        with _user_errors(str(path)):
            made.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(made.name)
        if known is not None:
            sys.modules[made.name] = known
        raise
    return module


@contextlib.contextmanager
def _user_errors(where: str) -> Iterator[None]:
    """Turn whatever goes wrong in the user's file into a SpecError with its line."""
    try:
        yield
    except SignconvError:
        raise
    except SyntaxError as error:
        raise SpecError(
            "SC108",
            f"syntax error: {error.msg}",
            Origin(error.filename or where, error.lineno or 0),
        ) from error
    except NameError as error:
        name = error.name or ""
        if _bound_below(error, name):
            words = (
                f"{name!r} is read above the line that binds it: a moment whose input reads its "
                f"own last value is {name} = state(), then {name}.next = …"
            )
        else:
            known = {*PREBOUND, *((name and _class_names(error)) or ())}
            words = f"undefined symbol {name!r}; {nearest(name, known)}"
        raise SpecError("SC109", words, _line_of(error, where)) from error
    except ModuleNotFoundError as error:
        raise SpecError(
            "SC107", f"there is no module {error.name!r}", _line_of(error, where)
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a spec does not end its reader
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise SpecError("SC110", words, _line_of(error, where)) from error


def _line_of(error: BaseException, where: str) -> Origin | None:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == where or Path(frame.filename) == Path(where).absolute():
            return Origin(frame.filename, frame.lineno or 0)
    ours = str(Path(__file__).parents[1])
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((ours, "<")):
            return Origin(frame.filename, frame.lineno or 0)
    return None


def _frame(error: BaseException) -> FrameType | None:
    """Where it was raised: the class body, for a name."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame


def _class_names(error: BaseException) -> list[str]:
    frame = _frame(error)
    return [] if frame is None else [n for n in frame.f_locals if not n.startswith("_")]


def _bound_below(error: BaseException, name: str) -> bool:
    """Whether the body that did not know the name binds it, which it had not done yet."""
    frame = _frame(error)
    if frame is None or name in frame.f_locals:
        return False
    return any(
        i.opname == "STORE_NAME" and i.argval == name for i in dis.get_instructions(frame.f_code)
    )
