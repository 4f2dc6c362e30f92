"""From what the user names to a module: resolve, convert, lower, render, write, compile."""

from signconv.ir.nodes import DEFAULT_STATE
from signconv.pipeline.chain import Build, apply_passes, build, requests_of
from signconv.pipeline.classes import compile
from signconv.pipeline.files import cache_folder, write
from signconv.pipeline.naming import DEFAULT_MATH
from signconv.pipeline.resolve import resolve
from signconv.specs import builtin_names

__all__ = [
    "DEFAULT_MATH",
    "DEFAULT_STATE",
    "Build",
    "apply_passes",
    "build",
    "builtin_names",
    "cache_folder",
    "compile",
    "requests_of",
    "resolve",
    "write",
]
