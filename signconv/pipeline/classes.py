"""``signconv.compile``: build into the cache, load the class, and let it pickle."""

from __future__ import annotations

import builtins
import copyreg
import hashlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.optim.optimizer import ParamsT

from signconv.errors import SpecError
from signconv.ir.nodes import DEFAULT_STATE
from signconv.pipeline.chain import build
from signconv.pipeline.files import cache_folder, write
from signconv.pipeline.naming import DEFAULT_MATH
from signconv.pipeline.resolve import Spec, named
from signconv.render.module import Module
from signconv.runtime.optimizer import FusedOptimizer

if TYPE_CHECKING:

    class CompiledOptimizer(FusedOptimizer):
        """What ``compile`` returns, to a type checker: ``hypers`` are the program's own."""

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            *,
            seed: int = 0,
            backend: str = "auto",
            maximize: bool = False,
            master: str | None = None,
            skip_nonfinite: bool = False,
            **hypers: float | Tensor | Sequence[float],
        ) -> None: ...
else:
    CompiledOptimizer = FusedOptimizer

#: Held from the build to the class, so that threads get one class and none sees half a module.
_LOADING = threading.RLock()


class Recipe(NamedTuple):
    """What a compiled class pickles as: no code, but what makes it again, and what that must be."""

    spec: Spec
    convert: str | None
    state: str
    math: str
    name: str | None
    module: str
    class_name: str
    hash: str


class _Compiled(type):
    """The class of compiled classes: copyreg decides by it how a class is pickled."""

    _recipe: Recipe


def compile(
    spec: Spec,
    *,
    convert: str | None = None,
    state: str = DEFAULT_STATE,
    math: str = DEFAULT_MATH,
    name: str | None = None,
) -> type[CompiledOptimizer]:
    """Build into the user's cache and return the optimizer class; arguments as for ``build``.

    The class and its instances pickle as these arguments and the program's hash: where they are
    loaded, a spec class must be importable and a spec file exist, and mean what it meant.
    Raises SignconvError as ``build`` does.
    """
    spec = named(spec)
    with _LOADING:
        made = build(spec, convert=convert, state=state, math=math, name=name)
        digest = hashlib.sha256(made.module.source.encode()).hexdigest()[:16]
        key = f"{made.module.file_name[:-3]}_{digest}"
        module = f"signconv_cache.{key}"
        path, _ = write(replace(made.module, file_name=f"{key}.py"), cache_folder())
        cls = _loaded(module, made.module.class_name) or _executed(made.module, module, path)
        cls._recipe = Recipe(
            spec, convert, state, math, name, module, cls.__name__, cls.program.hash
        )
    return cls


def recipe_of(cls: type) -> Recipe | None:
    """How ``compile`` made this very class; None for every other, those derived from it too."""
    recipe: Recipe | None = vars(cls).get("_recipe")
    return recipe


def _loaded(module: str, class_name: str) -> Any:
    """The class of a module that this process has executed; its name says what its text is."""
    return getattr(sys.modules.get(module), class_name, None)


def _executed(made: Module, name: str, path: Path) -> Any:
    """The class of ``made``, executed as the module ``name``."""
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    # The text just built and not the file's bytecode, which nobody has compared with it
    try:
        exec(builtins.compile(made.source, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    base = getattr(module, made.class_name)
    body = {k: getattr(base, k) for k in ("__module__", "__qualname__", "__doc__")}
    cls = _Compiled(made.class_name, (base,), body)
    setattr(module, made.class_name, cls)
    return cls


def _reduce(cls: _Compiled) -> Any:
    recipe = recipe_of(cls)
    if recipe is None:
        return cls.__qualname__  # derived from a compiled class: importable, as classes are
    spec = recipe.spec
    if not isinstance(spec, str) and not _importable(spec):
        raise SpecError(
            "SC508",
            f"{cls.__name__} cannot be pickled: the class it was compiled from is not found as "
            f"{spec.__module__}.{spec.__qualname__}; define it once, at the top level of a module, "
            "or save state_dict()",
        )
    return _again, tuple(recipe)


def _importable(cls: type) -> bool:
    """Whether pickle would find this class under its name."""
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is cls


def _again(*recipe: Any) -> type[CompiledOptimizer]:
    """The class of a recipe: the one this process has, or one built anew if it means the same."""
    r = Recipe(*recipe)
    with _LOADING:
        cls = _loaded(r.module, r.class_name)
    if cls is None:
        cls = compile(r.spec, convert=r.convert, state=r.state, math=r.math, name=r.name)
    if cls.program.hash != r.hash:
        shown = r.spec if isinstance(r.spec, str) else f"{r.spec.__module__}.{r.spec.__qualname__}"
        raise SpecError(
            "SC509",
            f"{shown} has changed since this was pickled: it is program {cls.program.hash} now and "
            f"was {r.hash}, so the pickled moments mean something else; restore it as it was, or "
            "start with fresh state",
        )
    return cls


copyreg.pickle(_Compiled, _reduce)
