"""Hashes that earlier releases wrote into checkpoints, and the programs they stand for today.

legacy_0_1.txt has a row for each hash of release 0.1: every built-in spec with every sequence of
passes, storage and precision that it could be built with, the hash computed at commit 9d323e1
and the identities by signconv.lower.identity at the commit that brought this file.  In 0.1
programs that lowered to the same statements shared a hash, so a row may name several.  Programs
of users' own are not in it.  A later format of hashes adds its file to TABLES.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from signconv.runtime.program import OptimizerProgram

#: Rows ``old new[,new] # spec convert storage precision``.
TABLES = ("legacy_0_1.txt",)


def stored(theirs: str | None, program: OptimizerProgram) -> Mapping[str, str] | None:
    """Formats of the moments that a state_dict with the hash ``theirs`` holds in other formats than
    ``program`` does; None if it belongs to another program.  One that differs in the sign's noise
    alone is no other."""
    if theirs == program.hash or theirs in program.other_noises:
        return {}
    stands_for = _stands_for(theirs)
    if program.hash in stands_for or not program.other_noises.keys().isdisjoint(stands_for):
        return {}
    known_as, formats = program.former or (None, {})
    return formats if known_as and known_as in stands_for else None


def noise(theirs: str | None, program: OptimizerProgram) -> str:
    """The kind of the sign's noise with which a state_dict of this program was written."""
    if theirs == program.hash or not program.noise:
        return program.noise
    stands_for = _stands_for(theirs)
    if program.hash in stands_for:
        return program.noise
    found = (program.other_noises.get(h or "") for h in stands_for)
    return next(filter(None, found), "fresh")  # releases that stored moments otherwise had no other


def _stands_for(theirs: str | None) -> tuple[str | None, ...]:
    """A hash, and what it became."""
    return (theirs, *_table().get(theirs or "", ()))


def known(theirs: str) -> bool:
    """Whether an earlier release gave this hash to a built-in program."""
    return theirs in _table()


@cache
def _table() -> Mapping[str, frozenset[str]]:
    """All tables, read when the first hash does not match."""
    found: dict[str, frozenset[str]] = {}
    for name in TABLES:
        for row in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines():
            old, new = row.partition("#")[0].split()
            found[old] = frozenset(new.split(","))
    return found
