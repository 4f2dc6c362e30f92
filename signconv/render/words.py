"""What a generated module says to its reader: summary, algorithm, notes, and their escaping."""

from __future__ import annotations

import json
import textwrap

from signconv.ir.describe import algorithm, remarks
from signconv.ir.nodes import Program
from signconv.lower.kernel_program import KernelProgram
from signconv.render.layout import WIDTH
from signconv.runtime.formats import FORMATS


def summary(k: KernelProgram) -> str:
    p = k.program
    link = {
        "ratio": "",
        "stosign": " with an unbiased stochastic sign as update",
        "expected": " with its update clipped to [-1, 1]",
        "sign": " with a sign as update" if p.history else "",
    }[p.link]
    math = ", bf16 arithmetic" if k.precision == "bf16" else ""
    shown = k.storage if "=" in k.storage else k.storage.upper()
    named = [x.partition("=")[0] for x in k.storage.split(",")]
    own = [f"{m.name} ({m.store})" for m in p.moments if m.store and m.name not in named]
    but = f" but for {', '.join(own)}" if own else ""
    return f"{p.name}{link}, {shown} state{but}{math}."


def wrapped(doc: str) -> list[str]:
    lines: list[str] = []
    for paragraph in textwrap.dedent(doc.split("\n", 1)[0] + "\n" + textwrap.dedent(
        doc.split("\n", 1)[1] if "\n" in doc else ""
    )).strip().split("\n\n"):  # fmt: skip
        lines += [*textwrap.wrap(" ".join(paragraph.split()), WIDTH - 4), ""]
    return [escaped(x) for x in lines[:-1]]


def escaped(line: str) -> str:
    """A line of the user's words as it may stand in a docstring: what is no printable character,
    a change of writing direction say, is spelled out."""
    line = line.replace("\\", "\\\\").replace('"""', "'''")
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in line)


def literal(line: str) -> str:
    """A string of the user's as Python writes it; what is no printable character is spelled out."""
    made = json.dumps(line, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in made)


def box(p: Program) -> list[str]:
    """The algorithm's lines, broken to fit an indentation of four."""
    lines: list[str] = []
    for line in algorithm(p):
        lines += textwrap.wrap(line, WIDTH - 8, subsequent_indent="    ")
    return lines


def storage_lines(k: KernelProgram) -> list[str]:
    """How each moment is stored."""
    return [f"State {m.name}: {FORMATS[m.format].words}." for m in k.moments]


def notes(k: KernelProgram) -> list[str]:
    lines: list[str] = []
    for note in [*remarks(k.program), *storage_lines(k)]:
        lines += textwrap.wrap(note, WIDTH - 4, subsequent_indent="  ")
    return lines


def string_lines(words: str) -> list[str]:
    lines = textwrap.wrap(words, 70)
    return [f'"{x}{" " if i < len(lines) - 1 else ""}"' for i, x in enumerate(lines)]
