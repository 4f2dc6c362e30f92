"""What generated/ holds: one row enrols an optimizer in every build, test and check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One generated file: the arguments of ``signconv build``."""

    spec: str
    convert: str | None = None
    state: str = "fp8"


GENERATED = (
    Entry("adamw"),
    Entry("adamw", "stosign"),
    Entry("sgd", "stosign"),
)
