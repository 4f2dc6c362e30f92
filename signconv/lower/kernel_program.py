"""What lowering hands to rendering: scalar statements, elementwise statements, storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from signconv.errors import LoweringError
from signconv.ir.nodes import Const, Expr, Op, Program, Ref, mul, norm_scope, walk
from signconv.lower.exact import FLOAT, kind
from signconv.lower.powers import joined
from signconv.runtime.axes import ELEMENTS

#: Operations of lowered expressions: division with x/0 = 0 and with 0/0 = 0, the root in a
#: divisor, where tiny counts as 0, 1/b of such, max and min where the order of zeros is idle,
#: a*b + c rounded once.
LOWERED = frozenset({
    "ratio", "mean_ratio", "divisor_sqrt", "reciprocal", "nonneg_max", "nonzero_min", "bf16",
    "fma",
})  # fmt: skip
#: What the printers know without a function of KernelProgram.functions.
ELEMENTWISE = LOWERED | {
    "add", "sub", "mul", "div", "neg", "sqrt", "abs", "sign", "max", "min", "where",
    "lt", "le", "gt", "ge", "eq", "ne",
}  # fmt: skip
SCALAR = frozenset({
    "add", "sub", "mul", "div", "neg", "pow", "sqrt", "abs", "max", "min", "where", "mod", "exp",
    "log", "tanh", "lt", "le", "gt", "ge", "eq", "ne",
})  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """``target = expr``; ``comment`` is the formula in the spec's words."""

    target: str
    expr: Expr
    comment: str = ""


@dataclass(frozen=True)
class Function:
    """An elementwise function of fp32 numbers: statements in order, then the result.

    The expressions are those of ``lower.exact``, and calls of functions before this one.
    """

    name: str
    parameters: tuple[str, ...]
    statements: tuple[Statement, ...]
    result: Expr
    doc: str

    def check(self, before: frozenset[str]) -> None:
        """Every name is defined before it is used, and the types are right."""
        names = dict.fromkeys(self.parameters, FLOAT)
        for s in self.statements:
            names[s.target] = self._kind(s.expr, names, before, s.target)
        if self._kind(self.result, names, before, "the result") != FLOAT:
            raise LoweringError("SC390", f"{self.name} does not return a float")

    def _kind(self, e: Expr, names: Mapping[str, str], before: frozenset[str], target: str) -> str:
        called = {n.fn for n in walk(e) if isinstance(n, Op) and function_name(n) in before}
        return kind(e, names, frozenset(called), f"{self.name}, {target}")


def function_name(e: Op) -> str:
    """The name of the function that computes ``e``, where the printers have no operation for it:
    ``_cbrt``, ``_root5``, ``_power_0_4``."""
    constants = [a.value for a in e.args if isinstance(a, Const)]
    if e.fn in ("newton_root", "inverse_root"):
        return f"_{e.fn.removeprefix('newton_')}{constants[0]:g}"
    if e.fn == "real_power":
        return f"_power_{joined(*constants)}".replace(".", "_")
    return f"_{e.fn}"


@dataclass(frozen=True)
class MomentPlan:
    """Storage of one moment.

    ``word`` and ``field`` say which of the step's random bits round it.  ``former``: the format in
    place of ``format`` that earlier releases chose.  ``apart``: whether ``math`` reads codes and
    block scales, each by its name, in place of their product (``fusion.scales_apart``).
    """

    name: str
    format: str
    word: int
    field: int
    init: float | str = 0.0
    former: str = ""
    apart: bool = False

    @property
    def code_name(self) -> str:
        """The local that holds the codes, as fp32, where they are read apart from their scales."""
        return f"{self.name}_code"

    @property
    def scale_name(self) -> str:
        """The local that holds the block scales then."""
        return f"{self.name}_scale"


@dataclass(frozen=True)
class Reduction:
    """What is read by ``name``: the norm, mean, … of ``operand`` ``over`` a tensor or some of its
    dimensions; ``source``: for how much of a tensor the operand is one number (``runtime.axes``).

    Of kind "msign" there is a number for each element: ``how`` it is found (``runtime.polar``), and
    of which ``matrix``, "" or "matrix" (``runtime.axes.matrices``).
    """

    name: str
    kind: str
    operand: Expr
    over: str = ""
    source: str = ELEMENTS
    how: str = ""
    matrix: str = ""

    @property
    def summand(self) -> Expr:
        """What is summed: squares for a norm."""
        return mul(self.operand, self.operand) if self.kind == "norm" else self.operand


@dataclass(frozen=True)
class Sums:
    """One pass over the numbers of ``source``: statements, and the reductions of what they make;
    ``reads``: the values of earlier stages that it needs."""

    source: str
    math: tuple[Statement, ...]
    reductions: tuple[Reduction, ...]
    reads: tuple[str, ...] = ()

    @property
    def expressions(self) -> tuple[Expr, ...]:
        return (*(s.expr for s in self.math), *(r.summand for r in self.reductions))


@dataclass(frozen=True)
class Derived:
    """What is made of the numbers ``over`` some dimensions: statements, and those that others
    read."""

    over: str
    math: tuple[Statement, ...]
    outputs: tuple[str, ...]
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Passes whose results are known together, and what is made of them."""

    sums: tuple[Sums, ...] = ()
    derived: tuple[Derived, ...] = ()


@dataclass(frozen=True)
class Totals:
    """Sums over all elements of many tensors, float64: ``names``, which the scalar code reads, of
    what one function makes of an element; over one of ``ir.nodes.SCOPES``.

    rounds: how many passes over the tensors make those that the step reads; trailing: whether the
    step itself finds others on its way.
    """

    names: tuple[str, ...]
    over: str
    sums: Sums
    rounds: int
    trailing: bool


@dataclass(frozen=True)
class Kept:
    """A state that is one fp32 number ``over`` a tensor or some of its dimensions."""

    name: str
    over: str
    init: float


@dataclass(frozen=True)
class Evaluation:
    """What the model is evaluated with: float64 ``scalars`` of the hyperparameters, ``outputs`` of
    which are rounded to fp32, then ``math`` of parameter, moments and those, and ``result``."""

    scalars: tuple[Statement, ...]
    outputs: tuple[str, ...]
    math: tuple[Statement, ...]
    result: Expr

    @property
    def elementwise(self) -> tuple[Expr, ...]:
        """All its expressions but the scalar ones."""
        return (*(s.expr for s in self.math), self.result)


@dataclass(frozen=True)
class KernelProgram:
    """One optimizer step, ready to print.

    ``scalars`` run in float64 once per step; ``outputs`` are those rounded to fp32 and read by
    ``math``, whose statements are fp32, elementwise and in order.  ``words`` of random
    bits per element, three fields each: field 0 of word 0 is the sign's noise, its field 1 rounds
    the parameter.  ``scalar_states``: names and initial values, float64, one number per parameter;
    ``floors``: those of them that lowering added (docs/design.md#the-floor);
    ``precision`` "bf16": every operation of ``math`` is rounded to bf16.
    ``stages`` come before ``math``, which reads some of their ``values``; ``kept`` are the
    states that are one number for more than an element, which a stage derives; ``shapes``: what it
    reads of a parameter's shape.
    ``functions`` are those that the elementwise statements call, each after what it calls itself.
    ``evaluation``: what the model is evaluated with, where it is not the parameter; ``totals``:
    what is summed over many tensors, ``shared``: scalar states made of that, of which there is one
    for all parameters of a group.
    """

    program: Program
    storage: str
    scalars: tuple[Statement, ...]
    outputs: tuple[str, ...]
    math: tuple[Statement, ...]
    moments: tuple[MomentPlan, ...]
    noise: bool
    words: int
    scalar_states: tuple[tuple[str, float], ...] = ()
    floors: tuple[str, ...] = ()
    precision: str = "fp32"
    stages: tuple[Stage, ...] = ()
    kept: tuple[Kept, ...] = ()
    shapes: tuple[str, ...] = ()
    functions: tuple[Function, ...] = ()
    evaluation: Evaluation | None = None
    totals: Totals | None = None
    shared: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """Extra inputs per element, which elementwise code reads by name."""
        return tuple(x.name for x in self.program.extras if x.per == "element")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the scalar code gets beside hyperparameters: extra inputs per step, which of all
        were passed, then sums over many tensors."""
        extras = self.program.extras
        numbers = (x.name for x in extras if x.per == "step")
        totals = () if self.totals is None else self.totals.names
        return (*numbers, *(f"{x.name}{GIVEN}" for x in extras), *totals)

    @property
    def sums(self) -> tuple[Sums, ...]:
        """All passes before the step."""
        return tuple(s for stage in self.stages for s in stage.sums)

    @property
    def derived(self) -> tuple[Derived, ...]:
        """All that is made of sums between passes."""
        return tuple(d for stage in self.stages for d in stage.derived)

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """All reductions."""
        return tuple(r for s in self.sums for r in s.reductions)

    @property
    def passes(self) -> int:
        """How often the tensor is read."""
        return 1 + sum(s.source == ELEMENTS for s in self.sums)

    def read_by(self, s: Sums) -> tuple[bool, bool, tuple[str, ...]]:
        """Whether a pass reads the parameter and the gradient, and which moments."""
        if s.source != ELEMENTS:
            return False, False, ()
        read = {local_name(n) for e in s.expressions for n in walk(e) if isinstance(n, Ref)}
        found = []
        for m in self.moments:
            names = {m.code_name, m.scale_name} if m.apart else {f"{m.name}_prev"}
            if names & read:
                found.append(m.name)
        return "p" in read, "g" in read, tuple(found)

    @property
    def values(self) -> dict[str, str]:
        """What stages make and read beside elements, and for how much of a tensor each is one
        number: kept states before the step first, in order."""
        made = {f"{m.name}_prev": m.over for m in self.kept} | dict.fromkeys(self.shapes, "")
        for stage in self.stages:
            made |= {r.name: r.over for s in stage.sums for r in s.reductions}
            made |= {name: d.over for d in stage.derived for name in d.outputs}
        return made

    @property
    def reads(self) -> tuple[str, ...]:
        """Those that ``math`` reads, or what is summed over many tensors."""
        read = {local_name(n) for s in self.math for n in walk(s.expr) if isinstance(n, Ref)}
        read |= set() if self.totals is None else {*self.totals.sums.reads}
        return tuple(name for name in self.values if name in read)

    @property
    def statements(self) -> tuple[Statement, ...]:
        """Those of the step and of everything before it."""
        totals = () if self.totals is None else self.totals.sums.math
        before = (*(s.math for s in self.sums), *(d.math for d in self.derived), totals)
        return (*self.math, *(s for math in before for s in math))

    @property
    def elementwise(self) -> tuple[Expr, ...]:
        """All expressions of fp32 numbers, those of reductions and decomposed functions too."""
        inner = (e for f in self.functions for e in (*(s.expr for s in f.statements), f.result))
        last = () if self.evaluation is None else self.evaluation.elementwise
        return (*self._own, *inner, *last)

    @property
    def _own(self) -> tuple[Expr, ...]:
        totals = () if self.totals is None else self.totals.sums.reductions
        summands = (r.summand for r in (*self.reductions, *totals))
        return (*(s.expr for s in self.statements), *summands)

    def uses(self, functions: Set[str]) -> bool:
        """Whether any elementwise code, that of reductions included, has one of ``functions``."""
        return _calls(self._own, functions)

    def uses_inside(self, functions: Set[str]) -> bool:
        """Whether any decomposed function has one of ``functions``."""
        bodies = (e for f in self.functions for e in (*(s.expr for s in f.statements), f.result))
        return _calls(bodies, functions)

    def uses_evaluating(self, elementwise: Set[str], scalar: Set[str] = frozenset()) -> bool:
        """Whether ``evaluation`` has one of such functions, elementwise or in its scalars."""
        e = self.evaluation
        return e is not None and (
            _calls(e.elementwise, elementwise) or _calls((s.expr for s in e.scalars), scalar)
        )

    def uses_scalar(self, functions: Set[str]) -> bool:
        """Whether the scalar code has one of ``functions``."""
        return _calls((s.expr for s in self.scalars), functions)

    def check(self) -> KernelProgram:
        """Every name is defined before it is used and every function is one a printer knows."""
        called: frozenset[str] = frozenset()
        for f in self.functions:
            f.check(called)
            called |= {f.name}
        hypers = {h.name for h in self.program.hypers} | {"initial_lr"}
        hypers |= {GRADIENT_NORM} if norm_scope(self.program) else set()
        hypers |= {*self.inputs}
        known = hypers | {f"{name}_prev" for name, _ in self.scalar_states}
        for s in self.scalars:
            self._statement(s, known | {"t"}, SCALAR)
            known.add(s.target)
        missing = (set(self.outputs) | {name for name, _ in self.scalar_states}) - known
        if missing:
            raise LoweringError("SC390", f"scalars {sorted(missing)} are read but never computed")
        local = {"p", "g", "noise", *self.outputs, *self.tensors}
        for m in self.moments:
            local |= {m.code_name, m.scale_name} if m.apart else {f"{m.name}_prev"}
        totals = () if self.totals is None else (self.totals.sums,)
        for x in (*self.sums, *totals):
            known_there = {*self.outputs, *x.reads} | (local if x.source == ELEMENTS else set())
            for s in x.math:
                self._statement(s, known_there, ELEMENTWISE, called)
                known_there.add(s.target)
            for r in x.reductions:
                self._statement(Statement(r.name, r.operand), known_there, ELEMENTWISE, called)
        for d in self.derived:
            known_there = {*self.outputs, *d.reads}
            for s in d.math:
                self._statement(s, known_there, ELEMENTWISE, called)
                known_there.add(s.target)
        local |= {*self.reads}
        for s in self.math:
            self._statement(s, local, ELEMENTWISE, called)
            local.add(s.target)
        made = self.values
        for k in self.kept:
            if k.name not in made:
                raise LoweringError("SC390", f"state {k.name!r} is kept but never computed")
        for m in self.moments:
            if m.name not in local:
                raise LoweringError("SC390", f"moment {m.name!r} is stored but never computed")
        return self

    @staticmethod
    def _statement(
        s: Statement,
        known: set[str],
        operations: frozenset[str],
        called: frozenset[str] = frozenset(),
    ) -> None:
        for n in walk(s.expr):
            if isinstance(n, Ref) and local_name(n) not in known:
                raise LoweringError(
                    "SC390", f"{s.target} reads {local_name(n)!r} before it is computed"
                )
            if (
                isinstance(n, Op)
                and n.fn not in operations
                and (not called or function_name(n) not in called)
            ):
                raise LoweringError("SC306", f"{s.target}: no backend can print {n.fn!r} here")
            if not isinstance(n, Ref | Op | Const):
                raise LoweringError("SC390", f"{s.target}: unknown node {n!r}")


def _calls(expressions: Iterable[Expr], functions: Set[str]) -> bool:
    return any(isinstance(n, Op) and n.fn in functions for e in expressions for n in walk(e))


#: What generated code calls the norm of all gradients.
GRADIENT_NORM = "gradient_norm"
#: And, behind the name of an extra input, whether it was passed.
GIVEN = "_given"


def local_name(r: Ref) -> str:
    """The variable that holds a reference in the generated code."""
    fixed = {"grad": "g", "param": "p", "t": "t", "norm": GRADIENT_NORM, "stepped": "p"}
    endings = {"prev": "_prev", "given": GIVEN}
    return fixed.get(r.kind) or r.name + endings.get(r.kind, "")
