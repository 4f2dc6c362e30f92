"""Deep and repeated expressions, cut into named parts.

Everything after the language may then recurse into an expression and copy it: none is deeper than
DEPTH, and none that Python names but the spec does not (a loop's variable) is written out twice.
What is computed, and in which order, stays the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from signconv.ir.nodes import RELATIONS, Expr, Op, Ref, Temp, children

DEPTH = 40
#: Repeated expressions of at least so many nodes become parts.
SIZE = 24
#: No arithmetic, or arithmetic that passes and proofs know by its shape.
_KEPT = RELATIONS | {"corrected", "stochastic_sign", "sign"}


class Parts:
    """The parts of one spec; ``names`` are those it uses itself."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.temps: list[Temp] = []
        self.repeated: Counter[int] = Counter()
        self._made: dict[int, Expr] = {}
        self._depth: dict[int, int] = {}
        self._size: dict[int, int] = {}
        self._seen: set[int] = set()
        self._alive: list[Expr] = []

    def count(self, root: Expr) -> None:
        """Take note of what ``root`` reads, before anything is cut."""
        self._alive.append(root)
        self.repeated[id(root)] += 1
        pending = [root]
        while pending:
            e = pending.pop()
            if id(e) not in self._seen:
                self._seen.add(id(e))
                for a in children(e):
                    self.repeated[id(a)] += 1
                    pending.append(a)

    def cut(self, root: Expr) -> Expr:
        """``root`` with its deep and its repeated parts replaced by names."""
        pending = [root]
        while pending:
            e = pending[-1]
            missing = [a for a in children(e) if id(a) not in self._made]
            if missing:
                pending.extend(reversed(missing))
                continue
            pending.pop()
            if id(e) not in self._made:
                self._node(e, e is root)
        return self._made[id(root)]

    def _node(self, e: Expr, whole: bool) -> None:
        below = [self._made[id(a)] for a in children(e)]
        made = e
        if isinstance(e, Op) and any(a is not b for a, b in zip(below, e.args, strict=True)):
            made = replace(e, args=tuple(below))
        depth = 1 + max((self._depth.get(id(a), 1) for a in below), default=0)
        size = 1 + sum(self._size.get(id(a), 1) for a in below)
        again = self.repeated[id(e)] > 1 and size >= SIZE
        if (
            isinstance(made, Op)
            and made.fn not in _KEPT
            and (again or (depth >= DEPTH and not whole))
        ):
            name = self._fresh()
            self.temps.append(Temp(name, made, made.origin))
            made, depth, size = Ref("temp", name), 1, 1
        self._alive.append(made)
        self._made[id(e)], self._depth[id(made)], self._size[id(made)] = made, depth, size

    def _fresh(self) -> str:
        n = len(self.temps) + 1
        while f"part{n}" in self.names:
            n += 1
        self.names.add(f"part{n}")
        return f"part{n}"


def cut_all(
    roots: Iterator[Expr] | list[Expr], names: set[str]
) -> tuple[Callable[[Expr], Expr], list[Temp]]:
    """How each of ``roots`` is to be written, and the list that its parts are added to."""
    parts = Parts(names)
    for e in roots:
        parts.count(e)
    return parts.cut, parts.temps


__all__ = ["cut_all"]
