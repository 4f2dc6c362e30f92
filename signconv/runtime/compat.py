"""What may be missing: Triton on macOS and Windows, llvmlite without the extra ``cpu``.

Without Triton a stand-in lets the modules load; their kernels cannot be launched.  Without
llvmlite the CPU backend cannot compile.  The PyTorch reference needs neither.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

__all__ = [
    "CPU_REMEDY",
    "HAS_LLVM",
    "HAS_TRITON",
    "interpreter_fuses",
    "outside_dynamo",
    "tl",
    "triton",
    "warn_once",
]

#: Looked up, not imported: LLVM is loaded at the first step that needs it.
HAS_LLVM = importlib.util.find_spec("llvmlite") is not None
CPU_REMEDY = "pip install 'signconv[cpu]'"


@cache
def warn_once(words: str) -> None:
    """A UserWarning the first time in this process, at the line that called this library."""
    level, frame = 2, sys._getframe(1)
    # torch wraps step() and load_state_dict(): its frames are no lines of the user's either
    while frame.f_back and _package(frame.f_globals) in ("signconv", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(words, UserWarning, stacklevel=level)


def _package(names: dict[str, Any]) -> str:
    """The outermost package of the module that has these globals."""
    return str(names.get("__name__", "")).partition(".")[0]


def outside_dynamo(method: Callable[..., None]) -> Callable[..., None]:
    """A method that torch.compile leaves alone: it breaks its graph and calls it as it is.

    ``torch.compiler.disable`` would import torch._dynamo, which takes seconds, into every process.
    """

    disabled: list[Callable[..., None]] = []

    @wraps(method)
    def call(*arguments: Any) -> None:
        if not disabled and "torch._dynamo" in sys.modules:
            disabled.append(sys.modules["torch._dynamo"].disable(method))
        (disabled[0] if disabled else method)(*arguments)

    return call


try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # pragma: no cover - exercised in a subprocess by tests/docs/test_docs.py
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


def interpreter_fuses() -> bool:
    """Whether ``tl.fma`` rounds once in Triton's interpreter: in 3.6 it multiplies and adds."""
    if not HAS_TRITON:
        return False
    from triton._C.libtriton import interpreter

    return hasattr(interpreter, "fma_fp32")
