"""Frozen, unevaluated expression nodes and the Program they make up.

Nodes keep the order in which the author wrote them: nothing is sorted, folded or simplified
here, because floating-point results depend on the order
(docs/design.md#the-language).  Equality is structural.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from signconv.errors import Origin

#: Number of arguments of each function an expression may use.
FUNCTIONS = {
    "add": 2, "sub": 2, "mul": 2, "div": 2, "neg": 1,
    "pow": 2, "sqrt": 1, "root": 2, "abs": 1, "sign": 1, "max": 2, "min": 2,
    "where": 3, "clip": 3, "exp": 1, "log": 1, "tanh": 1, "mod": 2,
    "lt": 2, "le": 2, "gt": 2, "ge": 2, "eq": 2, "ne": 2,
    "corrected": 1, "stochastic_sign": 2,
    "norm": 1, "mean": 1, "sum": 1, "amax": 1, "amin": 1, "total": 1, "msign": 1,
}  # fmt: skip
RELATIONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
#: How moments can be stored, as ``--state`` and ``store=`` say it.
STATES = ("fp8", "int8", "fp4", "fp8-raw", "bf16", "fp32")
DEFAULT_STATE = "fp8"
REDUCTIONS = frozenset({"norm", "mean", "sum", "amax", "amin"})
#: What needs all of a tensor, and so comes before the pass that steps it: reductions, and what is
#: found of matrices, a number for each element.
APART = REDUCTIONS | {"msign"}

#: What a reference can mean.  value: a moment after this step's update; prev: before it; norm: the
#: Euclidean norm of all gradients of SCOPES, as they come; stepped: the parameter after the update;
#: shape: of SHAPES, the same for a tensor; extra and number: an extra input per element and per
#: step; given: 1 where one was passed, else 0; total: a sum over many tensors, in lowered code.
REF_KINDS = frozenset({
    "grad", "param", "t", "hyper", "value", "prev", "temp", "draw", "scalar", "local", "norm",
    "stepped", "shape", "extra", "number", "given", "total",
})  # fmt: skip
#: What is known of a parameter's shape: dimensions, elements, and rows and columns of the matrix
#: that it is: its first dimension against all others, a vector being one row.
SHAPES = ("ndim", "numel", "rows", "columns")
#: What a norm or a total is over: the tensors of the param group, or of the whole optimizer.
SCOPES = ("group", "all")


@dataclass(frozen=True)
class Expr:
    """Base of all expression nodes."""


@dataclass(frozen=True)
class Const(Expr):
    """A number; ``value`` is a Python float."""

    value: float


@dataclass(frozen=True)
class Ref(Expr):
    """A named quantity; ``kind`` is one of REF_KINDS."""

    kind: str
    name: str


@dataclass(frozen=True)
class Op(Expr):
    """A function of FUNCTIONS applied to arguments; ``origin`` does not count for equality.

    over: what a reduction runs over, one of ``runtime.axes.NOTATION``; "" for the whole tensor.  Of
    a "total", the sum over all elements of many tensors: one of SCOPES.  Of an "msign": "" where
    the first dimension stands against all others, "matrix" where the last two are a matrix each;
    ``how``: the iteration that finds it (``runtime.polar.named``).
    """

    fn: str
    args: tuple[Expr, ...]
    over: str = field(default="", kw_only=True)
    how: str = field(default="", kw_only=True)
    origin: Origin | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter with its default and legal range."""

    name: str
    default: float
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def allows(self, value: float) -> bool:
        """Whether ``value`` is a finite number inside the range."""
        return (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    @property
    def legal(self) -> str:
        """The range in words, as error messages print it: ``0 <= lr``."""
        low = f"{self.gt:g} < " if self.gt is not None else ""
        low = f"{self.ge:g} <= " if self.ge is not None else low
        high = f" < {self.lt:g}" if self.lt is not None else ""
        high = f" <= {self.le:g}" if self.le is not None else high
        return f"{low}{self.name}{high}" if low or high else "any finite number"


#: What there is one of: a tensor of the parameter's shape, or a number for all parameters.
PER = ("element", "step")


@dataclass(frozen=True)
class Extra:
    """An extra input, passed to ``step`` by its name.

    per: one of PER; nonneg: the spec says that it is never negative, which is assumed of it.
    """

    name: str
    per: str
    nonneg: bool = False
    origin: Origin | None = field(default=None, compare=False, repr=False)

    @property
    def ref(self) -> Ref:
        """It in an expression."""
        return Ref("extra" if self.per == "element" else "number", self.name)

    @property
    def given(self) -> Op:
        """The condition that it was passed at this step."""
        return op("ne", Ref("given", self.name), 0)


@dataclass(frozen=True)
class Moment:
    """A quantity kept from step to step.

    kind "ema": beta*prev + (1-beta)*input; "max": max(beta*prev, input); "state": ``next``.
    init "zero", "first" (the first input), "param", or a Const.  store: its state format where
    the spec says one ("fp32"), else "".
    """

    name: str
    kind: str
    input: Expr | None = None
    beta: Expr | None = None
    init: str | Const = "zero"
    next: Expr | None = None
    store: str = ""
    origin: Origin | None = field(default=None, compare=False, repr=False)

    @property
    def reads(self) -> tuple[Expr, ...]:
        """The expressions its update evaluates."""
        return tuple(e for e in (self.input, self.beta, self.next) if e is not None)


@dataclass(frozen=True)
class Decay:
    """Weight decay: l2 (added to the gradient), decoupled (p - lr*wd*p), independent of lr."""

    kind: str
    weight: Expr
    origin: Origin | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Temp:
    """A named intermediate value of the spec; it keeps its name in the generated code."""

    name: str
    expr: Expr
    origin: Origin | None = field(default=None, compare=False, repr=False)


#: Kinds of noise of a stochastic sign, the papers' first.
NOISES = ("fresh", "antithetic", "golden")
#: What ``stosign`` installs (docs/results.md#kinds-of-noise-of-the-sign): of given ratios its
#: variance is never above that of fresh noise.
DEFAULT_NOISE = "antithetic"


@dataclass(frozen=True)
class Program:
    """A whole optimizer step, elementwise.

    link says how numerator and denominator become the update: "ratio" (numerator/denominator, or
    the numerator alone), "stosign" (sign(numerator + denominator*n), n uniform on (-1, 1)),
    "expected" (its mean, clip(numerator/denominator, -1, 1)), "sign" (sign(numerator)).  noise: how
    the n of "stosign" at one step goes with that at others (docs/design.md#kinds-of-noise).  grad:
    what stands for the gradient wherever it is read, and is not rewritten by passes; None: as it
    comes.  new_param: what the parameter becomes, None for STEPPED; eval_param: what the model is
    evaluated with between steps, None for the parameter itself.  extras: what ``step`` takes beside
    gradients.
    """

    name: str
    key: str
    doc: str
    hypers: tuple[Hyper, ...]
    moments: tuple[Moment, ...]
    temps: tuple[Temp, ...]
    numerator: Expr
    denominator: Expr | None = None
    link: str = "ratio"
    noise: str = "fresh"  # the papers'; the pass stosign has DEFAULT_NOISE
    decay: Decay | None = None
    grad: Expr | None = None
    new_param: Expr | None = None
    eval_param: Expr | None = None
    extras: tuple[Extra, ...] = ()
    history: tuple[str, ...] = ()
    removed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def hyper(self, name: str) -> Hyper | None:
        return next((h for h in self.hypers if h.name == name), None)

    def extra(self, name: str) -> Extra | None:
        return next((x for x in self.extras if x.name == name), None)

    def moment(self, name: str) -> Moment:
        return next(m for m in self.moments if m.name == name)

    def temp(self, name: str) -> Temp:
        return next(x for x in self.temps if x.name == name)

    @property
    def roots(self) -> tuple[Expr, ...]:
        """The expressions that the update itself evaluates."""
        decay = (self.decay.weight,) if self.decay else ()
        last = (self.denominator, self.new_param, self.eval_param)
        return (self.numerator, *decay, *(e for e in last if e is not None))

    @property
    def defined(self) -> list[Moment | Temp]:
        """Moments and temporaries."""
        return [*self.moments, *self.temps]

    @property
    def names(self) -> frozenset[str]:
        """Every name the spec uses."""
        return frozenset(x.name for x in (*self.hypers, *self.extras, *self.defined))


def children(e: Expr) -> tuple[Expr, ...]:
    return e.args if isinstance(e, Op) else ()


def walk(e: Expr) -> Iterator[Expr]:
    """The node and everything below it, parents first; a loop, since expressions may be deep."""
    pending = [e]
    while pending:
        n = pending.pop()
        yield n
        if isinstance(n, Op):
            pending.extend(reversed(n.args))


def outside_totals(e: Expr) -> Iterator[Expr]:
    """``walk``, but for what totals sum: that may differ from element to element where they do
    not."""
    pending = [e]
    while pending:
        n = pending.pop()
        yield n
        if isinstance(n, Op) and n.fn != "total":
            pending.extend(reversed(n.args))


def rewrite(e: Expr, rule: Callable[[Expr], Expr | None]) -> Expr:
    """Rebuild bottom-up; ``rule`` returns a replacement or None; unchanged nodes stay the same."""
    made: dict[int, Expr] = {}  # by the id of a node, which ``e`` keeps alive
    pending = [e]
    while pending:
        n = pending[-1]
        missing = [a for a in children(n) if id(a) not in made]
        if missing:
            pending.extend(reversed(missing))
            continue
        pending.pop()
        if id(n) not in made:
            new = n
            if isinstance(n, Op) and any(made[id(a)] is not a for a in n.args):
                new = replace(n, args=tuple(made[id(a)] for a in n.args))
            changed = rule(new)
            made[id(n)] = new if changed is None else changed
    return made[id(e)]


def references(e: Expr, kind: str) -> set[str]:
    """Names of all references of one kind below ``e``."""
    return {n.name for n in walk(e) if isinstance(n, Ref) and n.kind == kind}


def all_expressions(p: Program) -> Iterator[Expr]:
    """Every expression of a program, but for what stands for the gradient."""
    for m in p.moments:
        yield from m.reads
    for x in p.temps:
        yield x.expr
    yield from p.roots


def map_expressions(p: Program, rule: Callable[[Expr], Expr | None]) -> Program:
    """A program with ``rule`` applied to ``all_expressions`` (see ``rewrite``)."""

    def go(e: Expr | None) -> Expr | None:
        return None if e is None else rewrite(e, rule)

    moments = tuple(
        replace(m, input=go(m.input), beta=go(m.beta), next=go(m.next)) for m in p.moments
    )
    return replace(
        p,
        moments=moments,
        temps=tuple(replace(x, expr=rewrite(x.expr, rule)) for x in p.temps),
        numerator=rewrite(p.numerator, rule),
        denominator=go(p.denominator),
        new_param=go(p.new_param),
        eval_param=go(p.eval_param),
        decay=p.decay and replace(p.decay, weight=rewrite(p.decay.weight, rule)),
    )


# Constructors used by passes and lowering; the order of arguments is the order of evaluation.


def op(fn: str, *args: Expr | float) -> Op:
    """An Op; plain numbers become Const."""
    return Op(fn, tuple(a if isinstance(a, Expr) else Const(float(a)) for a in args))


def add(a: Expr | float, b: Expr | float) -> Op:
    return op("add", a, b)


def sub(a: Expr | float, b: Expr | float) -> Op:
    return op("sub", a, b)


def mul(a: Expr | float, b: Expr | float) -> Op:
    return op("mul", a, b)


def div(a: Expr | float, b: Expr | float) -> Op:
    return op("div", a, b)


def everything(p: Program) -> Iterator[Expr]:
    """``all_expressions``, and what stands for the gradient."""
    yield from all_expressions(p)
    if p.grad is not None:
        yield p.grad


def scopes(p: Program) -> set[str]:
    """Over which of SCOPES a program reads norms and totals: a legal one over one."""
    totals = {
        n.over for e in everything(p) for n in walk(e) if isinstance(n, Op) and n.fn == "total"
    }
    return totals | {name for e in everything(p) for name in references(e, "norm")}


def norm_scope(p: Program) -> str:
    """Over which of SCOPES a program reads the norm of all gradients; "" where it reads none."""
    return next((n for e in everything(p) for n in sorted(references(e, "norm"))), "")


GRAD = Ref("grad", "grad")
PARAM = Ref("param", "param")
STEP = Ref("t", "t")
#: The parameter after the update and weight decay.
STEPPED = Ref("stepped", "stepped")
NOISE = Ref("draw", "noise")
