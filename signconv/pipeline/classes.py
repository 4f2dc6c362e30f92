"""``signconv.compile``: build into the cache and load the class."""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import sys
from dataclasses import replace
from typing import Any

from signconv.pipeline.chain import build
from signconv.pipeline.files import cache_folder, write
from signconv.pipeline.naming import DEFAULT_MATH, DEFAULT_STATE


def compile(
    spec: str, convert: str | None = None, state: str = DEFAULT_STATE, math: str = DEFAULT_MATH
) -> type:
    """Build into the user's cache and return the optimizer class.

    Instances pickle as (spec, convert, state), so a spec file must exist where they are loaded.
    Raises SignconvError as ``build`` does.
    """
    made = build(spec, convert, state, math=math)
    digest = hashlib.sha256(made.module.source.encode()).hexdigest()[:16]
    key = f"{made.module.file_name[:-3]}_{digest}"
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
