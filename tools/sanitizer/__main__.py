"""Every generated kernel once under compute-sanitizer: memcheck and racecheck.

    python -m tools.sanitizer                 on a machine with an NVIDIA GPU and the CUDA toolkit
    python -m tools.sanitizer --only adamw

The kernels are compiled first, into a cache of their own.  Each tool must find the fault planted
for it (planted.py), or its silence says nothing.  Then the modules run in a few processes
each, since importing torch under the tools takes longer than the steps.  Prints a table (tool,
modules, kernels, errors) and a verdict; exit code 0 clean, 1 not, 2 where it cannot run.  What is
cut off by ``--limit`` says how far it came.

The kernels step tensors of every shape that ``verify`` uses: tails, single elements, rows that are
no multiple of 32, a pointer that is not aligned, a parameter that is not contiguous; fp32 and bf16,
with master weights, with ``skip_nonfinite`` and a gradient scale.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from tools.bounded import bounded

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck")
MARK = "== module"
#: The first line of a report: "========= Invalid __global__ read of size 4 bytes", "Error: Race …".
REPORT = re.compile(
    r"^=+ (?:Error|Internal|Invalid|Misaligned|Address|Program hit|Potential|Race|Warning: Race"
    r"|Leaked)"
)
#: Without these two a freed or neighbouring tensor of torch's pool would hide a stray access.
EXACT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "1"}
#: A wrapper around python must hide nothing; importing torch outlasts the tool's patience;
#: torch and Triton ask the driver for functions it may lack, and handle its refusals themselves.
OPTIONS = (
    "--target-processes", "all", "--launch-timeout", "0", "--report-api-errors", "no",
    "--error-exitcode", "99",
)  # fmt: skip
#: Bytes between allocations, more than a chunk has: what runs behind a tensor hits no other one.
PADDING = 1 << 16
#: Each run listens on ports of its own, or runs at once would take each other's.
PORTS, EACH = 49152, 64
#: How a tool ends that found nothing.
NOTHING = re.compile(r"SUMMARY: 0 (?:errors|hazards displayed \(0 errors, 0 warnings\))$")
PLANTED = "planted"


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
    """Step every module's optimizers; a mark before each, the count of its kernels after.

    The kernels are the library's; compiled anew are those that take the module's own functions.
    """
    import torch

    from signconv.bench import limits
    from signconv.runtime.formats import BLOCK
    from signconv.runtime.kernel import folds, passes, scalars, step, walk
    from signconv.runtime.program import row_length
    from signconv.verification.bits import chunk_of, load_class, parameters, step_gradients

    def compiled() -> int:
        kernels = (
            scalars.scalar_kernel, step.step_kernel, walk.walk_kernel, passes.reduce_kernel,
            walk.column_kernel, folds.derive,
        )  # fmt: skip
        return sum(len(limits.compiled_keys(k)) for k in kernels)

    for path in paths:
        print(f"{MARK} {Path(path).stem}", flush=True)
        before = compiled()
        cls = load_class(Path(path))
        for dtype, master, columns in (
            (torch.float32, None, False), (torch.bfloat16, None, False),
            (torch.bfloat16, "split", False), (torch.bfloat16, None, True),
        ):  # fmt: skip
            if columns and cls.program.reductions:  # such are stepped whole
                continue
            size = chunk or chunk_of(cls.program, "triton", dtype)
            params = parameters(dtype, size, device)
            optimizer = cls(params, backend="triton", skip_nonfinite=True, master=master)
            for p in params if columns else ():  # as half of the columns of twice as many
                optimizer._complete({p: optimizer._new_state(p, master)})
                if p.dim() > 1 and p.numel() and row_length(p) % BLOCK == 0:
                    pitch = torch.tensor(2 * row_length(p), dtype=torch.int64)
                    optimizer.state[p]["pitch"] = pitch
            optimizer.grad_scale = torch.ones((), device=device)
            for t in (1, 2):
                for p, g in zip(params, step_gradients(params, t), strict=True):
                    p.grad = g.to(p.device)
                optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        print(f"{MARK} {Path(path).stem} launched {compiled() - before}", flush=True)


# ---------------------------------------------------------------- running and reading


class Result(NamedTuple):
    """What processes under one tool said; a code is None where the process was cut off."""

    tool: str
    begun: list[str]
    launched: dict[str, int]
    reports: dict[str, list[str]]
    summaries: list[str]
    codes: list[int | None]
    seconds: float

    @property
    def errors(self) -> int:
        return sum(map(len, self.reports.values()))

    def quiet(self) -> list[str]:
        """Modules whose kernels ran without a report."""
        return [name for name, count in self.launched.items() if count and name not in self.reports]

    def problems(self, wanted: list[str]) -> list[str]:
        """Why the tool cannot be said to have found nothing in these modules."""
        found = [
            f"{name}: {len(lines)} reports, the first: {lines[0]}"
            for name, lines in self.reports.items()
        ]
        if missing := sorted(set(wanted) - {n for n, count in self.launched.items() if count}):
            found.append(f"did not run to the end: {', '.join(missing)}")
        found += [s for s in self.summaries if not NOTHING.search(s)]
        if len(self.summaries) < len(self.codes):
            found.append(f"{len(self.codes) - len(self.summaries)} processes without a summary")
        failed = [c for c in self.codes if c != 0]
        return found + ["cut off" if c is None else f"exit code {c}" for c in dict.fromkeys(failed)]


def read(tool: str, code: int | None, output: str, seconds: float = 0.0) -> Result:
    """From the output of compute-sanitizer and of ``launch`` in one stream.

    A tool reports from a process of its own, so a report may follow the mark of the next module.
    """
    r = Result(tool, [], {}, {}, [], [code], seconds)
    for line in output.splitlines():
        if line.startswith(MARK):
            name, *words = line[len(MARK) :].split()
            if words:
                r.launched[name] = int(words[-1])
            else:
                r.begun.append(name)
        elif "SUMMARY:" in line:
            r.summaries.append(line.strip("= "))
        elif REPORT.match(line):
            where = r.begun[-1] if r.begun else "start"
            r.reports.setdefault(where, []).append(line.strip("= "))
    return r


def merged(tool: str, parts: list[Result]) -> Result:
    """One result of many processes."""
    whole = Result(tool, [], {}, {}, [], [], sum(part.seconds for part in parts))
    for part in parts:
        whole.begun.extend(part.begun)
        whole.launched.update(part.launched)
        for name, lines in part.reports.items():
            whole.reports.setdefault(name, []).extend(lines)
        whole.summaries.extend(part.summaries)
        whole.codes.extend(part.codes)
    return whole


def table(results: list[Result], wanted: list[str]) -> Iterator[str]:
    """Lines for people: a row per tool, then what keeps it from being clean, then the verdict."""
    yield f"{'tool':<10} {'modules':>8} {'kernels':>8} {'errors':>7} {'runs':>5} {'seconds':>8}"
    for r in results:
        row = f"{r.tool:<10} {len(r.launched):>8} {sum(r.launched.values()):>8} {r.errors:>7}"
        yield f"{row} {len(r.codes):>5} {r.seconds:>8.0f}"
    for r in results:
        if problems := r.problems(wanted):
            yield from (f"{r.tool}: {problem}" for problem in problems)
            yield f"{r.tool}: ran without a report: {', '.join(r.quiet()) or 'none'}"
    yield f"verdict: {'clean' if clean(results, wanted) else 'NOT CLEAN'}"


def clean(results: list[Result], wanted: list[str]) -> bool:
    """Every module ran to its end under every tool, which found nothing."""
    return not any(r.problems(wanted) for r in results)


class Runner:
    """Starts what runs under the tools, until the time is up; keeps their words."""

    def __init__(self, sanitizer: str, cache: Path, limit: float, log: Path) -> None:
        self.sanitizer, self.cache, self.log = sanitizer, cache, log
        self.writing, self.started = threading.Lock(), itertools.count()
        self.end = time.monotonic() + limit

    def over(self) -> bool:
        return time.monotonic() > self.end

    def python(self, tool: str, *command: str) -> Result:
        """A module of ours in a Python under a tool; "" is none."""
        port = PORTS + EACH * (next(self.started) % 128)
        under = [self.sanitizer, "--tool", tool, *OPTIONS, "--port", str(port)]
        under += ["--max-connections", str(EACH)]
        under += ["--padding", str(PADDING)] if tool == "memcheck" else []
        under = under if tool else []
        env = {**os.environ, **EXACT, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(self.cache)}
        begin = time.monotonic()
        code, said = bounded([*under, sys.executable, "-m", *command], ROOT, env, self.over)
        path = self.log / f"{tool or 'plain'}.txt"
        with self.writing, path.open("a", encoding="utf-8") as file:
            file.write(f"{' '.join(command)}\n{said}\n")
        return read(tool, code, said, time.monotonic() - begin)

    def modules(self, tool: str, paths: list[str]) -> Result:
        """Step these modules in one process; after one that ended it, go on behind that module."""
        parts: list[Result] = []
        left = paths
        while left and not self.over():
            part = self.python(tool, "tools.sanitizer", "--launch", *left)
            parts.append(part)
            left = [p for p in left if Path(p).stem not in part.begun] if part.begun else []
        return merged(tool, parts)

    def sees(self, tool: str) -> bool:
        """Whether a tool that is for it finds the fault planted for it."""
        planted = self.python(tool, "tools.sanitizer.planted", tool)
        return PLANTED in planted.reports and any(
            not NOTHING.search(line) for line in planted.summaries
        )


def batches(paths: list[str], count: int) -> list[list[str]]:
    """So many lists of about the same length; fewer where there are fewer paths."""
    return [paths[i::count] for i in range(min(count, len(paths)))]


def compiled(cache: Path) -> int:
    return sum(1 for _ in cache.rglob("*.cubin"))


def check(runner: Runner, paths: list[str], tools: list[str], jobs: int) -> int:
    """Compile, plant, run, print."""
    wanted = [Path(p).stem for p in paths]
    with ThreadPoolExecutor(jobs) as pool:
        plain = list(pool.map(lambda batch: runner.modules("", batch), batches(paths, jobs)))
        lost = [p for part in plain for p in part.problems([]) if "summary" not in p]
        if lost or {n for part in plain for n in part.launched} != set(wanted):
            print("\n".join([f"without a tool not all run, see {runner.log}:", *lost]))
            return 2
        before = compiled(runner.cache)
        print(f"{before} kernels compiled", flush=True)
        seen = {t: pool.submit(runner.sees, t) for t in tools if t in TOOLS}
        cut = batches(paths, max(1, jobs // len(tools)))
        waiting = [pool.submit(runner.modules, tool, batch) for batch in cut for tool in tools]
        parts: dict[str, list[Result]] = {tool: [] for tool in tools}
        for done in as_completed(waiting):
            part = done.result()
            parts[part.tool].append(part)
            said = "; ".join(part.problems(part.begun)) or "clean"
            print(f"{part.tool} {', '.join(part.begun)}: {said}", flush=True)  # kept if cut off
    blind = [tool for tool, answer in seen.items() if not answer.result()]
    results = [merged(tool, found) for tool, found in parts.items()]
    print(f"compiled anew under the tools: {compiled(runner.cache) - before}")
    print("\n".join(table(results, wanted)))
    for tool in blind:
        print(f"{tool} did not find the fault planted for it: its verdict says nothing")
    return 0 if clean(results, wanted) and not blind else 1


def main() -> int:
    """Find the tool and check, or step modules for it."""
    parser = argparse.ArgumentParser(prog="tools.sanitizer", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--launch", nargs="+", metavar="FILE", help="only step these modules")
    parser.add_argument("--only", default="", help="part of the names of the modules to run")
    parser.add_argument("--tools", default=",".join(TOOLS), help="memcheck,racecheck,initcheck,…")
    parser.add_argument("--limit", type=float, default=540, help="seconds all of it may take")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument(
        "--log", type=Path, default=ROOT / "build" / "sanitizer", help="folder for all output"
    )
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
    arguments.log.mkdir(parents=True, exist_ok=True)
    for tool in ("plain", *TOOLS):
        (arguments.log / f"{tool}.txt").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="signconv_sanitizer_") as cache:
        runner = Runner(sanitizer, Path(cache), arguments.limit, arguments.log)
        return check(runner, paths, arguments.tools.split(","), arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
