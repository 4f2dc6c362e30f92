"""What is measured: a SPEC that may carry its own passes, storage and parameters.

``SPEC[+PASS…][@STATE][@math=MATH][@params=DTYPE]``, as in ``adamw+soft:p=2+nesterov@bf16``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from signconv import pipeline
from signconv.errors import BenchError, nearest
from signconv.ir.nodes import STATES
from signconv.prove.report import bytes_moved
from signconv.runtime.axes import bytes_of_kept

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MATHS = ("fp32", "bf16")


@dataclass(frozen=True)
class Subject:
    """One optimizer and the dtype of the parameters it steps."""

    spec: str
    convert: str | None = None
    state: str = pipeline.DEFAULT_STATE
    math: str = pipeline.DEFAULT_MATH
    params: str = "bf16"

    @property
    def label(self) -> str:
        """The shortest text that ``parse`` turns back into this subject."""
        text = self.spec + "".join(f"+{x}" for x in (self.convert or "").split(",") if x)
        text += f"@{self.state}" if self.state != pipeline.DEFAULT_STATE else ""
        text += f"@math={self.math}" if self.math != pipeline.DEFAULT_MATH else ""
        return text + (f"@params={self.params}" if self.params != "bf16" else "")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.params]


@dataclass(frozen=True)
class Built:
    """A subject's class, its passes in the order applied, and what a step of it must move."""

    subject: Subject
    optimizer: Any
    state_bytes: float
    moved_bytes: float


def parse(text: str, default: Subject) -> Subject:
    """The subject that one SPEC argument names; ``default`` fills what it leaves out.

    Raises BenchError for an unknown modifier.
    """
    # A path may hold + and @, so the modifiers begin behind the name of the class.
    found = re.fullmatch(r"((?:.*\.py:)?[^+@]*)((?:\+[^@]*)?)((?:@.*)?)", text, re.DOTALL)
    if found is None or not found[1]:
        raise BenchError(
            "SC711", f"{text!r} names no optimizer; SPEC[+PASS…][@STATE][@math=…][@params=…]"
        )
    made = replace(default, spec=found[1])
    if found[2]:
        made = replace(made, convert=",".join(found[2][1:].split("+")))
    for modifier in found[3].split("@")[1:]:
        key, equals, value = modifier.partition("=")
        valid = {"math": MATHS, "params": tuple(DTYPES)}.get(key) if equals else None
        if _is_state(modifier):
            made = replace(made, state=modifier)
        elif valid is not None and value in valid:
            made = replace(made, **{key: value})
        elif valid is not None:
            raise BenchError("SC712", f"{text!r}: unknown {key} {value!r}; {nearest(value, valid)}")
        else:
            choices = [*STATES, "m=fp8,v=fp4", "math=fp32", "math=bf16", "params=bf16"]
            raise BenchError(
                "SC712", f"{text!r}: unknown @{modifier}; {nearest(modifier, choices)}"
            )
    return made


def _is_state(modifier: str) -> bool:
    """Whether this is a storage: fp4, or m=fp8,v=fp4 of moments that the build will look for."""
    parts = [x.rpartition("=") for x in modifier.split(",")]
    return all(word in STATES and name not in ("math", "params") for name, _, word in parts)


def build(subject: Subject) -> Built:
    """Build and import a subject; SignconvError as ``pipeline.build`` raises it."""
    spec, convert, state, math = subject.spec, subject.convert, subject.state, subject.math
    made = pipeline.build(spec, convert=convert, state=state, math=math)
    optimizer = pipeline.compile(spec, convert=convert, state=state, math=math)
    sizes = {m.name: m.stored.bytes_per_element for m in optimizer.program.moments}
    sizes |= {k.name: bytes_of_kept(k.over) for k in optimizer.program.kept}
    stored = sum(sizes.values())
    moved = bytes_moved(made.kernel, subject.dtype.itemsize, sizes)
    ordered = replace(subject, convert=",".join(made.program.history) or None)
    return Built(ordered, optimizer, stored, moved)
