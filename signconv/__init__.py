"""signconv: write an optimizer as mathematics, get a fused GPU optimizer with FP8 state.

Importing this package loads neither SymPy nor Jinja2: a generated optimizer needs only
torch, triton and ``signconv.runtime``.  ``signconv.compile`` pulls the compiler in when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "cast", "compile", "gradient_release", "inspect"]

#: Where each name comes from, loaded when it is first used.
_HOME = {
    "cast": "signconv.runtime.cast",
    "compile": "signconv.pipeline",
    "gradient_release": "signconv.runtime.release",
    "inspect": "signconv.runtime.inspect",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'signconv' has no attribute {name!r}")
