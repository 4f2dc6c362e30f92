"""Every generated kernel once under compute-sanitizer: memcheck and racecheck.

    python -m tests.sanitizer                 on a machine with an NVIDIA GPU and the CUDA toolkit
    python -m tests.sanitizer --only adamw

Prints a table (tool, modules, kernels, errors) and a verdict; exit code 0 clean, 1 errors, 2 where
it cannot run.  The kernels step tensors of every shape that ``verify`` uses: tails, single
elements, rows that are no multiple of 32, a pointer that is not aligned, a parameter that is not
contiguous; fp32 and bf16, with master weights, with ``skip_nonfinite`` and a gradient scale.
"""

from __future__ import annotations

import argparse
import glob
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "racecheck")
MARK = "== module"
#: The first line of a report: "========= Invalid __global__ read of size 4 bytes", "Error: Race …".
REPORT = re.compile(
    r"^=+ (?:Error|Invalid|Misaligned|Address|Program hit|Potential|Race|Warning: Race|Leaked)"
)
#: Without these two a freed or neighbouring tensor of torch's pool would hide a stray access.
EXACT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "1"}


def find() -> str | None:
    """compute-sanitizer: on PATH, in a CUDA toolkit, or in a wheel of NVIDIA's."""
    found = shutil.which("compute-sanitizer")
    places = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", "")]
    patterns = [f"{p}/{inner}" for p in places if p for inner in ("bin", "compute-sanitizer")]
    for base in (
        "/usr/local/cuda*",
        "/opt/cuda*",
        "/opt/nvidia/*",
        f"{sys.prefix}/lib/python*/*/nvidia/*",
    ):
        patterns += [f"{base}/bin", f"{base}/compute-sanitizer", f"{base}/extras/compute-sanitizer"]
    for pattern in patterns:
        for folder in sorted(glob.glob(pattern), reverse=True):
            candidate = os.path.join(folder, "compute-sanitizer")
            if not found and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                found = candidate
    return found


def modules(only: str) -> list[str]:
    """Paths of the generated modules whose names contain ``only``."""
    return sorted(str(p) for p in (ROOT / "generated").glob("*.py") if only in p.stem)


# ---------------------------------------------------------------- what runs under it


def launch(paths: list[str], device: str, chunk: int | None = None) -> None:
    """Step every module's optimizers; a mark before each, the count of its kernels after."""
    import torch

    from signconv.bench.limits import compiled_keys
    from signconv.verify.bits import chunk_of, load_class, parameters, step_gradients

    for path in paths:
        print(f"{MARK} {Path(path).stem}", flush=True)
        cls = load_class(Path(path))
        for dtype, master in (
            (torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "split"),
        ):  # fmt: skip
            size = chunk or chunk_of(cls.program, "triton", dtype)
            params = parameters(dtype, size, device)
            optimizer = cls(params, backend="triton", skip_nonfinite=True, master=master)
            optimizer.grad_scale = torch.ones((), device=device)
            for t in (1, 2):
                for p, g in zip(params, step_gradients(params, t), strict=True):
                    p.grad = g.to(p.device)
                optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        program = cls.program
        kernels = (program.scalar_kernel, program.step_kernel, program.reduce_kernel)
        count = sum(len(compiled_keys(k)) for k in kernels if k is not None)
        print(f"{MARK} {Path(path).stem} launched {count}", flush=True)


# ---------------------------------------------------------------- running and reading


class Result(NamedTuple):
    """What one tool said: modules and kernels that ran, reports by module, the summary line."""

    tool: str
    modules: int
    kernels: int
    reports: dict[str, list[str]]
    summary: str
    code: int
    seconds: float

    @property
    def errors(self) -> int:
        return sum(map(len, self.reports.values()))


def read(tool: str, output: str, code: int, seconds: float) -> Result:
    """Reports by module, from the output of compute-sanitizer and of ``launch`` in one stream."""
    module, reports, kernels, modules = "start", {}, 0, 0  # type: ignore[var-annotated]
    summary = "no summary"
    for line in output.splitlines():
        if line.startswith(MARK):
            words = line[len(MARK) :].split()
            module = words[0]
            if "launched" in words:
                modules, kernels = modules + 1, kernels + int(words[-1])
        elif "SUMMARY" in line:
            summary = line.strip("= ")
        elif REPORT.match(line):
            reports.setdefault(module, []).append(line.strip("= "))
    return Result(tool, modules, kernels, reports, summary, code, seconds)


def table(results: list[Result], wanted: int) -> Iterator[str]:
    """Lines for people: a row per tool, then what it reported, then the verdict."""
    yield f"{'tool':<10} {'modules':>8} {'kernels':>8} {'errors':>7} {'seconds':>8}  summary"
    for r in results:
        row = f"{r.tool:<10} {r.modules:>8} {r.kernels:>8} {r.errors:>7} {r.seconds:>8.0f}"
        yield f"{row}  {r.summary}"
    for r in results:
        for module, lines in r.reports.items():
            yield f"{r.tool}, {module}: {len(lines)} reports, the first: {lines[0]}"
    yield "verdict: clean" if clean(results, wanted) else "verdict: NOT CLEAN"


def clean(results: list[Result], wanted: int) -> bool:
    """Every module ran to its end under every tool, which counted to 0."""
    return all(
        r.code == 0
        and not r.errors
        and r.modules == wanted
        and re.search(r"SUMMARY: 0 ", r.summary)
        for r in results
    )


def merged(tool: str, parts: list[Result]) -> Result:
    """One result of many runs of a tool; its summary is the first that is not clean."""
    reports = {name: lines for part in parts for name, lines in part.reports.items()}
    bad = [part.summary for part in parts if not clean([part], part.modules)]
    return Result(
        tool,
        sum(part.modules for part in parts),
        sum(part.kernels for part in parts),
        reports,
        bad[0] if bad else f"SUMMARY: 0 errors in {len(parts)} runs",
        max((part.code for part in parts), default=0),
        sum(part.seconds for part in parts),
    )


def run(sanitizer: str, tool: str, paths: list[str], limit: float) -> Result:
    """One tool over these modules."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", sys.executable, "-m"]
    command += ["tests.sanitizer", "--launch", *paths]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **EXACT, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit,
        )  # fmt: skip
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        text = late.stdout or b""
        output, code = text.decode() if isinstance(text, bytes) else text, 124
    return read(tool, output, code, time.monotonic() - begin)


def warm(path: str) -> None:
    """Compile a module's kernels into Triton's cache, outside the sanitizer."""
    subprocess.run(
        [sys.executable, "-m", "tests.sanitizer", "--launch", path], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip


def main() -> int:
    """Find the tool, compile, run both checks, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--launch", nargs="+", metavar="FILE", help="only step these modules")
    parser.add_argument("--only", default="", help="part of the names of the modules to run")
    parser.add_argument("--tools", default=",".join(TOOLS), help="memcheck,racecheck,initcheck,…")
    parser.add_argument("--limit", type=float, default=120, help="seconds a module may take")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    arguments = parser.parse_args()
    if arguments.launch:
        launch(arguments.launch, "cuda")
        return 0
    sanitizer = find()
    if sanitizer is None:
        print(
            "compute-sanitizer is neither on PATH nor in CUDA_HOME, /usr/local/cuda*, /opt/cuda* "
            "or NVIDIA's wheels: install the CUDA toolkit, or pip install nvidia-cuda-sanitizer-api"
        )
        return 2
    paths = modules(arguments.only)
    print(f"{sanitizer}: {len(paths)} modules", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        list(pool.map(warm, paths))
    parts: dict[str, list[Result]] = {tool: [] for tool in arguments.tools.split(",")}
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:  # all on one GPU
        waiting = [
            pool.submit(run, sanitizer, tool, [path], arguments.limit)
            for path in paths
            for tool in parts
        ]
        for done in as_completed(waiting):
            part = done.result()
            parts[part.tool].append(part)
            print("\n".join(list(table([part], 1))[1:-1]), flush=True)  # kept if it is cut off
    results = [merged(tool, found) for tool, found in parts.items()]
    print("\n".join(table(results, len(paths))))
    return 0 if clean(results, len(paths)) else 1


if __name__ == "__main__":
    sys.exit(main())
