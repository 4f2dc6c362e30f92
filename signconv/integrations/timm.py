"""timm: optimizers by name, for ``timm.optim.create_optimizer_v2`` and scripts that call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from signconv.runtime.optimizer import FusedOptimizer


def register(optimizers: Sequence[type[FusedOptimizer]] | None = None) -> list[str]:
    """Enter generated optimizers in timm's registry; returns their names there.

    optimizers: classes; None: every file of ``signconv.generated``.  A name is the class's module
    behind ``signconv-``, with hyphens, since timm reads what is before an underscore as a wrapper
    (``lookahead_…``): ``signconv-adamw-stosign``.  In a script of your own call it
    before the optimizer is created; timm's training script has no place for it
    (docs/using.md#other-trainers).
    """
    from timm.optim import OptimInfo
    from timm.optim._optim_factory import default_registry

    names = []
    for cls in optimizers if optimizers is not None else _generated():
        keys = {h.key for h in cls.program.hypers}
        module = cls.__module__.rpartition(".")[2]
        name = f"signconv-{module.replace('_', '-')}"
        betas = sum(h.key == "betas" for h in cls.program.hypers)
        default_registry.register(
            OptimInfo(
                name=name,
                opt_class=cls,
                description=f"signconv's {cls.__name__}",
                has_eps="eps" in keys,
                has_momentum="momentum" in keys,
                has_betas=betas > 0,
                num_betas=betas or 2,
            )
        )
        names.append(name)
    return names


def _generated() -> list[Any]:
    import importlib
    import inspect
    import pkgutil

    from signconv import generated

    found = []
    for module in pkgutil.iter_modules(generated.__path__, "signconv.generated."):
        for x in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(x) and issubclass(x, FusedOptimizer) and x is not FusedOptimizer:
                found.append(x)
    return found
