"""What inline PTX computes, without a GPU: the instructions of signconv/runtime/kernel/ptx.py and
ptx4.py but approximations.

Registers are NumPy arrays of bits, one element a thread; a branch parts the threads.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Bits = NDArray[Any]
_STRAIGHT = re.compile(r"^(?:@(!?)(\w+)\s+)?([\w.]+)\s+(.*)$")


@dataclass(frozen=True)
class Assembly:
    """The text of one ``inline_asm_elementwise`` and how its operands are bound."""

    text: str
    constraints: tuple[str, ...]
    pack: int
    outputs: int


def assemblies(source: str) -> dict[str, Assembly]:
    """Function name -> its assembly, from the text of a module."""
    found = {}
    for f in ast.parse(source).body:
        if not isinstance(f, ast.FunctionDef):
            continue
        for n in ast.walk(f):
            if isinstance(n, ast.Call) and ast.unparse(n.func) == "tl.inline_asm_elementwise":
                text, constraints = (ast.literal_eval(a) for a in n.args[:2])
                parts = tuple(constraints.split(","))
                (pack,) = (ast.literal_eval(k.value) for k in n.keywords if k.arg == "pack")
                outputs = sum(c.startswith("=") for c in parts)
                found[f.name] = Assembly(text, parts, pack, outputs)
    return found


def run(asm: Assembly, *registers: Bits) -> list[Bits]:
    """The output registers (uint32) for input registers (uint32), one element a thread."""
    wanted = len(asm.constraints) - asm.outputs
    assert len(registers) == wanted, (len(registers), wanted)
    start = {f"${asm.outputs + i}": np.asarray(r, np.uint32) for i, r in enumerate(registers)}
    lines = [x.strip() for x in re.split(r"[;\n]", asm.text)]
    lines = [x for x in lines if x and x not in "{}" and not x.startswith(".reg")]
    threads = len(registers[0])
    out = [np.zeros(threads, np.uint32) for _ in range(asm.outputs)]
    _execute(lines, 0, start, np.arange(threads), out)
    return out


def _execute(
    lines: list[str], at: int, held: Mapping[str, Bits], threads: Bits, out: list[Bits]
) -> None:
    held = dict(held)
    while at < len(lines):
        line = lines[at]
        at += 1
        if line.endswith(":"):
            continue
        found = _STRAIGHT.match(line)
        assert found, line
        negated, guard, opcode, rest = found.groups()
        operands = [x.strip() for x in re.split(r",\s*(?![^{]*\})", rest)]
        if opcode.startswith("bra"):
            label = next(i for i, x in enumerate(lines) if x == f"{operands[0]}:")
            if guard is None:
                at = label
                continue
            taken = held[guard] ^ bool(negated)
            for mask, place in ((taken, label), (~taken, at)):
                if mask.any():
                    part = {n: x[mask] for n, x in held.items()}
                    _execute(lines, place, part, threads[mask], out)
            return
        before = held.get(operands[0])
        _step(opcode, operands, held, len(threads))
        if guard is not None:
            assert before is not None, line
            held[operands[0]] = np.where(held[guard] ^ bool(negated), held[operands[0]], before)
    for i, x in enumerate(out):
        x[threads] = held[f"${i}"]


def _step(opcode: str, operands: list[str], held: dict[str, Bits], threads: int) -> None:
    target, *sources = operands
    if opcode == "mov.b32" and target.startswith("{"):  # apart
        names, value = target.strip("{} ").split(","), _value(sources[0], held, threads)
        for i, name in enumerate(names):
            held[name.strip()] = (value >> (16 * i)) & np.uint32(0xFFFF)
        return
    if opcode == "mov.b32" and sources[0].startswith("{"):  # together
        low, high = (held[x.strip()] for x in sources[0].strip("{} ").split(","))
        held[target] = (low | (high << np.uint32(16))).astype(np.uint32)
        return
    values = [_value(s, held, threads) for s in sources]
    name, *kinds = opcode.split(".")
    if opcode == "shf.l.wrap.b32":  # the upper word of both, shifted left
        low, high, n = values
        held[target] = ((high << n) | (low >> (np.uint32(32) - n))).astype(np.uint32)
        return
    known = _FLOATS if kinds and kinds[-1] == "f32" and name != "cvt" else _WORDS
    if name == "cvt":
        held[target] = _convert(opcode, values)
    elif name == "setp":
        x, y = (_float(v) for v in values[:2]) if kinds[-1] == "f32" else values[:2]
        compare = {
            "le": np.less_equal,
            "lt": np.less,
            "gt": np.greater,
            "ge": np.greater_equal,
            "eq": np.equal,
            "ne": np.not_equal,
            "gtu": lambda a, b: ~(a <= b),
            "geu": lambda a, b: ~(a < b),
            "hi": np.greater,
            "ls": np.less_equal,
        }
        made = compare[kinds[0]](x, y)
        held[target] = made & values[2] if kinds[1] == "and" else made
    elif name == "selp":
        held[target] = np.where(values[2], values[0], values[1]).astype(np.uint32)
    elif known is _FLOATS:
        with np.errstate(all="ignore"):
            held[target] = np.asarray(known[name](*map(_float, values)), np.float32).view(np.uint32)
    else:
        with np.errstate(over="ignore"):
            held[target] = np.asarray(known[name](*values)).astype(np.uint32)


def _value(text: str, held: Mapping[str, Bits], threads: int) -> Bits:
    if text in held:
        return held[text]
    number = int(text[2:], 16) if text.startswith("0f") else int(text, 0)
    return np.full(threads, number & 0xFFFFFFFF, np.uint32)


def _float(bits: Bits) -> Bits:
    return np.ascontiguousarray(bits, np.uint32).view(np.float32)


def _fused(a: Bits, b: Bits, c: Bits) -> Bits:
    """One rounding: the product is exact in float64, and the sum is rounded to odd there."""
    product = a.astype(np.float64) * b.astype(np.float64)
    c = c.astype(np.float64)
    total = product + c
    back = total - product
    lost = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    odd = np.isfinite(total) & (lost != 0) & (bits & 1 == 0)
    away = (lost > 0) == (total > 0)
    return np.where(odd, bits + np.where(away, 1, -1), bits).view(np.float64).astype(np.float32)


def _permute(a: Bits, b: Bits, selector: Bits) -> Bits:
    pair = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    made = np.zeros(len(a), np.uint64)
    for i in range(4):
        which = (int(selector[0]) >> (4 * i)) & 0xF
        byte = (pair >> np.uint64(8 * (which & 7))) & np.uint64(0xFF)
        assert which < 8, "sign replication"
        made |= byte << np.uint64(8 * i)
    return made.astype(np.uint32)


def _lookup(a: Bits, b: Bits, c: Bits, table: Bits) -> Bits:
    made = np.zeros(len(a), np.uint32)
    for i in range(8):
        if int(table[0]) >> i & 1:
            terms = [x if i >> (2 - j) & 1 else ~x for j, x in enumerate((a, b, c))]
            made |= terms[0] & terms[1] & terms[2]
    return made


def _convert(opcode: str, values: list[Bits]) -> Bits:
    if opcode == "cvt.f32.f16":
        return values[0].astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    if opcode == "cvt.rn.f16x2.e4m3x2":
        codes = np.stack([values[0] & 0xFF, values[0] >> np.uint32(8)], axis=1).astype(np.uint8)
        halves = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float16)
        pair = halves.view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
        return pair[:, 0] | (pair[:, 1] << np.uint32(16))
    raise NotImplementedError(opcode)


_FLOATS: dict[str, Callable[..., Bits]] = {
    "mul": lambda a, b: a * b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "fma": _fused,
    "abs": lambda a: (a.view(np.uint32) & np.uint32(0x7FFFFFFF)).view(np.float32),
    "neg": lambda a: (a.view(np.uint32) ^ np.uint32(0x80000000)).view(np.float32),
}
_WORDS: dict[str, Callable[..., Bits]] = {
    "mov": lambda a: a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "mad": lambda a, b, c: a * b + c,
    "prmt": _permute,
    "lop3": _lookup,
    # both halves, shifted right by the lower five bits and clamped at 32: the upper is the second
    "shf": lambda a, b, n: (
        ((a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))) >> n.astype(np.uint64))
        & np.uint64(0xFFFFFFFF)
    ),
}
