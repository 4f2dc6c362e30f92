"""The API reference: which objects, in which order; mkdocstrings fills in their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import signconv
import signconv.dsl
from signconv import errors
from signconv.dsl import functions

OPTIMIZER = """\
# Optimizers

What every generated class has, beside its own hyperparameters; each is a `torch.optim.Optimizer`.

::: signconv.runtime.optimizer.FusedOptimizer
    options:
      members: [add_param_group, step, eval, train, state_dict, load_state_dict, load_moments,
        load_torch_adamw, torch_state_dict, master_weights, load_master_weights, skipped_steps,
        frozen]
"""
#: Left out: what needs another library to be imported, which griffe does not; it only reads files.
INTEGRATIONS = ("names.by_name", "names.optimizer_class", "health.metrics", "timm.register",
                "transformers.HealthCallback", "lightning.HealthCallback",
                "torchtitan.OptimizersContainer")  # fmt: skip


def pages() -> Iterator[tuple[Path, str]]:
    """Every page of the reference: where it goes, and its text."""
    top = [f"signconv.{n}" for n in signconv.__all__ if not n.startswith("_")]
    words = "Functions of the package, imported from `signconv` itself: `signconv.compile`."
    yield Path("api/signconv.md"), _page("signconv", words, [*top, "signconv.pipeline.Build"])
    yield Path("api/optimizer.md"), OPTIMIZER
    own = [n for n in signconv.dsl.__all__ if inspect.isfunction(getattr(functions, n, None))]
    words = "What a class body is written with, from `signconv.dsl`; [the language](../dsl.md) has "
    words += "all of it, with examples."
    listed = [f"signconv.dsl.{n}" for n in own]
    yield Path("api/dsl.md"), _page("signconv.dsl", words, listed)
    words = "Each module needs the library that it is named after; [how](../using.md)."
    listed = [f"signconv.integrations.{n}" for n in INTEGRATIONS]
    yield Path("api/integrations.md"), _page("signconv.integrations", words, listed)
    words = "What is raised; every message ends in a [code](../errors.md)."
    classes = [
        n for n, x in vars(errors).items() if inspect.isclass(x) and issubclass(x, Exception)
    ]
    yield (
        Path("api/errors.md"),
        _page("signconv.errors", words, [f"signconv.errors.{n}" for n in classes]),
    )


def _page(title: str, words: str, objects: list[str]) -> str:
    return f"# {title}\n\n{words}\n\n" + "\n".join(f"::: {x}\n" for x in objects)
