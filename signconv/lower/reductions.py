"""Reductions: what is summed in which pass over a tensor, and what is made of the sums.

Statements belong to a place: the elements, or the numbers that a reduction leaves (one a row, a
column, …: ``runtime.axes``).  An expression is computed where it is one number, and what other
places read of it has a name.  A reduction waits for those that its operand reads: the stage it
belongs to is one more than theirs.  Numbers of a whole tensor are computed where they are read,
but for what is made of a state that is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, count

from signconv.errors import LoweringError
from signconv.ir.axes import SCALAR, has_axes, over, reduced_moments
from signconv.ir.nodes import (
    SHAPES,
    Const,
    Expr,
    Moment,
    Op,
    Program,
    Ref,
    Temp,
    everything,
    map_expressions,
    references,
    rewrite,
    walk,
)
from signconv.ir.show import text
from signconv.ir.totals import Totals
from signconv.lower.fusion import fused, scales_apart, with_scales
from signconv.lower.kernel_program import (
    Derived,
    Kept,
    MomentPlan,
    Reduction,
    Stage,
    Statement,
    Sums,
    local_name,
)
from signconv.lower.scalars import ScalarCode
from signconv.runtime.axes import AXES, ELEMENTS, reduced

#: The whole tensor.
TENSOR = ""


class Places(ScalarCode):
    """Statements by place, and the reductions between places."""

    def __init__(self, p: Program, bf16: bool = False, written: Program | None = None) -> None:
        """written: ``p`` with what its totals sum, where names stand for those in ``p``."""
        super().__init__(p, bf16)
        written = p if written is None else written
        self.once, self.plain = reduced_moments(p), not has_axes(written)
        read = {n for e in everything(written) for n in references(e, "shape")}
        self.shapes = tuple(n for n in SHAPES if n in read)
        self.place = ELEMENTS
        self.lists: dict[str, list[Statement]] = {ELEMENTS: []}
        self._locals: dict[tuple[str, Expr], str] = {}
        self.reductions: list[Reduction] = []
        self.operands: list[tuple[Statement, ...]] = []  # of each reduction of elements
        self.overs: dict[str, str] = {}  # for how much of a tensor a local of another place is one
        self.totals: list[tuple[Reduction, tuple[Statement, ...]]] = []
        self._raw = 0  # how many reductions are of gradients as they come

    @property
    def math(self) -> list[Statement]:
        """Where statements go."""
        return self.lists.setdefault(self.place, [])

    @math.setter
    def math(self, statements: Sequence[Statement]) -> None:
        self.lists[self.place] = [*statements]

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Statements go there."""
        before, self.place = self.place, place
        try:
            yield
        finally:
            self.place = before

    def element(self, e: Expr, hint: str) -> Expr:
        raise NotImplementedError

    def local(self, hint: str, e: Expr) -> Expr:
        """``e`` as something that may be written twice: itself if it is a name, else a new one."""
        made = self.element(e, hint)
        if isinstance(made, Ref):
            return made
        key = self.place, made
        if key not in self._locals:
            plain = made == Op("abs", (Ref("grad", "grad"),))
            self._locals[key] = self._fresh("abs_g" if plain else hint)
            self.math.append(Statement(self._locals[key], made, text(e)))
            if self.place != ELEMENTS:
                self.overs[self._locals[key]] = self.place
        return Ref("local", self._locals[key])

    def elsewhere(self, e: Expr, hint: str) -> Expr | None:
        """The name of ``e`` where it belongs to another place than this one; None where it is to be
        computed here."""
        if self.plain:
            return None
        found = over(e, self.p, self.overs)
        if isinstance(e, Ref) and e.kind == "temp" and found == TENSOR and self.place != ELEMENTS:
            return self.element(self.p.temp(e.name).expr, e.name)
        if found in (SCALAR, ELEMENTS, TENSOR, self.place) or isinstance(e, Ref):
            return None
        with self.at(found):
            return self.local(hint, e)

    def home(self, x: Moment | Temp) -> str:
        """Where a moment or a temporary is computed."""
        if isinstance(x, Moment):
            return self.once.get(x.name, ELEMENTS)
        found = over(x.expr, self.p, self.overs)
        return ELEMENTS if found in (SCALAR, TENSOR) else found

    def reduction(self, e: Op) -> Expr:
        """Another pass computes it; here it is a name."""
        if self.bf16:
            raise LoweringError("SC304", f"{self.p.name}: --math bf16 does not go with {e.fn}()")
        source = over(e.args[0], self.p, self.overs)
        left = ELEMENTS if e.fn == "msign" else reduced(source, e.over)
        assert left is not None  # ir.check
        matrix = e.over if e.fn == "msign" else ""
        with self.at(source):
            operand = self.local("operand", e.args[0])
            assert isinstance(operand, Ref)
            for r in self.reductions[self._raw :]:
                known = r.kind, r.operand, r.over, r.how, r.matrix
                if known == (e.fn, operand, left, e.how, matrix):
                    return Ref("local", r.name)
            # Statements so far, since the parameter is assigned anew at the end
            needed = needed_by(self.math, [operand]) if source == ELEMENTS else ()
        name = self._fresh(f"{e.fn.removeprefix('a')}_{local_name(operand)}")
        self.reductions.append(Reduction(name, e.fn, operand, left, source, e.how, matrix))
        self.operands.append(needed)
        self.overs[name] = left
        return Ref("local", name)

    def total(self, name: str, e: Expr) -> None:
        """What is summed over many tensors under ``name``, after all statements so far."""
        operand: Expr = Const(e.value) if isinstance(e, Const) else self.local("operand", e)
        found = Reduction(name, "sum", operand)
        self.totals.append((found, needed_by(self.math, [operand])))

    def total_sums(self) -> Sums:
        """The totals as one pass."""
        math = list(dict.fromkeys(s for _, statements in self.totals for s in statements))
        reductions = tuple(r for r, _ in self.totals)
        places = (ss for place, ss in self.lists.items() if place != ELEMENTS)
        made = (s.target for ss in places for s in ss)
        known = dict.fromkeys([*self.before(), *self.overs, *self.once, *made])
        reads = read_of([*known], [*(s.expr for s in math), *(r.operand for r in reductions)])
        return Sums(ELEMENTS, tuple(math), reductions, reads)

    # ---------------------------------------------------------------- once all is there

    def fuse(self) -> None:
        """Fused multiply-adds in all statements."""
        self.lists = {place: [fused(s) for s in ss] for place, ss in self.lists.items()}
        self.operands = [tuple(fused(s) for s in ss) for ss in self.operands]
        self.totals = [(r, tuple(fused(s) for s in ss)) for r, ss in self.totals]

    def scales_apart(self, moments: tuple[MomentPlan, ...]) -> tuple[MomentPlan, ...]:
        """Give block scales to coefficients where that can be (``fusion.scales_apart``)."""
        scalars = frozenset(self.outputs)
        summed = [*zip(self.reductions, self.operands, strict=True), *self.totals]
        statements = (*self.math, *(s for _, ss in summed for s in ss))
        taken = {s.target for s in statements} | {r.name for r in self.reductions}
        read = [*(s.expr for s in statements), *(r.operand for r, _ in summed)]
        moments = scales_apart(moments, read, scalars, taken)

        def moved(s: Statement) -> Statement:
            return replace(s, expr=with_scales(s.expr, moments, scalars))

        self.math = [moved(s) for s in self.math]
        summed = [
            (replace(r, operand=with_scales(r.operand, moments, scalars)), tuple(map(moved, ss)))
            for r, ss in summed
        ]
        several = len(self.reductions)
        self.reductions = [r for r, _ in summed[:several]]
        self.operands = [ss for _, ss in summed[:several]]
        self.totals = summed[several:]
        return moments

    # ---------------------------------------------------------------- stages

    def stages(self) -> tuple[Stage, ...]:
        """Which sums are taken when, and what is made of them between."""
        level = self._levels()
        wanted = self._read_elsewhere(level)
        count = 1 + max([-1, *(level[r.name] for r in self.reductions)])
        derived = {place: self._live(place, wanted) for place in self.lists if place != ELEMENTS}
        made: list[Stage] = []
        known = self.before()
        for n in range(count):
            sums = self._sums(n, level, known) if n else ()
            known += [r.name for s in sums for r in s.reductions]
            here: list[Derived] = []
            for place in (a for a in reversed(AXES) if a in derived):
                mine = tuple(s for s in derived[place] if level[s.target] == n)
                if not mine:
                    continue
                outputs = tuple(s.target for s in mine if s.target in wanted)
                reads = read_of(known, (s.expr for s in mine))
                here.append(Derived(place, mine, outputs, reads))
                known += outputs
            made.append(Stage(sums, tuple(here)))
        return tuple(s for s in made if s.sums or s.derived)

    def before(self) -> list[str]:
        """Values that are there before any stage."""
        return [*(f"{name}_prev" for name in self.once), *self.shapes]

    def _levels(self) -> dict[str, int]:
        """The stage after which each value is known."""
        level: dict[str, int] = {}
        reductions = {r.name: i for i, r in enumerate(self.reductions)}
        statements = {
            s.target: s for place, ss in self.lists.items() if place != ELEMENTS for s in ss
        }

        def of_all(expressions: Iterable[Expr]) -> int:
            names = {local_name(n) for e in expressions for n in walk(e) if isinstance(n, Ref)}
            return max([0, *(of(n) for n in names if n in reductions or n in statements)])

        def of(name: str) -> int:
            if name not in level:
                if name in reductions:
                    i = reductions[name]
                    r = self.reductions[i]
                    read = [r.operand, *(s.expr for s in self.operands[i])]
                    level[name] = 1 + of_all(read)
                else:
                    level[name] = of_all([statements[name].expr])
            return level[name]

        for name in (*reductions, *statements):
            of(name)
        return level

    def _read_elsewhere(self, level: dict[str, int]) -> set[str]:
        """Values of places that are read outside of the function that computes them."""
        found = {*self.once}
        for place, statements in self.lists.items():
            for s in statements:
                for name in {local_name(n) for n in walk(s.expr) if isinstance(n, Ref)}:
                    same = self.overs.get(name, place) == place != ELEMENTS
                    if not same or level.get(name) != level.get(s.target):
                        found.add(name)
        pairs = [*zip(self.reductions, self.operands, strict=True), *self.totals]
        for r, operands in pairs:
            found |= {local_name(r.operand)} if isinstance(r.operand, Ref) else set()
            found |= {local_name(n) for s in operands for n in walk(s.expr) if isinstance(n, Ref)}
        return found

    def _live(self, place: str, wanted: set[str]) -> tuple[Statement, ...]:
        ends = [Ref("local", s.target) for s in self.lists[place] if s.target in wanted]
        return needed_by(self.lists[place], ends)

    def _sums(self, n: int, level: dict[str, int], known: Sequence[str]) -> tuple[Sums, ...]:
        made: list[Sums] = []
        for source in AXES:
            mine = [
                (r, s)
                for r, s in zip(self.reductions, self.operands, strict=True)
                if r.source == source and level[r.name] == n
            ]
            if not mine:
                continue
            math = list(dict.fromkeys(s for _, statements in mine for s in statements))
            reductions = tuple(r for r, _ in mine)
            reads = read_of(known, [*(s.expr for s in math), *(r.operand for r in reductions)])
            made.append(Sums(source, tuple(math), reductions, reads))
        return tuple(made)

    def kept(self) -> tuple[Kept, ...]:
        """States that are one number for more than an element."""
        made = []
        for name, place in self.once.items():
            m = self.p.moment(name)
            init = m.init.value if isinstance(m.init, Const) else 0.0
            made.append(Kept(name, place, init))
        return tuple(made)


def named_totals(p: Program, totals: Totals) -> tuple[Program, list[tuple[str, Expr]]]:
    """A program that reads its totals by names, and what they sum, in order."""
    names: dict[Expr, Ref] = {}
    taken = set(p.names) | {f"{m.name}_prev" for m in p.moments}
    made: list[tuple[str, Expr]] = []

    def named(e: Expr) -> Expr | None:
        return names.get(e)

    for total in totals.every:  # each after those that its operand reads
        operand = rewrite(total.args[0], named)
        hint = next((f"total_{x.name}" for x in p.temps if x.expr == total), "total")
        more = (f"{hint}{i}" for i in count(2))
        name = next(n for n in chain([hint], more) if n not in taken)
        taken.add(name)
        made.append((name, operand))
        names[total] = names[replace(total, args=(operand,))] = Ref("total", name)
    return (map_expressions(p, named) if made else p), made


def read_of(known: Sequence[str], expressions: Iterable[Expr]) -> tuple[str, ...]:
    """Those of ``known`` that are read, in their order."""
    read = {local_name(n) for e in expressions for n in walk(e) if isinstance(n, Ref)}
    return tuple(n for n in known if n in read)


def needed_by(statements: Sequence[Statement], ends: Sequence[Expr]) -> tuple[Statement, ...]:
    """Those statements, in order, that the values of ``ends`` after all of them depend on."""
    wanted = {local_name(n) for e in ends for n in walk(e) if isinstance(n, Ref)}
    kept: list[Statement] = []
    for s in reversed(statements):
        if s.target in wanted:
            kept.append(s)
            wanted.discard(s.target)
            wanted |= {local_name(n) for n in walk(s.expr) if isinstance(n, Ref)}
    return tuple(reversed(kept))
