"""Threads for the CPU backend: torch's own where they can be had, else Python's.

After an operation libgomp's threads wait for the next one by spinning, and a step on other
threads would fight them for the cores (measured on 2 cores: AdamW with fp32 state at 1.24 times
torch's instead of 0.95).  So the step runs on torch's team, through the entry that compilers call.
Both ways several Python threads may step at once, and a forked child may step: it uses Python
threads, since libgomp's do not survive a fork.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

_pool: ThreadPoolExecutor | None = None
_forked = False


def _after_fork() -> None:
    global _pool, _forked
    _pool, _forked = None, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def openmp() -> Any:
    """GOMP_parallel of the OpenMP runtime that torch has loaded from its own folder, or None."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        try:
            entry = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        entry.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        entry.restype = None
        return entry
    return None


def in_parallel(address: int, arguments: ctypes.Array[ctypes.c_int64], threads: int) -> None:
    """Call the function at ``address`` with ``arguments`` on up to ``threads`` threads, and wait.

    Any number of calls, one after the other or at once, must do the work exactly once.
    """
    if threads > 1 and not _forked and openmp() is not None:
        openmp()(address, ctypes.addressof(arguments), threads, 0)
        return
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
    place = ctypes.addressof(arguments)
    helpers = _helpers(work, place, threads - 1)
    work(place)
    for helper in helpers:
        if not helper.cancel():
            helper.result()


def _helpers(work: Any, place: int, count: int) -> list[Future[None]]:
    global _pool
    if count < 1:
        return []
    try:
        _pool = _pool or ThreadPoolExecutor(os.cpu_count(), "signconv")
        return [_pool.submit(work, place) for _ in range(count)]
    except RuntimeError:  # the interpreter is shutting down and starts no threads any more
        return []
