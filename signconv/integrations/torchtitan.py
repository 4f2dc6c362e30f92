"""torchtitan: its container of optimizers, whose groups may name generated ones.

In a Trainer.Config:

    group = ParamGroupConfig(
        pattern=r".*",
        optimizer_name="signconv-adamw-stosign",
        optimizer_kwargs={"lr": 8e-4, "weight_decay": 0.1},
    )
    optimizer = OptimizersContainer.Config(param_groups=[group])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torchtitan.components import optimizer as titan

from signconv.integrations.names import optimizer_class


class OptimizersContainer(titan.OptimizersContainer):
    """torchtitan's ``OptimizersContainer``, with more names for ``optimizer_name``.

    ``signconv-adamw-stosign`` is ``signconv.generated.adamw_stosign``; a name with dots,
    ``my_package.adams.AdamS``, is imported; all others are torchtitan's.  Checkpoints hold codes
    and scales as they are stored, and go to any other number of ranks.

    Raises ValueError for a name that is none of these.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(titan.OptimizersContainer.Config):
        """That of torchtitan; its ``implementation`` says nothing to generated optimizers."""

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Optimizer]:
        found = optimizer_class(name)
        if found is None:
            return titan.OptimizersContainer._resolve_optimizer_factory(name)
        return found
