"""Facts about expressions that passes and lowering rely on; each answer is proved or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import TypeVar

from signconv.errors import Origin, SpecError
from signconv.ir.nodes import (
    NOISE,
    REDUCTIONS,
    RELATIONS,
    STEPPED,
    Const,
    Expr,
    Hyper,
    Moment,
    Op,
    Program,
    Ref,
    Temp,
    outside_totals,
    references,
    rewrite,
    walk,
)

Item = TypeVar("Item", Moment, Temp)
#: Powers of a positive number that count as positive: its range says nothing of how small it is.
LARGEST_POWER = 16


def scalar_moments(p: Program) -> frozenset[str]:
    """Names of states whose recurrence reads scalars only: one number per step, not a tensor."""
    return frozenset(m.name for m in p.moments) - _tensors(p)


def _tensors(p: Program) -> frozenset[str]:
    """Moments and temporaries that differ from element to element; found once per Program."""
    known: frozenset[str] | None = vars(p).get("_tensor_names")
    if known is not None:
        return known
    readers: dict[str, list[str]] = {}
    found: set[str] = set()
    pending: list[str] = []
    for x in p.defined:
        kept = isinstance(x, Moment) and (x.next is None or x.init in ("param", "first"))
        for e in x.reads if isinstance(x, Moment) else (x.expr,):
            for n in outside_totals(e):
                if isinstance(n, Ref) and n.kind in ("value", "prev", "temp"):
                    readers.setdefault(n.name, []).append(x.name)
                kept = kept or (isinstance(n, Ref) and n.kind in _TENSORS)
        pending += [x.name] if kept else []
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += readers.get(name, [])
    vars(p)["_tensor_names"] = frozenset(found)
    return frozenset(found)


#: References that stand for one element of a tensor, or for one tensor.
_TENSORS = ("grad", "param", "draw", "local", "stepped", "extra", "shape")


def is_scalar(e: Expr, p: Program) -> bool:
    """Whether ``e`` is the same for all elements: made of hyperparameters, t and constants."""
    for n in outside_totals(e):
        if isinstance(n, Ref):
            if n.kind in _TENSORS:
                return False
            if n.kind in ("value", "prev", "temp") and n.name in _tensors(p):
                return False
    return True


def inlined(p: Program, e: Expr) -> Expr:
    """``e`` with elementwise temporaries written out, so that a rewrite reaches what they read."""

    def rule(x: Expr) -> Expr | None:
        if isinstance(x, Ref) and x.kind == "temp" and not is_scalar(x, p):
            return inlined(p, p.temp(x.name).expr)
        return None

    return rewrite(e, rule)


def is_constant(e: Expr, p: Program) -> bool:
    """Whether ``e`` is made of hyperparameters and numbers: no t, no state, the same every step."""
    for n in walk(e):
        if isinstance(n, Ref) and n.kind not in ("hyper", "temp"):
            return False
        if isinstance(n, Ref) and n.kind == "temp" and not is_constant(p.temp(n.name).expr, p):
            return False
    return True


def evaluation_order(p: Program) -> list[Moment | Temp]:
    """Moments and temporaries, each after what it reads; otherwise as written.

    Raises SpecError, with the user's line, where two of them read each other's new value.
    """
    items = {x.name: x for x in p.defined}
    order: list[Moment | Temp] = []
    done: set[str] = set()
    for first in sorted(items.values(), key=_line):
        path: dict[str, list[str]] = {}  # what is being visited -> what it still has to visit
        pending = [first.name]
        while pending:
            x = items[pending[-1]]
            if x.name in done:
                pending.pop()
                continue
            if x.name not in path:
                reads = x.reads if isinstance(x, Moment) else (x.expr,)
                path[x.name] = [
                    name
                    for e in reads
                    for name in sorted(references(e, "value") | references(e, "temp"))
                ][::-1]
            if not path[x.name]:
                pending.pop()
                del path[x.name]
                done.add(x.name)
                order.append(x)
                continue
            name = path[x.name].pop()
            if name in path:
                names = list(path)
                cycle = " -> ".join((*names[names.index(name) :], name))
                raise SpecError(
                    "SC141",
                    f"cycle: {cycle}: each needs the other's new value; use .prev to read the "
                    "last step's value",
                    items[name].origin,
                )
            pending.append(name)
    return order


def made_of_stepped(n: Expr, late: Set[str]) -> bool:
    """Whether a reference is known after the update only; ``late``: ``after_step``."""
    return n == STEPPED or (isinstance(n, Ref) and n.kind in ("value", "temp") and n.name in late)


def after_step(p: Program) -> frozenset[str]:
    """Moments and temporaries that are made of the parameter after the update."""
    return frozenset(x.name for x in around_step(p)[1])


def around_step(p: Program) -> tuple[list[Moment | Temp], list[Moment | Temp]]:
    """Moments and temporaries in their order: those before the update, and those of which the
    parameter after it is part."""
    before: list[Moment | Temp] = []
    after: dict[str, Moment | Temp] = {}
    for x in evaluation_order(p):
        reads = x.reads if isinstance(x, Moment) else (x.expr,)
        if any(made_of_stepped(n, after.keys()) for e in reads for n in walk(e)):
            after[x.name] = x
        else:
            before.append(x)
    return before, [*after.values()]


def _line(x: Moment | Temp) -> int:
    return x.origin.line if x.origin else 1 << 30


class Degrees:
    """Homogeneous degree in the gradient of every expression, None if it has none
    (docs/design.md#storage).

    Scaling all gradients by c scales a quantity of degree d by c**d.  The literal zero has every
    degree, which is what the initial value of a moment needs.  In what totals sum, parameters count
    as given: where updates have degree 0 they are.
    """

    ANY = "any"

    def __init__(self, p: Program) -> None:
        self.p = p
        self._summing = False
        self.moments: dict[str, int | float | str | None] = {m.name: self.ANY for m in p.moments}
        self._temps: dict[str, int | float | str | None] = {}
        order = evaluation_order(p)
        for _ in range(3 * len(p.moments) + 1):
            before = dict(self.moments)
            for x in order:  # so that nothing below recurses from name to name
                if isinstance(x, Temp):
                    self._temps[x.name] = self.of(x.expr)
            for m in p.moments:
                self.moments[m.name] = self._moment(m)
            if self.moments == before:
                break

    def _moment(self, m: Moment) -> int | float | str | None:
        if isinstance(m.init, Const) and m.init.value != 0:
            start: int | float | str | None = 0
        else:
            start = None if m.init == "param" else self.ANY
        step = self.of(m.next) if m.next is not None else self.of(m.input) if m.input else None
        return self._same(start, step)

    def _same(
        self, a: int | float | str | None, b: int | float | str | None
    ) -> int | float | str | None:
        if a == self.ANY:
            return b
        return a if b in (a, self.ANY) else None

    def of(self, e: Expr) -> int | float | str | None:
        """Degree of ``e``: a number, ANY for zero, None where there is none."""
        if isinstance(e, Const):
            return self.ANY if e.value == 0 else 0
        if isinstance(e, Ref):
            if e.kind in ("grad", "norm"):
                return 1
            if e.kind == "param" and self._summing:
                return 0
            if e.kind in ("param", "stepped", "extra", "number"):
                return None  # how an extra input goes with the gradient nobody has said
            if e.kind in ("value", "prev"):
                if self._summing and self.p.moment(e.name).init == "param":
                    return 0
                return self.moments[e.name]
            if e.kind == "temp" and self._summing:
                return self.of(self.p.temp(e.name).expr)
            return self._temps[e.name] if e.kind == "temp" else 0
        assert isinstance(e, Op)
        if e.fn != "total":
            return self._op(e.fn, e.args)
        before, self._summing = self._summing, True
        made = self.of(e.args[0])
        self._summing = before
        return made

    def _op(self, fn: str, args: tuple[Expr, ...]) -> int | float | str | None:
        d = [self.of(a) for a in args]
        if fn in ("add", "sub", "max", "min"):
            return self._same(d[0], d[1])
        if fn in ("neg", "abs", "corrected", *REDUCTIONS):
            return d[0]
        if fn in ("sign", "msign"):
            return None if d[0] is None else 0
        if fn in RELATIONS:
            return 0 if self._same(d[0], d[1]) is not None else None
        if fn == "where":
            return self._same(d[1], d[2]) if d[0] is not None else None
        if any(x is None for x in d):
            return None
        if fn == "mul":
            return self.ANY if self.ANY in d else d[0] + d[1]  # type: ignore[operator]
        if fn == "div":
            return d[0] if self.ANY in d else d[0] - d[1]  # type: ignore[operator]
        if fn in ("pow", "root", "sqrt") and d[0] != self.ANY:
            n = args[1].value if len(args) > 1 and isinstance(args[1], Const) else 2
            if fn == "pow" and not isinstance(args[1], Const):
                return 0 if d[0] == 0 else None
            return d[0] * n if fn == "pow" else d[0] / n  # type: ignore[operator]
        return 0 if all(x in (0, self.ANY) for x in d) else None


class Ranges:
    """Which expressions are provably >= 0 (and never -0), from the hyperparameters' ranges."""

    def __init__(self, p: Program) -> None:
        self.p = p
        self.hypers: dict[str, Hyper] = {h.name: h for h in p.hypers}
        self.nonneg_moments = {m.name for m in p.moments}  # assumed, then refuted to a fixed point
        order = [x for x in evaluation_order(p) if isinstance(x, Temp)]
        while True:
            self._known: dict[tuple[object, ...], bool] = {}
            for x in order:  # so that no proof recurses from name to name
                for proof in (self.nonneg, self.at_most_one, self.positive):
                    self._temp(proof, x.name)
                self._temp(self.at_most_one, x.name, True)
            kept = {m.name for m in p.moments if m.name in self.nonneg_moments and self._keeps(m)}
            if kept == self.nonneg_moments:
                break
            self.nonneg_moments = kept

    def _temp(self, proof: Callable[..., bool], name: str, *options: bool) -> bool:
        """What a proof says of a temporary, asked once: a name may be read many times."""
        key = (proof.__name__, name, *options)
        if key not in self._known:
            self._known[key] = proof(self.p.temp(name).expr, *options)
        return self._known[key]

    def _keeps(self, m: Moment) -> bool:
        if m.init == "param" or (isinstance(m.init, Const) and m.init.value < 0):
            return False
        if m.next is not None:
            return self.nonneg(m.next)
        assert m.input is not None and m.beta is not None
        weights = self.nonneg(m.beta) and (m.kind == "max" or self.at_most_one(m.beta))
        return self.nonneg(m.input) and weights

    def nonneg(self, e: Expr) -> bool:
        """Provably >= 0 and not -0 for every gradient (NaN aside)."""
        if isinstance(e, Const):
            return e.value >= 0
        if isinstance(e, Ref):
            if e.kind == "hyper":
                h = self.hypers[e.name]
                return max(h.ge if h.ge is not None else -1, h.gt if h.gt is not None else -1) >= 0
            if e.kind in ("value", "prev"):
                return e.name in self.nonneg_moments
            if e.kind in ("extra", "number"):
                x = self.p.extra(e.name)
                return x is not None and x.nonneg
            if e.kind == "temp":
                return self._temp(self.nonneg, e.name)
            return e.kind in ("t", "norm", "given", "shape")
        assert isinstance(e, Op)
        fn, a = e.fn, e.args
        if fn == "abs" or fn in RELATIONS or fn in ("norm", "exp"):
            return True
        if fn == "pow" and isinstance(a[1], Const) and a[1].value % 2 == 0:
            return True
        if fn == "mul" and a[0] == a[1]:
            return True
        if fn == "max":
            return self.nonneg(a[0]) and self.nonneg(a[1])
        if fn in ("add", "mul", "div", "min", "mean", "sum", "amax", "amin", "total"):
            return all(self.nonneg(x) for x in a)
        if fn in ("sqrt", "root", "corrected", "pow"):
            return self.nonneg(a[0])
        if fn == "where":
            return self.nonneg(a[1]) and self.nonneg(a[2])
        return fn == "sub" and a[0] == Const(1.0) and self.at_most_one(a[1])

    def at_most_one(self, e: Expr, strictly: bool = False) -> bool:
        """Provably <= 1 (< 1 if ``strictly``), for scalars."""
        if isinstance(e, Const):
            return e.value < 1 or (e.value == 1 and not strictly)
        if isinstance(e, Ref) and e.kind == "hyper":
            h = self.hypers[e.name]
            return (h.lt is not None and h.lt <= 1) or (
                not strictly and h.le is not None and h.le <= 1
            )
        if isinstance(e, Ref) and e.kind == "temp":
            return self._temp(self.at_most_one, e.name, *([True] if strictly else []))
        if isinstance(e, Op) and e.fn == "pow":  # b**t: b in [0, 1], and no negative exponent
            base, exponent = e.args
            grows = self.positive(exponent) if strictly else self.nonneg(exponent)
            return grows and self.nonneg(base) and self.at_most_one(base, strictly)
        if isinstance(e, Op) and e.fn == "mul":
            return all(self.nonneg(a) and self.at_most_one(a) for a in e.args) and (
                not strictly or any(self.at_most_one(a, True) for a in e.args)
            )
        if isinstance(e, Op) and e.fn == "sub" and e.args[0] == Const(1.0):
            return self.positive(e.args[1]) if strictly else self.nonneg(e.args[1])
        return False

    def positive(self, e: Expr) -> bool:
        """Provably > 0, for scalars."""
        if isinstance(e, Const):
            return e.value > 0
        if isinstance(e, Ref):
            if e.kind == "hyper":
                h = self.hypers[e.name]
                return (h.gt is not None and h.gt >= 0) or (h.ge is not None and h.ge > 0)
            return self._temp(self.positive, e.name) if e.kind == "temp" else e.kind == "t"
        assert isinstance(e, Op)
        if e.fn in ("mul", "div"):
            return all(self.positive(a) for a in e.args)
        if e.fn in ("sqrt", "root"):
            return self.positive(e.args[0])
        if e.fn == "pow" and isinstance(e.args[1], Const):  # a larger power may be 0 in float64
            return abs(e.args[1].value) <= LARGEST_POWER and self.positive(e.args[0])
        if e.fn == "add":
            return all(self.nonneg(a) for a in e.args) and any(self.positive(a) for a in e.args)
        return e.fn == "sub" and e.args[0] == Const(1.0) and self.at_most_one(e.args[1], True)


def reads_gradient(p: Program) -> bool:
    """Whether the update depends on the gradient, through moments and temporaries."""
    return not unread(p, ["grad"])


def unread(p: Program, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that no expression the update depends on reads."""
    live: set[str] = set()
    pending = list(p.roots)
    items = {x.name: x for x in p.defined}
    while pending:
        for n in walk(pending.pop()):
            if isinstance(n, Ref) and n.name not in live:
                live.add(n.name)
                if n.kind == "grad" and p.grad is not None:
                    pending.append(p.grad)
                x = items.get(n.name)
                if x is not None and n.kind in ("value", "prev", "temp"):
                    pending.extend(x.reads if isinstance(x, Moment) else (x.expr,))
    return [n for n in names if n not in live]


def first_origin(e: Expr) -> Origin | None:
    """The first user line recorded below ``e``."""
    return next((n.origin for n in walk(e) if isinstance(n, Op) and n.origin), None)


def uses_noise(e: Expr) -> bool:
    return any(n == NOISE for n in walk(e))
