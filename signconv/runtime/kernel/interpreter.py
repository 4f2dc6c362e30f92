"""Triton's interpreter, without what it repeats at every call of a device function.

It replaces the functions of ``triton.language`` by its own before a kernel runs, and again before
each function that the kernel calls: half of its time for kernels of many small functions.  Here
the second and all later times of a launch are left out; so is the arithmetic of every integer
operation in 64 bits, whose result only Triton's debugging looks at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from signconv.runtime.compat import tl, triton


class _Scope:
    """What the replaced functions were, given back when the launch ends."""

    def __init__(self, scope: Any, forget: Callable[[], None]) -> None:
        self._scope, self._forget = scope, forget

    def restore(self) -> None:
        self._forget()
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
    seen_by: dict[int, set[int]] = {}  # by the globals of a function

    def forget() -> None:
        done.clear()
        seen_by.clear()

    def once(fn: Any) -> Any:
        seen = seen_by.get(id(fn.__globals__))
        if seen is None:
            seen = {id(x) for x in fn.__globals__.values() if id(x) in languages}
            seen_by[id(fn.__globals__)] = seen
        if seen and seen <= done:
            return None  # inside a launch, where nobody asks for it back
        first = not done
        done.update(seen)
        scope = patch(fn)
        return _Scope(scope, forget) if first else scope

    once.__wrapped__ = patch  # type: ignore[attr-defined]
    interpreter._patch_lang = once
    _without_overflow_checks(interpreter)
    return True


def _without_overflow_checks(interpreter: Any) -> None:
    """Their assertions are compiled for debugging alone."""
    builder: Any = getattr(interpreter, "interpreter_builder", None)
    options: Any = getattr(builder, "options", None)
    if getattr(options, "sanitize_overflow", False) and not options.debug:
        builder.options = replace(options, sanitize_overflow=False)


__all__ = ["patch_once"]
