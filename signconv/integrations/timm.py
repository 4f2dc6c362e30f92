"""timm: optimizers by name, for ``timm.optim.create_optimizer_v2`` and scripts that call it."""

from __future__ import annotations

from collections.abc import Sequence

from signconv.integrations.names import by_name
from signconv.runtime.optimizer import FusedOptimizer


def register(optimizers: Sequence[type[FusedOptimizer]] | None = None) -> list[str]:
    """Enter generated optimizers in timm's registry; returns their names there.

    optimizers: classes; None: every file of ``signconv.generated``.  A name is the class's module
    behind ``signconv-``, with hyphens: ``signconv-adamw-stosign``.  In a script of your own call it
    before the optimizer is created; timm's training script has no place for it
    (docs/using.md#other-trainers).
    """
    from timm.optim import OptimInfo
    from timm.optim._optim_factory import default_registry

    named = by_name(optimizers)
    for name, cls in named.items():
        keys = {h.key for h in cls.program.hypers}
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
    return [*named]
