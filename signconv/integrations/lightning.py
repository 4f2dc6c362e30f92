"""Lightning: the state's health in its loggers."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from signconv.integrations.health import MOST, metrics


class HealthCallback(Callback):
    """Logs ``signconv.inspect`` by parameter name, every ``every`` steps.

    Trainer(callbacks=[HealthCallback(every=100)]).  Of several optimizers the first of this library
    is logged.
    """

    def __init__(self, every: int = 500, most: int = MOST) -> None:
        self.every, self.most = every, most

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step % self.every:
            return
        for optimizer in trainer.optimizers:
            if hasattr(optimizer, "program"):
                pl_module.log_dict(metrics(optimizer, pl_module, self.most))
                return
