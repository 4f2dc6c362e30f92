"""Terms: what the author's expressions build.

A term wraps an ir node and records the user's line.  Operators build nodes in source order and
evaluate nothing; ``==`` and ``<`` build relations, and testing a term for truth is an error.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, NoReturn

from signconv.errors import Origin, SpecError, nearest
from signconv.ir.nodes import Const, Expr, Extra, Op, Ref

#: What tensors have as methods, and expressions as functions.
FUNCTIONS_OF_ONE = (
    "abs", "exp", "log", "max", "mean", "min", "norm", "sign", "sqrt", "sum", "tanh",
)  # fmt: skip
#: What tensors say of their shape.
MEASURES = ("dim", "ndim", "numel", "shape", "size")

_HERE = str(Path(__file__).parent)


def caller() -> Origin:
    """The innermost line outside this package: the user's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno)


class Term:
    """An expression in an optimizer's description."""

    __slots__ = ("_node", "origin")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, node: Expr | None, origin: Origin | None = None) -> None:
        self._node = node
        self.origin = origin or caller()

    @property
    def node(self) -> Expr:
        assert self._node is not None
        return self._node

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in MEMBERS:
            raise SpecError(
                "SC154", f"only a moment has .{name}: bind one and write name.{name}", caller()
            )
        words = _tensors_attribute(name) or "use the DSL's own functions"
        raise SpecError("SC154", f"an expression has no .{name}: {words}", caller())

    def __add__(self, other: Any) -> Term:
        return call("add", self, other)

    def __radd__(self, other: Any) -> Term:
        return call("add", other, self)

    def __sub__(self, other: Any) -> Term:
        return call("sub", self, other)

    def __rsub__(self, other: Any) -> Term:
        return call("sub", other, self)

    def __mul__(self, other: Any) -> Term:
        return call("mul", self, other)

    def __rmul__(self, other: Any) -> Term:
        return call("mul", other, self)

    def __truediv__(self, other: Any) -> Term:
        return call("div", self, other)

    def __rtruediv__(self, other: Any) -> Term:
        return call("div", other, self)

    def __pow__(self, other: Any) -> Term:
        return call("pow", self, other)

    def __rpow__(self, other: Any) -> Term:
        return call("pow", other, self)

    def __mod__(self, other: Any) -> Term:
        return call("mod", self, other)

    def __neg__(self) -> Term:
        return call("neg", self)

    def __pos__(self) -> Term:
        return self

    def __abs__(self) -> Term:
        return call("abs", self)

    def __lt__(self, other: Any) -> Term:
        return call("lt", self, other)

    def __le__(self, other: Any) -> Term:
        return call("le", self, other)

    def __gt__(self, other: Any) -> Term:
        return call("gt", self, other)

    def __ge__(self, other: Any) -> Term:
        return call("ge", self, other)

    def __eq__(self, other: Any) -> Term:  # type: ignore[override]
        return call("eq", self, other)

    def __ne__(self, other: Any) -> Term:  # type: ignore[override]
        return call("ne", self, other)

    def __matmul__(self, other: Any) -> NoReturn:
        raise SpecError(
            "SC131",
            "a matrix product is not supported: signconv compiles elementwise operations and "
            "reductions over dimensions (matrix methods such as Muon need another tool)",
            caller(),
        )

    __rmatmul__ = __matmul__

    def __iter__(self) -> NoReturn:
        raise SpecError(
            "SC132",
            "an expression stands for one element and cannot be iterated: over the tensor there "
            "are sum(x), mean(x), norm(x), max(x) and min(x)",
            caller(),
        )

    def _refuse_items(self, *_: Any) -> NoReturn:
        raise SpecError(
            "SC132", "an expression stands for one element; it has no items or shape", caller()
        )

    __getitem__ = __len__ = _refuse_items

    def _refuse_logic(self, *_: Any) -> NoReturn:
        raise SpecError(
            "SC133",
            "conditions are not combined by &, | or ~: write one where(…) inside the other",
            caller(),
        )

    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = _refuse_logic

    def __bool__(self) -> NoReturn:
        raise SpecError(
            "SC133",
            "an expression has no truth value while the optimizer is described: use where(cond, "
            "a, b) for a choice, max()/min() of the DSL, and no chained comparison, and/or/not",
            caller(),
        )

    def __float__(self) -> NoReturn:
        raise SpecError(
            "SC134", "an expression is not a number yet; use the DSL's own functions", caller()
        )

    __int__ = __index__ = __float__

    @classmethod
    def __torch_function__(cls, func: Any, *_: Any, **__: Any) -> NoReturn:
        """What torch asks before it takes an expression for a tensor, in ``torch.sqrt(v)``."""
        name = getattr(func, "__name__", "")
        words = f"write {name}(x)" if name in FUNCTIONS_OF_ONE else "use numbers and the DSL's own"
        text = f"an expression is not a tensor yet, which torch's {name} needs: {words}"
        raise SpecError("SC134", text, caller())


def _tensors_attribute(name: str) -> str | None:
    """What to write in place of an attribute that a tensor would have."""
    if name in FUNCTIONS_OF_ONE:
        return f"write {name}(x)"
    if name in MEASURES:
        return "it is one element; of the parameter there are ndim, numel, rows and columns"
    if name in ("T", "mT", "H", "matmul", "mm", "t", "transpose"):
        return (
            "it is one element: there are no transposes and matrix products but in msign(x), and "
            "reductions over dimensions, such as mean(x, axis=-1)"
        )
    return None


class Named(Term):
    """A term that gets its name when the class body binds it: a hyperparameter or a moment."""

    __slots__ = ("name",)
    kind = ""
    what = ""

    def __init__(self) -> None:
        super().__init__(None)
        self.name: str | None = None

    @property
    def node(self) -> Expr:
        if self.name is None:
            raise SpecError(
                "SC116",
                f"{self.what} inside an expression has no name: bind it first, as in "
                "`m = ema(grad, beta1)`, and use the name",
                caller(),
            )
        return Ref(self.kind, self.name)


class HyperTerm(Named):
    """What ``hyper`` returns."""

    __slots__ = ("default", "ranges")
    kind = "hyper"
    what = "a hyperparameter"

    def __init__(self, default: float, ranges: dict[str, float | None]) -> None:
        super().__init__()
        self.default = default
        self.ranges = ranges


class ExtraTerm(Named):
    """What ``extra`` returns."""

    __slots__ = ("nonneg", "per")
    what = "an extra input"

    def __init__(self, per: str, nonneg: bool) -> None:
        super().__init__()
        self.per, self.nonneg = per, nonneg

    @property
    def node(self) -> Expr:
        named = super().node
        assert isinstance(named, Ref)
        return Extra(named.name, self.per).ref


MEMBERS = ("corrected", "next", "prev")


class MomentTerm(Named):
    """What ``ema``, ``max_ema``, ``moment`` and ``state`` return."""

    __slots__ = ("_next", "beta", "init", "input", "recurrence", "store")
    kind = "value"
    what = "a moment"

    def __init__(self, recurrence: str, input: Any, beta: Any, init: Any, store: str) -> None:
        super().__init__()
        self.store = store
        self.recurrence = recurrence
        self.input = None if input is None else lift(input)
        self.beta = None if beta is None else lift(beta)
        self.init = init
        self._next: Expr | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        inside = sys._getframe(1).f_code.co_filename.startswith(_HERE)
        if not inside and name != "next":
            raise SpecError("SC127", f".{name} cannot be set: only a state's .next can", caller())
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        words = _tensors_attribute(name) or nearest(name, MEMBERS)
        raise SpecError("SC126", f"a moment has no .{name}; {words}", caller())

    @property
    def prev(self) -> Term:
        """The value after the last step."""
        node = self.node
        assert isinstance(node, Ref)
        return Term(Ref("prev", node.name))

    @property
    def corrected(self) -> Term:
        """The value divided by the sum of its weights: bias correction (EMAs from zero only)."""
        return call("corrected", self)

    @property
    def next(self) -> Expr | None:
        return self._next

    @next.setter
    def next(self, value: Any) -> None:
        if self.recurrence != "state":
            raise SpecError(
                "SC128",
                f"only state() has .next; {self.recurrence}() fixes its recurrence",
                caller(),
            )
        if self._next is not None:
            raise SpecError("SC129", f"{self.name}.next is set twice", caller())
        self._next = lift(value)


class DecayTerm:
    """What ``l2``, ``decoupled`` and ``independent`` return."""

    def __init__(self, kind: str, weight: Any) -> None:
        self.kind = kind
        self.weight = lift(weight)
        self.origin = caller()


def lift(value: Any) -> Expr:
    """A term or a number as a node; anything else is refused with the user's line."""
    if isinstance(value, Term):
        return value.node
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(
            "SC118",
            f"{value!r} ({type(value).__name__}) cannot stand in an expression: use numbers and "
            "terms of the DSL",
            caller(),
        )
    return Const(finite(value, "a number in an expression"))


def call(fn: str, *args: Any, over: str = "", how: str = "") -> Term:
    """An Op of the given function with the user's line."""
    origin = caller()
    return Term(Op(fn, tuple(lift(a) for a in args), over=over, how=how, origin=origin), origin)


def finite(x: float, what: str) -> float:
    """``x`` as a float; a number that is none (inf, nan, 10**400) is refused."""
    try:
        made = float(x)
    except OverflowError:
        made = math.inf
    if not math.isfinite(made):
        raise SpecError("SC119", f"{what}: {made:g} is not a finite number", caller())
    return made
