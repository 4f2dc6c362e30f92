"""A SymPy interpreter of Programs: what a spec does, in symbols, over a few unrolled steps.

It shares no code with ``signconv.ir.evaluate``.  Functions without an algebra of their own (sign,
abs, root, max, clip) stay opaque, their arguments in one normal form, so two values are equal
here only if they are equal whatever those functions are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy as sp

from signconv.ir.nodes import Const, Decay, Expr, Moment, Op, Program, Ref, Temp

Values = Mapping[str, str]
OPAQUE = {fn: sp.Function(f"{fn}_") for fn in ("sign", "abs", "root", "max", "min", "clip1")}
RELATIONS: dict[str, Callable[[sp.Expr, sp.Expr], object]] = {
    "lt": sp.Lt, "le": sp.Le, "gt": sp.Gt, "ge": sp.Ge, "eq": sp.Eq, "ne": sp.Ne,
}  # fmt: skip


def hyper(name: str) -> sp.Symbol:
    """The symbol of a hyperparameter: positive, as the ranges of all built-in ones allow."""
    return sp.Symbol(name, positive=True)


def real(name: str) -> sp.Symbol:
    return sp.Symbol(name, real=True)


def parsed(text: str) -> sp.Expr:
    """``b**2`` in hyperparameter symbols."""
    return sp.sympify(text, locals={name: hyper(name) for name in re.findall(r"[a-z]\w*", text)})


def normal(e: sp.Expr) -> sp.Expr:
    """The normal form of a rational function: equal ones become identical."""
    return sp.cancel(sp.together(e))


def same(a: sp.Expr, b: sp.Expr) -> bool:
    """Whether the difference simplifies to 0."""
    return normal(a - b) == 0


@dataclass(frozen=True)
class Step:
    """What one unrolled step computed; ``argument`` is what the link is applied to."""

    param: sp.Expr
    numerator: sp.Expr
    denominator: sp.Expr | None
    argument: sp.Expr
    state: dict[str, sp.Expr]


def unroll(
    p: Program,
    steps: int = 3,
    values: Values | None = None,
    gradient: Callable[[sp.Expr, int], sp.Expr] | None = None,
    rates: Sequence[sp.Expr] | None = None,
) -> Iterator[Step]:
    """Run ``p`` in symbols from x0 with gradients g1, g2, … and draws n1, n2, …, step by step.

    values: hyperparameters as formulas of other symbols, ``{"beta1": "b**2"}``; gradient: g as a
    function of x and t instead of a symbol; rates: the learning rate of each step.
    """
    table = {h.name: parsed((values or {}).get(h.name, h.name)) for h in p.hypers}
    x, state = real("x0"), {m.name: _start(m) for m in p.moments}
    for t in range(1, steps + 1):
        g = real(f"g{t}") if gradient is None else gradient(x, t)
        if rates is not None:
            table["lr"] = rates[t - 1]
        step = _step(p, table, x, g, state, t)
        x, state = step.param, step.state
        yield step


def _start(m: Moment) -> sp.Expr:
    if m.init == "param":
        return real("x0")
    return sp.nsimplify(m.init.value) if isinstance(m.init, Const) else sp.Integer(0)


def _step(
    p: Program, table: dict[str, sp.Expr], x: sp.Expr, g: sp.Expr, prev: dict[str, sp.Expr], t: int
) -> Step:
    if p.decay is not None and p.decay.kind == "l2":
        g = g + _Scope(p, table, x, g, prev, t)(p.decay.weight) * x
    scope = _Scope(p, table, x, g, prev, t)
    num = scope(p.numerator)
    den = None if p.denominator is None else scope(p.denominator)
    ratio = normal(num if den is None else num / den)
    argument = {
        "ratio": ratio,
        "expected": ratio,
        "sign": normal(num),
        "stosign": normal(num + (0 if den is None else den) * real(f"n{t}")),
    }[p.link]
    function = {"stosign": "sign", "sign": "sign", "expected": "clip1"}.get(p.link)
    change = table["lr"] * (argument if function is None else OPAQUE[function](argument))
    if p.decay is not None and p.decay.kind != "l2":
        change += _decay(p.decay, table) * scope(p.decay.weight) * x
    return Step(x - change, num, den, argument, {m.name: scope.value(m) for m in p.moments})


def _decay(decay: Decay, table: dict[str, sp.Expr]) -> sp.Expr:
    return table["lr"] / (hyper("initial_lr") if decay.kind == "independent" else 1)


class _Scope:
    """Values of one step; moments and temporaries are computed when they are first read."""

    def __init__(self, p, table, x, g, prev, t) -> None:
        self.p, self.table, self.prev, self.t = p, table, prev, sp.Integer(t)
        self.fixed = {"grad": g, "param": x, "t": self.t, "draw": real(f"n{t}")}
        self.known: dict[str, sp.Expr] = {}

    def value(self, x: Moment | Temp) -> sp.Expr:
        if x.name not in self.known:
            made = self(x.expr) if isinstance(x, Temp) else self._moment(x)
            self.known[x.name] = normal(made)
        return self.known[x.name]

    def _moment(self, m: Moment) -> sp.Expr:
        if m.next is not None:
            return self(m.next)
        beta, u, prev = self(m.beta), self(m.input), self.prev[m.name]
        if m.init == "first" and self.t == 1:
            return u
        if m.kind == "max":
            return OPAQUE["max"](normal(beta * prev), normal(u))
        return beta * prev + (1 - beta) * u

    def __call__(self, e: Expr) -> sp.Expr:
        if isinstance(e, Const):
            return sp.nsimplify(e.value, rational=True)
        if isinstance(e, Ref):
            return self._ref(e)
        assert isinstance(e, Op)
        if e.fn == "corrected":
            beta = self(self.p.moment(e.args[0].name).beta)
            return self(e.args[0]) / (1 - beta**self.t)
        if e.fn == "where":
            condition, a, b = e.args
            decided = RELATIONS[condition.fn](*(self(x) for x in condition.args))
            assert decided in (True, False), f"{decided} is undecided"
            return self(a if decided else b)
        return self._call(e.fn, [self(a) for a in e.args])

    def _ref(self, e: Ref) -> sp.Expr:
        if e.kind == "hyper":
            return self.table[e.name]
        if e.kind == "prev":
            return self.prev[e.name]
        if e.kind in ("value", "temp"):
            return self.value(self.p.moment(e.name) if e.kind == "value" else self.p.temp(e.name))
        return self.fixed[e.kind]

    def _call(self, fn: str, a: list[sp.Expr]) -> sp.Expr:
        if fn in ("add", "sub", "mul", "div", "pow", "neg"):
            return {
                "add": lambda: a[0] + a[1], "sub": lambda: a[0] - a[1],
                "mul": lambda: a[0] * a[1], "div": lambda: a[0] / a[1],
                "pow": lambda: a[0] ** a[1], "neg": lambda: -a[0],
            }[fn]()  # fmt: skip
        if fn == "sqrt":
            fn, a = "root", [a[0], sp.Integer(2)]
        return OPAQUE[fn](*(normal(x) for x in a))
