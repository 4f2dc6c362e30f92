"""Triton's interpreter, without what it repeats at every call of a device function.

It replaces the functions of ``triton.language`` by its own before a kernel runs, and again before
each function that the kernel calls: half of its time for kernels of many small functions.  Here
the second and all later times of a launch are left out.
"""

from __future__ import annotations

import inspect
from typing import Any

from signconv.runtime.compat import tl, triton


class _Scope:
    """What the replaced functions were, given back when the launch ends."""

    def __init__(self, scope: Any, done: set[int]) -> None:
        self._scope, self._done = scope, done

    def restore(self) -> None:
        self._done.clear()
        self._scope.restore()


def patch_once() -> bool:
    """Make it so in this process; False where this Triton's interpreter is another one."""
    try:
        interpreter = triton.runtime.interpreter
        patch = interpreter._patch_lang
        known = list(inspect.signature(patch).parameters) == ["fn"]
        restored = hasattr(interpreter, "_LangPatchScope")
    except AttributeError:
        return False
    if not known or not restored or hasattr(patch, "__wrapped__"):
        return known and restored
    languages = {id(tl), id(tl.core)}
    done: set[int] = set()

    def once(fn: Any) -> Any:
        seen = {id(x) for x in fn.__globals__.values() if id(x) in languages}
        if seen and seen <= done:
            return None  # inside a launch, where nobody asks for it back
        first = not done
        done.update(seen)
        scope = patch(fn)
        return _Scope(scope, done) if first else scope

    once.__wrapped__ = patch  # type: ignore[attr-defined]
    interpreter._patch_lang = once
    return True


__all__ = ["patch_once"]
