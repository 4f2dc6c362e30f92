"""torch's process-wide and per-thread settings, which change no bit of a step.

Default dtype and default device change nothing because every tensor is made with both
(tests/runtime/test_doors_settings.py reads the code for it); grad mode, inference mode and the
calling thread's flushing of denormal numbers are left for the time of a call.  Threads of torch's
own that flush are looked for by the reference; kernels of the CPU backend leave it themselves.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as optimizers

#: torch cuts elementwise work among threads from this many elements on.
GRAIN = 1 << 15


def flushes(smallest: float = sys.float_info.min) -> bool:
    """Whether this thread flushes denormal numbers (``torch.set_flush_denormal``)."""
    return smallest / 2 == 0.0


def unaffected(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method during which this thread is in no inference mode and flushes no denormal numbers.

    State made in inference mode could never be stepped outside of it.
    """

    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        inference, flush = torch.is_inference_mode_enabled(), flushes()
        if not inference and not flush:
            return method(*arguments, **named)
        with ExitStack() as stack:
            if inference:  # which also ends no_grad
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            if flush:
                stack.callback(torch.set_flush_denormal, True)
                torch.set_flush_denormal(False)
            return method(*arguments, **named)

    return call


def hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` with its hooks and its place in a profile, as torch.optim wraps it.

    Where nobody hooked it and no profiler runs, torch's wrapper, about 25 µs, is left out. (An
    ``ExecutionTraceObserver`` is no profiler by itself: it sees what a step does without its name.)
    """
    watched: Any = torch.optim.Optimizer.profile_hook_step(step)

    @wraps(step)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        seen = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or optimizers._global_optimizer_pre_hooks
            or optimizers._global_optimizer_post_hooks
            or (not torch.compiler.is_compiling() and torch._C._autograd._profiler_enabled())
        )
        return (watched if seen else step)(self, *arguments, **named)

    call.hooked = True  # type: ignore[attr-defined]  # torch wraps it no second time
    return call


@contextmanager
def alone_if_others_flush(largest: int) -> Iterator[None]:
    """One thread for torch's operations on up to ``largest`` elements, if any other flushes.

    A thread keeps what the one that started it had set: whoever turns flushing on before torch's
    first parallel operation turns it on in all threads for good.
    """
    threads = torch.get_num_threads()
    if threads == 1 or largest <= GRAIN or not _others_flush(threads):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _others_flush(threads: int) -> bool:
    bits = torch.full((2 * GRAIN * threads,), 1 << 22, dtype=torch.int32, device="cpu")
    product = bits.view(torch.float32) * 1.0
    return bool((product.view(torch.int32) == 0).any())


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device knows float64; Apple's GPUs do not, nor some of Intel's."""
    if device.type in ("cpu", "cuda", "meta"):
        return True
    try:
        host_number(0.0, torch.float64).to(device)
    except (TypeError, RuntimeError, AssertionError):  # the last: a torch built without it
        return False
    return True


def host_numbers(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """float64 or int64 numbers in a tensor on the CPU, whatever the default device is."""
    code = {torch.float64: "d", torch.int64: "q"}[dtype]
    return torch.frombuffer(array(code, values), dtype=dtype)


def host_number(value: float, dtype: torch.dtype) -> Tensor:
    """One of them, 0-dim."""
    return host_numbers([value], dtype).reshape(())
