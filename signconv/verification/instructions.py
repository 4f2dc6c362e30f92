"""Counts read off the machine code of step kernels: the speed that needs no GPU to be watched.

``python -m signconv.verification.instructions`` prints the table of this tree as JSON; with a file
name it writes it there (``make counts``), with a second argument for another target, sm_100 say.
Needs Triton and a process that compiles kernels.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from signconv.pipeline import compile as build_class
from signconv.runtime.formats import BLOCK
from signconv.runtime.kernel.launch import WARPS, launch_shape
from signconv.verification.aot import Compiled, compile_step, cuobjdump

TARGET = "sm_90"
FRESH = "stosign:noise=fresh"
#: Of a warp.
THREADS = 32
#: What the table holds: label -> (spec, passes, state, arithmetic, dtype of parameters).
KERNELS = {
    "adamw bf16": ("adamw", None, "fp8", "fp32", torch.bfloat16),
    "adamw fp4 bf16": ("adamw", None, "fp4", "fp32", torch.bfloat16),
    "adamw,stosign bf16": ("adamw", "stosign", "fp8", "fp32", torch.bfloat16),
    "adamw,stosign:noise=fresh bf16": ("adamw", FRESH, "fp8", "fp32", torch.bfloat16),
    "adamw,stosign fp32-state fp32": ("adamw", "stosign", "fp32", "fp32", torch.float32),
    "lion bf16": ("lion", None, "fp8", "fp32", torch.bfloat16),
    "s3 bf16": ("s3", None, "fp8", "fp32", torch.bfloat16),
    "s3gd fp8-raw math-bf16 bf16": ("s3gd", None, "fp8-raw", "bf16", torch.bfloat16),
    "stosignsgd bf16": ("stosignsgd", None, "fp8", "fp32", torch.bfloat16),
}
#: How far a count may rise above the table before the guard speaks: 2 %, since a new order of
#: registers and moves changes a kernel by less, and a lost optimization by more.
TOLERANCE = 0.02

#: Opcode classes, first match wins; what matches none is "other".
CLASSES = (
    ("load", r"LDG"),
    ("store", r"STG"),
    ("shared", r"LDS|STS|LDSM|STSM|SHFL|C?REDUX|VOTEU?|MATCH"),
    ("spill", r"LDL|STL"),
    ("constant", r"U?LDCU?"),
    ("imad", r"IMAD"),
    ("mufu", r"MUFU"),
    ("convert", r"F2F|F2I|I2F|F2FP|I2FP|FRND|F2IP"),
    ("fp32", r"FADD2?|FMUL2?|FFMA2?|FSETP?|FMNMX3?|FSEL|FCHK|FSWZADD"),
    ("fp64", r"D(ADD|MUL|FMA|SETP|MNMX)"),
    ("half", r"H(ADD2|MUL2|FMA2|SETP?2|MNMX2)"),
    ("uniform", r"U[A-Z]\w*|R2UR|S2UR"),
    ("move", r"MOV|S2R|CS2R|P2R|R2P"),
    ("control", r"BRA|BRX|EXIT|BSSY|BSYNC|BREAK|CALL|RET|WARPSYNC|BAR|NOP|YIELD|NANOSLEEP|DEPBAR"),
    (
        "integer",
        r"IADD3?|LOP3?|PLOP3|SHF|SHL|SHR|ISETP?|V?I?MNMX|VIMNMX3?|VIADDMNMX|PRMT|SEL|LEA|IABS|POPC|FLO|BMSK|"
        r"SGXT|BREV|ISCADD|VABSDIFF4?|VIADD|IDP",
    ),
)
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);", re.M)
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction: address, whether a predicate guards it, opcode, operands."""

    address: int
    guarded: bool
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str:
        """Its class in CLASSES."""
        return next((k for k, names in CLASSES if re.fullmatch(names, self.name)), "other")

    @property
    def width(self) -> int:
        """Bytes per thread that a load or store of global memory moves."""
        found = [_WIDTHS[x] for x in self.opcode.split(".") if x in _WIDTHS]
        return found[0] if found else 4

    @property
    def parts(self) -> bool:
        """Whether it jumps only where the threads of a warp came apart, which ours do not."""
        return self.opcode.startswith("BRA.DIV")

    @property
    def conditional(self) -> bool:
        """Whether it may fall through; on sm_100 a uniform predicate stands among the operands."""
        return self.guarded or re.match(r"!?UP\d", self.operands.strip()) is not None

    @property
    def targets(self) -> list[int]:
        """Where it may jump to."""
        if self.name not in ("BRA", "CALL", "BSSY") or self.parts:
            return []
        return [int(x, 16) for x in re.findall(r"0x([0-9a-f]+)\s*$", self.operands.strip())]


def parse(sass: str) -> list[Instruction]:
    """The instructions that cuobjdump printed, without the padding behind the last of them."""
    found = [
        Instruction(int(address, 16), bool(guard), opcode, operands)
        for address, guard, opcode, operands in _LINE.findall(sass)
    ]
    while found and found[-1].name == "NOP":
        found.pop()
    return found


def full_branch(code: list[Instruction]) -> list[Instruction]:
    """The instructions that a program with a full, aligned chunk may run through.

    Those on some path from the entry through a 16-byte access to the end; the branch for tails
    has no such access.  Paths for rare values (Inf, NaN) count too, so this is a little too much.
    """
    successors, predecessors = _edges(code)
    wide = _wide(code)
    kept = set(_reachable(wide, successors)) | set(_reachable(wide, predecessors))
    kept &= set(_reachable([0] if code else [], successors))  # not what only BRA.DIV goes to
    return [x for i, x in enumerate(code) if i in kept]


def shortest_path(code: list[Instruction]) -> list[Instruction]:
    """The fewest instructions that a program with a full, aligned chunk can run through.

    The shortest way from the entry to the end through a 16-byte access; of several such accesses
    the one that takes longest, since a full chunk makes them all.  Empty if there is none.
    """
    # BSSY names where threads meet again; it does not go there.
    successors, predecessors = _edges(
        [replace(x, operands="") if x.name == "BSSY" else x for x in code]
    )
    ends = [i for i, x in enumerate(code) if x.name == "EXIT"]
    came, goes = _nearest([0] if code else [], successors), _nearest(ends, predecessors)
    paths = []
    for i in _wide(code):
        if i in came and i in goes:
            before, after = _walk(i, came), _walk(i, goes)
            paths.append([*reversed(before), *after[1:]])
    return [code[i] for i in max(paths, key=len, default=[])]


def _edges(code: list[Instruction]) -> tuple[list[list[int]], list[list[int]]]:
    """Successors and predecessors of every instruction."""
    at = {x.address: i for i, x in enumerate(code)}
    successors: list[list[int]] = []
    predecessors: list[list[int]] = [[] for _ in code]
    for i, x in enumerate(code):
        ends = x.name in ("EXIT", "RET", "BRA") and not x.conditional and not x.parts
        following = [] if ends or i + 1 == len(code) else [i + 1]
        successors.append([*following, *(at[t] for t in x.targets if t in at)])
    for i, following in enumerate(successors):
        for j in following:
            predecessors[j].append(i)
    return successors, predecessors


def _wide(code: list[Instruction]) -> list[int]:
    return [i for i, x in enumerate(code) if x.kind in ("load", "store") and x.width == 16]


def _nearest(begin: list[int], edges: list[list[int]]) -> dict[int, int | None]:
    """For all that can be reached from ``begin``: the one before it on a shortest way."""
    came: dict[int, int | None] = dict.fromkeys(begin)
    waiting = deque(begin)
    while waiting:
        i = waiting.popleft()
        for j in edges[i]:
            if j not in came:
                came[j] = i
                waiting.append(j)
    return came


def _walk(i: int, came: dict[int, int | None]) -> list[int]:
    path: list[int] = []
    at: int | None = i
    while at is not None:
        path.append(at)
        at = came[at]
    return path


def _reachable(begin: list[int], edges: list[list[int]]) -> Iterator[int]:
    seen, waiting = set(begin), list(begin)
    while waiting:
        i = waiting.pop()
        yield i
        new = [j for j in edges[i] if j not in seen]
        seen.update(new)
        waiting += new


def count(made: Compiled, elements: int) -> dict[str, Any]:
    """Counts of one compiled kernel; widths are bytes per thread and access.

    elements: of a full chunk, per thread; ``per_element`` is what the shortest way through such a
    chunk costs each of them, the program's beginning and end included.
    """
    cubin = made.asm["cubin"]
    code = parse(cuobjdump(cubin, "--dump-sass"))
    usage = cuobjdump(cubin, "--dump-resource-usage")
    full = full_branch(code)
    return {
        "instructions": len(code),
        "full_branch": len(full),
        "per_element": round(len(shortest_path(code)) / elements, 1),
        "classes": dict(sorted(Counter(x.kind for x in full).items())),
        "load_widths": _widths(code, "load"),
        "store_widths": _widths(code, "store"),
        "ptx_wide_loads": made.wide_loads,
        "ptx_wide_stores": made.wide_stores,
        "registers": max(int(x) for x in re.findall(r"REG:(\d+)", usage)),
        "spills": made.spills,
    }


def _widths(code: list[Instruction], kind: str) -> dict[str, int]:
    found = Counter(x.width for x in code if x.kind == kind)
    return {str(width): found[width] for width in sorted(found)}


def table(target: str = TARGET) -> dict[str, Any]:
    """The counts of every kernel in KERNELS, with the versions that decide them."""
    import importlib.metadata

    kernels = {}
    for label, (spec, convert, state, math, dtype) in KERNELS.items():
        cls = build_class(spec, convert=convert, state=state, math=math)
        shape = launch_shape(cls.program, dtype)
        made = compile_step(cls, target, dtype)
        kernels[label] = count(made, shape.rows * shape.tiles * BLOCK // (THREADS * WARPS))
    return {
        "target": target,
        "triton": importlib.metadata.version("triton"),
        "tolerance": TOLERANCE,
        "kernels": kernels,
    }


def differences(found: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """What got worse against the kept table, one line each; empty if nothing did.

    Raises KeyError if a kept kernel was not counted.
    """
    lines = []
    for label, old in kept["kernels"].items():
        new = found["kernels"][label]
        if new["spills"] > old["spills"]:
            lines.append(
                f"{label}: {new['spills']} bytes of stack per thread are spilled, were "
                f"{old['spills']}"
            )
        for key in ("load_widths", "store_widths"):
            before, after = old[key].get("16", 0), new[key].get("16", 0)
            if after < before:
                lines.append(f"{label}: {after} accesses of 16 bytes in {key}, were {before}")
        for key in ("ptx_wide_loads", "ptx_wide_stores"):
            if new[key] < old[key]:
                lines.append(f"{label}: {key} {new[key]}, were {old[key]}")
        for key in ("instructions", "full_branch", "per_element"):
            if new[key] > old[key] * (1 + kept["tolerance"]):
                kinds = {**old["classes"], **new["classes"]}
                shifts = {k: new["classes"].get(k, 0) - old["classes"].get(k, 0) for k in kinds}
                moved = ", ".join(f"{k} {n:+d}" for k, n in sorted(shifts.items()) if n)
                lines.append(f"{label}: {key} {new[key]}, were {old[key]} ({moved or 'elsewhere'})")
    return lines


def main() -> None:
    """Print the table, or write it to the file that is named; a second argument is the target."""
    text = json.dumps(table(*sys.argv[2:3]), indent=1) + "\n"
    if len(sys.argv) == 1:
        print(text, end="")
        return
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{path} written")


if __name__ == "__main__":
    main()
