"""The whole chain, from what the user names to a file: resolve, convert, lower, render, write."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.util
import keyword
import os
import pkgutil
import re
import sys
import tempfile
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from signconv.dsl.optimizer import PREBOUND, Optimizer
from signconv.errors import BuildError, Origin, SignconvError, SpecError, nearest
from signconv.ir.nodes import Program
from signconv.ir.verify import verify
from signconv.lower import lower
from signconv.lower.kernel_program import KernelProgram
from signconv.passes.base import Request, canonical, parse, registry, transform
from signconv.render.emit import Module, program_hash, render

DEFAULT_STATE = "fp8"
DEFAULT_MATH = "fp32"


@dataclass(frozen=True)
class Build:
    """One optimizer, built: the program before and after all passes, lowered, and its module."""

    spec: str
    base: Program
    program: Program
    kernel: KernelProgram
    module: Module

    @property
    def command(self) -> str:
        return _command(
            self.spec, self.program.history, self.kernel.state, math=self.kernel.precision
        )


def build(
    spec: str,
    convert: str | None = None,
    state: str = DEFAULT_STATE,
    name: str | None = None,
    math: str = DEFAULT_MATH,
) -> Build:
    """Build one optimizer in memory.

    spec: a built-in name, ``path/to/file.py:Name`` or ``package.module:Name``; convert: passes,
    comma-separated; state: fp8, fp8-raw, bf16 or fp32; name: class name, default from spec and
    passes; math: fp32, or bf16: every operation rounded to bf16.
    Raises SignconvError (one line for people) for anything that is not valid.
    """
    if not isinstance(spec, str) or not isinstance(convert, str | None):
        raise SpecError(
            "SC101",
            'an optimizer is named by a string ("adamw", "path/to/file.py:Name"), passes by '
            'one, comma-separated ("soft:p=3,stosign")',
        )
    requests = canonical(requests_of(convert))
    base = resolve(spec)
    program = apply_passes(base, requests)
    kernel = lower(program, state, math)
    class_name, stem = _names(program, requests, state, math, name)
    label = _spec_label(spec)
    module = render(
        kernel, class_name, f"{stem}.py", label, _command(label, program.history, state, name, math)
    )
    return Build(label, base, program, kernel, module)


def requests_of(convert: str | None) -> list[Request]:
    """``soft:p=3,nesterov`` as requests, in the order typed."""
    return [parse(part) for part in convert.split(",")] if convert else []


def apply_passes(p: Program, requests: list[Request]) -> Program:
    """Apply passes in the order given, checking the program after each."""
    for request in requests:
        p = verify(transform(p, request))
    return p


# ---------------------------------------------------------------- what the user named


def builtin_names() -> list[str]:
    """Names of the built-in specs."""
    import signconv.specs as package

    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


def resolve(spec: str) -> Program:
    """The Program that a SPEC names; SpecError with the user's file and line where it fails."""
    if ":" in spec:
        where, _, name = spec.rpartition(":")
        if not name.isidentifier():
            raise SpecError(
                "SC103", f"{spec!r}: after the colon comes the name of an optimizer class"
            )
        module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
        return _pick(module, name, where)
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


def _pick(module: Any, name: str, where: str) -> Program:
    found = _optimizers(module)
    if name not in found:
        raise SpecError("SC105", f"{where} defines no optimizer {name!r}; {nearest(name, found)}")
    return found[name]


def _optimizers(module: Any) -> dict[str, Program]:
    return {
        name: value.program
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }


def _load_module(name: str) -> Any:
    found = None
    with contextlib.suppress(Exception, SystemExit):
        found = importlib.util.find_spec(name)
    with _user_errors(found.origin if found and found.origin else name):
        return importlib.import_module(name)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise SpecError("SC106", f"there is no file {str(path)!r}")
    made = importlib.util.spec_from_file_location(f"signconv_user_{path.stem}", path)
    assert made is not None and made.loader is not None
    module = importlib.util.module_from_spec(made)
    with _user_errors(str(path)):
        made.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _user_errors(where: str) -> Any:
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
        known = {*PREBOUND, *((error.name and _class_names(error)) or ())}
        hint = nearest(error.name or "", known)
        raise SpecError(
            "SC109", f"undefined symbol {error.name!r}; {hint}", _line_of(error, where)
        ) from error
    except ModuleNotFoundError as error:
        raise SpecError(
            "SC107", f"there is no module {error.name!r}", _line_of(error, where)
        ) from error
    except (Exception, SystemExit) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise SpecError("SC110", words, _line_of(error, where)) from error


def _line_of(error: BaseException, where: str) -> Origin | None:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == where or Path(frame.filename) == Path(where).absolute():
            return Origin(frame.filename, frame.lineno or 0)
    ours = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((ours, "<")):
            return Origin(frame.filename, frame.lineno or 0)
    return None


def _class_names(error: BaseException) -> list[str]:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return [] if trace is None else [n for n in trace.tb_frame.f_locals if not n.startswith("_")]


# ---------------------------------------------------------------- what the result is called


def _names(
    p: Program, requests: list[Request], state: str, math: str, name: str | None
) -> tuple[str, str]:
    passes = registry()
    titles, stems = [p.name], [p.key]
    for r in requests:
        values = "".join(v if len(k) == 1 else k + v for k, v in r.options)
        values = re.sub(r"[^0-9a-zA-Z]", "p", values)
        titles.append(passes[r.name].title + "".join(_title(k, v) for k, v in r.options))
        stems.append(r.name + values)
    if state != DEFAULT_STATE:
        titles.append(state.upper().replace("-", ""))
        stems.append(state.replace("-", ""))
    if math != DEFAULT_MATH:
        titles.append(f"Math{math.upper()}")
        stems.append(f"math{math}")
    if name is not None and (
        not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name)
    ):
        raise BuildError("SC307", f"--name {name!r} is not a class name")
    stem = "_".join(stems) if name is None else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return name or "".join(titles), stem


def _spec_label(spec: str) -> str:
    """The spec as it enters the file: no folder of this machine."""
    where, colon, name = spec.rpartition(":")
    return f"{Path(where).name}{colon}{name}" if where.endswith(".py") else spec


def _title(key: str, value: str) -> str:
    """An option in a class name: p=3 is 3, eps=keep is EpsKeep."""
    shown = re.sub(r"[^0-9a-zA-Z]", "p", value)
    return shown if len(key) == 1 else key.title() + shown.title()


def _command(
    spec: str,
    history: tuple[str, ...],
    state: str,
    name: str | None = None,
    math: str = DEFAULT_MATH,
) -> str:
    parts = ["signconv build", spec]
    parts += [f"--convert {','.join(history)}"] if history else []
    parts += [f"--state {state}"] if state != DEFAULT_STATE else []
    parts += [f"--math {math}"] if math != DEFAULT_MATH else []
    parts += [f"--name {name}"] if name else []
    return " ".join(parts)


# ---------------------------------------------------------------- files


def write(module: Module, folder: Path) -> tuple[Path, bool]:
    """Write a module atomically; returns its path and whether the bytes changed.

    Whenever this process is killed, the target is the old file or the new one; what it leaves
    beside the target is swept by the next call.  Raises BuildError where the folder cannot be
    written; then nothing is left behind.
    """
    path = folder / module.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        if path.is_file() and path.read_bytes() == module.source.encode():
            return path, False
        for attempts_left in (2, 1, 0):
            try:
                _replace(path, module.source)
                break
            except FileNotFoundError:  # swept by another process before it was locked
                if not attempts_left:
                    raise
    except OSError as error:
        raise BuildError("SC308", f"cannot write {path}: {error.strerror or error}") from error
    return path, True


#: Ends the names of files that are being written.
UNFINISHED = ".signconv-tmp"


def _replace(path: Path, source: str) -> None:
    """Write ``source`` beside ``path`` and move it over it."""
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED
    )
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            _lock(file.fileno())
            file.write(source)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _lock(handle: int) -> bool:
    """Mark a file as being written until it is closed, be it by the death of the process."""
    if sys.platform == "win32":
        return False  # what killed builds leave stays there
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sweep(folder: Path) -> None:
    """Remove what killed builds left in ``folder``: unfinished files that nobody holds."""
    for stray in folder.glob(f".*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            handle = os.open(stray, os.O_RDWR)
            try:
                if _lock(handle):
                    os.unlink(stray)
            finally:
                os.close(handle)


def cache_folder() -> Path:
    """The user's private folder for optimizers built at run time: what lies there is executed.

    Its mode is set to 0700 where it was wider.  Raises BuildError where it cannot be made, and
    where it, or a link that leads to it, belongs to somebody else.
    """
    base = os.environ.get("SIGNCONV_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "signconv"
    )
    folder = Path(base)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "geteuid"):
            for info in (os.lstat(folder), os.stat(folder)):
                if info.st_uid != os.geteuid():
                    raise BuildError(
                        "SC606",
                        f"the cache folder {folder} belongs to another user, who could put code "
                        "there: set SIGNCONV_CACHE to a folder of your own",
                    )
            if os.stat(folder).st_mode & 0o077:
                os.chmod(folder, 0o700)
    except OSError as error:
        raise BuildError(
            "SC607",
            f"cannot make the cache folder {folder}: {error.strerror}; set SIGNCONV_CACHE to a "
            "folder that can be written",
        ) from error
    return folder


def compile(
    spec: str, convert: str | None = None, state: str = DEFAULT_STATE, math: str = DEFAULT_MATH
) -> type:
    """Build into the user's cache and return the optimizer class.

    Instances pickle as (spec, convert, state), so a spec file must exist where they are loaded.
    Raises SignconvError as ``build`` does.
    """
    made = build(spec, convert, state, math=math)
    key = f"{made.module.file_name[:-3]}_{program_hash(made.kernel)}"
    full = f"signconv_cache.{key}"
    path, changed = write(replace(made.module, file_name=f"{key}.py"), cache_folder())
    if full in sys.modules and not changed:
        return getattr(sys.modules[full], made.module.class_name)
    found = importlib.util.spec_from_file_location(full, path)
    assert found is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[full] = module
    # The text just built and not the file's bytecode, which nobody has compared with it
    try:
        exec(builtins.compile(made.module.source, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[full]
        raise
    cls: type = getattr(module, made.module.class_name)
    cls.__reduce_ex__ = _reduce  # type: ignore[assignment]
    cls._recipe = (spec, convert, state, math)  # type: ignore[attr-defined]
    return cls


def _reduce(self: Any, protocol: int) -> Any:
    return _rebuild, (type(self)._recipe,), self.__getstate__()


def _rebuild(recipe: tuple[str, str | None, str, str]) -> Any:
    cls = compile(*recipe)
    return object.__new__(cls)
