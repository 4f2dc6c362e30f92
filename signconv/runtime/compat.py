"""Triton where it is installed; elsewhere (macOS, Windows) a stand-in that only lets modules load.

Without Triton the decorated kernels cannot be launched, and the PyTorch reference still runs.
"""

from __future__ import annotations

from typing import Any

__all__ = ["HAS_TRITON", "tl", "triton"]

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
