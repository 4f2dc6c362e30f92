"""signconv: write an optimizer as mathematics, get a fused GPU optimizer with FP8 state.

Importing this package loads neither SymPy nor Jinja2: a generated optimizer needs only
torch, triton and ``signconv.runtime``.  ``signconv.compile`` pulls the compiler in when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from signconv.pipeline import build as build
    from signconv.pipeline import compile as compile
    from signconv.runtime.cast import cast as cast
    from signconv.runtime.hybrid import hybrid as hybrid
    from signconv.runtime.inspect import inspect as inspect
    from signconv.runtime.matrices import matrices as matrices
    from signconv.runtime.offload import offload as offload
    from signconv.runtime.release import gradient_release as gradient_release
    from signconv.tuning.lr_range import lr_range as lr_range
    from signconv.verification.verify import verify as verify

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "build",
    "cast",
    "compile",
    "gradient_release",
    "hybrid",
    "inspect",
    "lr_range",
    "matrices",
    "offload",
    "verify",
]

#: Where each name comes from, loaded when it is first used; above for type checkers.
_HOME = {
    "build": "signconv.pipeline",
    "cast": "signconv.runtime.cast",
    "compile": "signconv.pipeline",
    "gradient_release": "signconv.runtime.release",
    "hybrid": "signconv.runtime.hybrid",
    "inspect": "signconv.runtime.inspect",
    "lr_range": "signconv.tuning.lr_range",
    "matrices": "signconv.runtime.matrices",
    "offload": "signconv.runtime.offload",
    "verify": "signconv.verification.verify",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'signconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
