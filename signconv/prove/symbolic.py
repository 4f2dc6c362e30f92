"""The SymPy view of Programs: scalars as formulas, moments as transfer functions of the gradient.

With z for "one step earlier", a moment that is linear in the gradient is a rational function of z
whose power series holds its weights: an EMA is (1 - beta)/(1 - beta*z).  SymPy serves proofs and
the printing of formulas only; no arithmetic of a generated optimizer comes from here
(docs/design.md#the-language).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sympy as sp
from sympy.core.function import PoleError

from signconv.ir.analysis import Ranges, is_scalar
from signconv.ir.nodes import GRAD, Const, Expr, Moment, Op, Program, Ref, op, walk
from signconv.prove.signals import ONE, Linear, Power, Signal, Unproved, Z, product_of, sum_of

T = sp.Symbol("t", positive=True, integer=True)
#: Stands on the weights of an EMA that starts with its first input: they sum to 1 at every t.
FIRST = sp.Symbol("first", positive=True)


def symbol(p: Program, name: str) -> Any:
    """The symbol of a hyperparameter: positive where its range says >= 0 (0 by continuity)."""
    h = p.hyper(name)
    low = [x for x in (h.ge, h.gt) if x is not None] if h is not None else []
    return sp.Symbol(name, positive=True) if low and max(low) >= 0 else sp.Symbol(name, real=True)


def number(x: float) -> Any:
    """A float as the rational that its shortest decimal form names."""
    return sp.Rational(repr(x))


def _sign(base: Any) -> dict[str, bool]:
    """What is known of the sign of its powers: a power of a negative number may be either."""
    return {"positive": True} if base.is_nonnegative else {"real": True}


class View:
    """Formulas for the expressions of one program.

    By default scalars take their limit for t -> infinity; with ``exact`` they keep t, and whatever
    would let t inside a recurrence raises Unproved.  ``assumptions`` collects what a limit needs.
    """

    def __init__(self, p: Program, exact: bool = False) -> None:
        self.p, self.exact = p, exact
        self.ranges = Ranges(p)
        self.assumptions: set[str] = set()
        self.timed: dict[Any, tuple[Any, Any]] = {}
        self._limits = 0
        self._known: dict[str, Signal] = {}
        self._open: dict[str, Any] = {}

    # ---------------------------------------------------------------- scalars

    def scalar(self, e: Expr) -> Any:
        """A scalar expression as a formula of hyperparameters (and of t if ``exact``)."""
        made = self._scalar(e)
        if not self.exact and made.has(T):
            self._limits += 1
            try:
                made = sp.limit(made, T, sp.oo)
            except (ValueError, NotImplementedError, PoleError) as problem:
                raise Unproved("sympy does not find the limit of a scalar as t grows") from problem
            if made.has(T) or made in (sp.oo, -sp.oo, sp.nan):
                raise Unproved("a scalar has no limit as t grows")
        return made

    def _scalar(self, e: Expr) -> Any:
        if isinstance(e, Const):
            return number(e.value)
        if isinstance(e, Ref):
            if e.kind == "t":
                return T
            if e.kind == "temp":
                return self._scalar(self.p.temp(e.name).expr)
            if e.kind == "norm":
                raise Unproved("it reads the norm of all gradients")
            if e.kind in ("number", "given"):
                raise Unproved(f"it reads the extra input {e.name}")
            return symbol(self.p, e.name) if e.kind == "hyper" else self._state(e)
        assert isinstance(e, Op)
        if e.fn == "total":
            raise Unproved("it reads a sum over all tensors")
        if e.fn == "where":
            return self._where(e)
        a = [self._scalar(x) for x in e.args]
        if e.fn == "pow" and a[1].has(T):
            return self.at_t(a[0], a[1]) if self.exact else self._vanishing(e.args[0], a[1])
        if e.fn not in _FUNCTIONS:
            raise Unproved(f"{e.fn}() of scalars has no limit as t grows")
        return _FUNCTIONS[e.fn](*a)

    def _vanishing(self, base: Expr, exponent: Any) -> Any:
        """base**exponent as t grows, where that is 0."""
        below = self.ranges.nonneg(base) and self.ranges.at_most_one(base, strictly=True)
        growth = sp.Poly(exponent, T) if exponent.is_polynomial(T) else None
        if not below or growth is None or not growth.LC().is_positive:
            raise Unproved("a power of t has no limit that follows from the ranges")
        self._limits += 1
        names = {s.name for s in exponent.free_symbols - {T}}
        zero = {h.name for h in self.p.hypers if h.allows(0.0)}
        self.assumptions |= {f"{n} > 0" for n in names & zero}
        return sp.Integer(0)

    def at_t(self, base: Any, exponent: Any = T) -> Any:
        """base**exponent, which changes with t, as a symbol of its own: algebra stays rational."""
        made = sp.Symbol(f"({base})**({exponent})", **_sign(base))
        self.timed[made] = (base, exponent)
        return made

    def _where(self, e: Op) -> Any:
        relation, yes, no = e.args
        assert isinstance(relation, Op)
        gap = self._scalar(relation.args[0]) - self._scalar(relation.args[1])
        if self.exact or gap.free_symbols - {T}:
            raise Unproved("a choice between scalars depends on more than t")
        late = float(gap.subs(T, 10**12))
        true = {"lt": late < 0, "le": late <= 0, "gt": late > 0, "ge": late >= 0}
        taken = true.get(relation.fn, (late == 0) == (relation.fn == "eq"))
        return self._scalar(yes if taken else no)

    def _state(self, e: Ref) -> Any:
        """A scalar state: what its recurrence settles at."""
        if self.exact:
            return self.at_t(sp.Symbol(e.name))
        if e.name in self._open:
            return self._open[e.name]
        self._limits += 1
        x = self._open[e.name] = sp.Symbol(f"{e.name}_")
        following = self.p.moment(e.name).next
        assert following is not None
        made = sp.expand(self.scalar(following))
        del self._open[e.name]
        start, factor = made.subs(x, 0), sp.diff(made, x)
        defaults = {symbol(self.p, h.name): h.default for h in self.p.hypers}
        if factor.has(x) or not abs(float(factor.subs(defaults))) < 1:
            raise Unproved(f"the scalar state {e.name} does not settle")
        return sp.simplify(start / (1 - factor))

    # ---------------------------------------------------------------- signals

    def signal(self, e: Expr) -> Signal:
        """An elementwise expression as a linear or power signal; Unproved where it is neither."""
        try:
            return self._signal(e)
        except Unproved:
            if self._of_gradient_alone(e):
                return Linear(e, sp.Integer(1), True)
            raise

    def _of_gradient_alone(self, e: Expr) -> bool:
        refs = [n for n in walk(e) if isinstance(n, Ref)]
        local = all(r.kind in ("grad", "hyper") for r in refs) and GRAD in refs
        return local and not any(isinstance(n, Op) and n.fn in ("norm", "mean") for n in walk(e))

    def _signal(self, e: Expr) -> Signal:
        if isinstance(e, Const) and e.value == 0:
            return Linear(None, sp.Integer(0), True)
        if isinstance(e, Ref):
            if e.kind == "grad":
                return Linear(GRAD, sp.Integer(1), True)
            if e.kind == "temp":
                return self.signal(self.p.temp(e.name).expr)
            if e.kind == "value":
                return self._moment(e.name)
            if e.kind == "prev":
                return self._delayed(self._open.get(e.name) or self._moment(e.name))
            kinds = {"param": "parameter", "extra": f"extra input {e.name}"}
            raise Unproved(f"it reads the {kinds.get(e.kind, e.kind)}")
        if is_scalar(e, self.p):
            raise Unproved("it adds a number that is the same for all elements")
        assert isinstance(e, Op)
        a = e.args
        if e.fn in ("add", "sub"):
            second = self.signal(a[1])
            return sum_of(
                self.signal(a[0]), second if e.fn == "add" else self.scaled(second, Const(-1.0))
            )
        if e.fn == "neg":
            return self.scaled(self.signal(a[0]), Const(-1.0))
        if e.fn in ("mul", "div") and is_scalar(a[1], self.p):
            return self.scaled(self.signal(a[0]), a[1] if e.fn == "mul" else op("div", 1, a[1]))
        if e.fn == "mul":
            if is_scalar(a[0], self.p):
                return self.scaled(self.signal(a[1]), a[0])
            return product_of(self.signal(a[0]), self.signal(a[1]), a[0] == a[1])
        if e.fn == "corrected":
            assert isinstance(a[0], Ref)
            beta = self.p.moment(a[0].name).beta
            assert beta is not None
            return self.scaled(
                self.signal(a[0]), op("div", 1, op("sub", 1, op("pow", beta, Ref("t", "t"))))
            )
        if e.fn == "abs":
            x = self.signal(a[0])
            return x if isinstance(x, Power) else Power(ONE, x, ONE)
        if e.fn in ("pow", "sqrt", "root"):
            return self._powered(e)
        raise Unproved(f"{e.fn}() of moments is neither linear nor a power sum")

    def _powered(self, e: Op) -> Signal:
        x = self.signal(e.args[0])
        n = e.args[1] if len(e.args) > 1 else Const(2.0)
        assert isinstance(n, Const)
        exponent = number(n.value)
        if e.fn == "pow":
            if isinstance(x, Linear) and exponent % 2 == 0:
                return Power(exponent, x, sp.Integer(1))
            if isinstance(x, Power) and x.plain:
                return replace(x, order=x.order * exponent, weights=x.weights**exponent)
            raise Unproved(f"a power {exponent} of a signed or of an averaged quantity")
        if isinstance(x, Linear):
            raise Unproved("the root of something that is not a power sum")
        if x.plain:
            return replace(x, order=x.order / exponent, weights=x.weights ** (1 / exponent))
        return replace(x, root=x.root * exponent)

    def _moment(self, name: str) -> Signal:
        if name in self._open:
            raise Unproved(f"{name} needs its own value")
        if name in self._known:
            return self._known[name]
        m = self.p.moment(name)
        start = m.init.value if isinstance(m.init, Const) else 0.0
        if m.init == "param" or start < 0:
            raise Unproved(f"{name} starts from the parameter or from a negative number")
        unknown = sp.Symbol(f"{name}_")
        self._open[name] = Linear(None, unknown, True)
        try:
            made = self._recurrence(m)
        finally:
            del self._open[name]
        weights = sp.expand(made.weights)
        if weights.has(unknown):
            factor = sp.diff(weights, unknown)
            made = replace(made, weights=weights.subs(unknown, 0) / (1 - factor))
        made = replace(made, weights=sp.cancel(made.weights))
        if start > 0:
            if isinstance(made, Linear):
                raise Unproved(f"{name} starts from a number")
            made = replace(made, exact=False)
        others = {sp.Symbol(f"{n}_") for n in self._open}
        if not made.weights.free_symbols & others:
            self._known[name] = made
        return made

    def _recurrence(self, m: Moment) -> Signal:
        before = self._limits
        if m.next is not None:
            made = self.signal(m.next)
            self._steady(before)
            return made
        assert m.input is not None and m.beta is not None
        beta = self.scalar(m.beta)
        self._steady(before)
        u = self.signal(m.input)
        if m.kind == "max":
            if not isinstance(u, Power):
                raise Unproved(f"{m.name} is a maximum of a signed quantity")
            if u.plain:
                self._constant(u.weights, beta)
                return replace(u, rate=beta)
            return replace(u, exact=False)  # at least its newest input
        if not (self.ranges.nonneg(m.beta) and self.ranges.at_most_one(m.beta)):
            raise Unproved(f"the beta of {m.name} is not provably between 0 and 1")
        self._constant(u.weights, beta)
        if isinstance(u, Power) and (u.root != 1 or u.rate is not None):
            raise Unproved(f"{m.name} averages a root or a maximum")
        weights = u.weights * (1 - beta) / (1 - beta * Z)
        return replace(u, weights=weights * FIRST if self.exact and m.init == "first" else weights)

    def _steady(self, before: int) -> None:
        """Limits of single weights say nothing of sums over a recurrence that has its own."""
        if self._limits != before:
            raise Unproved("a weight inside a recurrence changes with t")

    def _constant(self, *scalars: Any) -> None:
        if any(s.has(T, *self.timed) for s in scalars):
            self._steady(-1)

    def _delayed(self, x: Signal) -> Signal:
        self._constant(x.weights)
        if isinstance(x, Power) and (x.rate is not None or x.root != 1):
            raise Unproved("last step's value of a maximum or a root")
        return replace(x, weights=x.weights * Z)

    def scaled(self, x: Signal, factor: Expr) -> Signal:
        """``x`` times a scalar."""
        s = self.scalar(factor)
        nonneg = self.ranges.nonneg(factor) or bool(s.is_nonnegative)
        if isinstance(x, Linear):
            return replace(x, weights=x.weights * s, nonneg=x.nonneg and nonneg)
        if not nonneg:
            raise Unproved("a power sum times a number that may be negative")
        return replace(x, weights=x.weights * s**x.root)


_FUNCTIONS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b, "neg": lambda a: -a, "pow": lambda a, b: a**b,
    "sqrt": sp.sqrt, "root": lambda a, n: a ** (1 / n), "abs": sp.Abs, "max": sp.Max,
    "min": sp.Min, "exp": sp.exp, "log": sp.log, "sign": sp.sign, "tanh": sp.tanh,
}  # fmt: skip
