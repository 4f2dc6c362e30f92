"""What this machine can run: packages, devices, and the reason where something is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator

import torch

from signconv.errors import SignconvError
from signconv.pipeline import cache_folder
from signconv.render.environment import template_folder
from signconv.runtime.compat import CPU_REMEDY, HAS_LLVM, HAS_TRITON


def diagnose() -> Iterator[tuple[str, bool, str]]:
    """Rows of (what, whether it works, detail)."""
    yield "Python", True, platform.python_version()
    yield "PyTorch", True, torch.__version__
    version = importlib.metadata.version("triton") if HAS_TRITON else "not installed"
    yield "Triton", HAS_TRITON, version
    yield from _devices()
    yield from _cpu()
    yield (
        "reference (PyTorch, any device)",
        True,
        "bit for bit the kernel; for truth, not for speed",
    )
    interpreter = "verify runs the kernel on the CPU under it" if HAS_TRITON else "needs Triton"
    yield "Triton's interpreter", HAS_TRITON, interpreter
    yield from _packages()
    try:
        yield "templates", True, str(template_folder().name)
        cache_folder()
        yield "cache folder", True, "writable"
    except SignconvError as error:
        yield "installation", False, str(error)


def _devices() -> Iterator[tuple[str, bool, str]]:
    if not torch.cuda.is_available():
        reason = "no GPU driver answers" if torch.version.cuda else "this PyTorch is a CPU build"
        if torch.version.cuda and shutil.which("nvidia-smi") is None:
            reason = "no NVIDIA driver on this machine"
        yield "GPU", False, f"{reason}: optimizers run on the CPU"
        return
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        generation = "FP8 state is software arithmetic: any GPU that Triton supports"
        yield f"GPU {i}", HAS_TRITON, f"{p.name}, {p.total_memory / 2**30:.0f} GiB; {generation}"


def _cpu() -> Iterator[tuple[str, bool, str]]:
    if not HAS_LLVM:
        remedy = f"llvmlite is not installed: {CPU_REMEDY}; until then the reference steps"
        yield "CPU backend", False, remedy
        return
    version = importlib.metadata.version("llvmlite")
    threads = f"{torch.get_num_threads()} threads"
    yield "CPU backend", True, f"llvmlite {version}, {threads}: what a CPU steps on"


def _packages() -> Iterator[tuple[str, bool, str]]:
    for name, use in (("matplotlib", "make demo draws with it"),):
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, False, f"not installed ({use})"
