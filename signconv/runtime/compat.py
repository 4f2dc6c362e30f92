"""What may be missing: Triton on macOS and Windows, llvmlite without the extra ``cpu``.

Without Triton a stand-in lets the modules load; their kernels cannot be launched.  Without
llvmlite the CPU backend cannot compile.  The PyTorch reference needs neither.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from typing import Any

__all__ = ["CPU_REMEDY", "HAS_LLVM", "HAS_TRITON", "tl", "triton", "warn_once"]

#: Looked up, not imported: LLVM is loaded at the first step that needs it.
HAS_LLVM = importlib.util.find_spec("llvmlite") is not None
CPU_REMEDY = "pip install 'signconv[cpu]'"


@cache
def warn_once(words: str) -> None:
    """A UserWarning the first time in this process."""
    warnings.warn(words, UserWarning, stacklevel=4)


try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # pragma: no cover - exercised in a subprocess by tests/runtime/test_compat.py
    HAS_TRITON = False

    class _Missing:
        """Answers every attribute with itself and every call by returning a function unchanged."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return self

        def __call__(self, value: Any = None, *args: Any, **kwargs: Any) -> Any:
            return self if value is None else value

    triton = _Missing()
    tl = _Missing()
