"""Generated optimizers by name, for libraries whose configuration is text."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from signconv.errors import nearest
from signconv.runtime.errors import coded
from signconv.runtime.optimizer import FusedOptimizer

PREFIX = "signconv-"


def by_name(optimizers: Sequence[type[FusedOptimizer]] | None = None) -> dict[str, Any]:
    """Classes by name, ``signconv-adamw-stosign``; None: every file of ``signconv.generated``.

    Hyphens, since timm reads what is before an underscore as a wrapper (``lookahead_…``).
    """
    made = {}
    for cls in optimizers if optimizers is not None else _generated():
        module = cls.__module__.rpartition(".")[2]
        made[PREFIX + module.replace("_", "-")] = cls
    return made


def optimizer_class(name: str) -> type[Optimizer] | None:
    """The class of a name of ``by_name``, or of a whole path, ``my_package.adams.AdamS``.

    None for any other name.  Raises ValueError where there is no such class.
    """
    if name.startswith(PREFIX):
        known = by_name()
        if name not in known:
            raise coded(
                ValueError,
                "SC452",
                f"no generated optimizer is called {name!r}; {nearest(name, [*known])}",
            )
        return known[name]
    module, dot, attribute = name.rpartition(".")
    if not dot:
        return None
    try:
        found: Any = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, TypeError, ValueError) as problem:
        raise coded(
            ValueError, "SC452", f"optimizer {name!r} cannot be imported: {problem}"
        ) from problem
    if not (inspect.isclass(found) and issubclass(found, Optimizer)):
        raise coded(
            ValueError, "SC452", f"optimizer {name!r}: {module} has no such optimizer class"
        )
    return found


def _generated() -> list[Any]:
    from signconv import generated

    found = []
    for module in pkgutil.iter_modules(generated.__path__, "signconv.generated."):
        for x in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(x) and issubclass(x, FusedOptimizer) and x is not FusedOptimizer:
                found.append(x)
    return found
