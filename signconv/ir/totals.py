"""Sums over many tensors: when each is known, and which states belong to all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

from signconv.ir.analysis import scalar_moments
from signconv.ir.nodes import Expr, Moment, Op, Program, Ref, everything, outside_totals, walk


class Totals:
    """The totals of a program.

    One is *leading* where the step, or what another sums, reads it: a pass over all tensors finds
    it before.  What states alone keep for the next step is summed by the step itself, on its way.
    """

    def __init__(self, p: Program) -> None:
        self.p = p
        self._items = {x.name: x for x in p.defined}
        self._reach: dict[str, frozenset[Op]] = {}
        found: dict[Op, None] = {}
        for e in everything(p):
            for n in reversed([*walk(e)]):  # what an operand reads comes before it
                if isinstance(n, Op) and n.fn == "total":
                    found[n] = None
        self.every = tuple(sorted(found, key=self.level))

    def level(self, total: Op) -> int:
        """1 for one that needs no other, 2 for what needs such a one, …"""
        return 1 + max(map(self.level, self.reached(total.args[0])), default=0)

    def reached(self, e: Expr) -> frozenset[Op]:
        """Totals of this step that ``e`` needs."""
        found: set[Op] = set()
        for n in walk(e):
            if isinstance(n, Op) and n.fn == "total":
                found.add(n)
            elif isinstance(n, Ref) and n.kind in ("value", "temp"):
                found |= self._by_name(n.name)
        return frozenset(found)

    def _by_name(self, name: str) -> frozenset[Op]:
        if name not in self._reach:
            self._reach[name] = frozenset()  # a cycle, which ir.check refuses
            found: set[Op] = set()
            for e in self._reads(name):
                found |= self.reached(e)
            self._reach[name] = frozenset(found)
        return self._reach[name]

    def _reads(self, name: str) -> tuple[Expr, ...]:
        x = self._items[name]
        return x.reads if isinstance(x, Moment) else (x.expr,)

    @cached_property
    def leading(self) -> frozenset[Op]:
        """Those that are known before the step."""
        scalar = scalar_moments(self.p)
        tensors = [e for m in self.p.moments if m.name not in scalar for e in m.reads]
        read = [*self.p.roots, *tensors, *(x.args[0] for x in self.every)]
        return frozenset(x for e in read for x in self.reached(e))

    @property
    def rounds(self) -> int:
        """How many passes it takes to know them."""
        return max(map(self.level, self.leading), default=0)

    @property
    def trailing(self) -> bool:
        """Whether the step finds some on its way."""
        return len(self.leading) < len(self.every)

    @cached_property
    def shared(self) -> frozenset[str]:
        """Scalar states that are made of totals or of the norm of all gradients, and those that
        they read: there is one for all parameters of a group, whichever of them have gradients.
        One of the norm that reads t is each parameter's own."""
        scalar = scalar_moments(self.p)
        reads = {
            name: self.names(self.p.moment(name).reads, lambda r: r.kind in ("value", "prev"))
            & scalar
            for name in scalar
        }
        found = {m for m in scalar if any(self.reached(e) for e in self.p.moment(m).reads)}
        found |= {m for m in scalar if self._reads_any(m, "norm", reads)} - {
            m for m in scalar if self._reads_any(m, "t", reads)
        }
        while True:
            more = {m for m in scalar if reads[m] & found} | {n for m in found for n in reads[m]}
            if more <= found:
                return frozenset(found)
            found |= more

    def _reads_any(self, name: str, kind: str, reads: Mapping[str, set[str]]) -> bool:
        """Whether a scalar state has references of a kind, itself or by the states it reads."""
        seen: set[str] = set()
        pending = {name}
        while pending:
            m = pending.pop()
            seen.add(m)
            if self.names(self.p.moment(m).reads, lambda r: r.kind == kind):
                return True
            pending |= reads[m] - seen
        return False

    def names(self, expressions: Iterable[Expr], wanted: Callable[[Ref], bool]) -> set[str]:
        """Names of the ``wanted`` references in expressions, through temporaries, but not in what
        totals sum."""
        found: set[str] = set()
        seen: set[str] = set()
        pending = [*expressions]
        while pending:
            for n in outside_totals(pending.pop()):
                if isinstance(n, Ref) and wanted(n):
                    found.add(n.name)
                if isinstance(n, Ref) and n.kind == "temp" and n.name not in seen:
                    seen.add(n.name)
                    pending += self._reads(n.name)
        return found
