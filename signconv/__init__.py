"""signconv: write an optimizer as mathematics, get a fused GPU optimizer with FP8 state.

Importing this package loads neither SymPy nor Jinja2: a generated optimizer needs only
torch, triton and ``signconv.runtime``.  ``signconv.compile`` pulls the compiler in when first used.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "compile"]


def __getattr__(name: str) -> Any:
    if name == "compile":
        from signconv.pipeline import compile as compile_optimizer

        return compile_optimizer
    raise AttributeError(f"module 'signconv' has no attribute {name!r}")
