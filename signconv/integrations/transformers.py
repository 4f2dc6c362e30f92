"""Hugging Face Trainer: the state's health in its log."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from signconv.integrations.health import MOST, metrics


class HealthCallback(TrainerCallback):
    """Logs ``signconv.inspect`` by parameter name, every ``every`` steps and at the end.

    Trainer(..., callbacks=[HealthCallback(every=100)]).  The optimizer may be wrapped (accelerate).
    """

    def __init__(self, every: int = 500, most: int = MOST) -> None:
        self.every, self.most = every, most
        self.found: dict[str, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self.found = metrics(kwargs["optimizer"], kwargs.get("model"), self.most)
            control.should_log = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        logs |= self.found
        if state.log_history:
            state.log_history[-1] |= self.found
        self.found = {}
