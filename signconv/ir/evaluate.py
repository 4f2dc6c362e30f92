"""A float64 interpreter of Programs: the meaning of a spec, in NumPy.

It shares no code with the lowering or the printers, so its agreement with hand-written optimizers
checks the DSL and the passes, and its agreement with the reference checks the lowering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from signconv.errors import LoweringError
from signconv.ir.analysis import around_step, is_scalar
from signconv.ir.axes import by_shape, has_blocks, reduced_moments
from signconv.ir.extras import needed
from signconv.ir.nodes import REDUCTIONS, Const, Expr, Moment, Op, Program, Ref, Temp, norm_scope
from signconv.ir.totals import Totals
from signconv.runtime.polar import triples

Array = npt.NDArray[np.float64]
State = dict[str, Array]
BLOCK = 32  # elements of a block of a row


class Evaluator:
    """Runs a Program in float64.

    ``step`` takes and returns float64 arrays of one parameter, in its shape where anything runs
    over dimensions, else in any; ``noise`` is the draw of a stochastic sign, uniform on (-1, 1),
    given by the caller; ``norm`` that of all gradients, of this one alone unless it is given, as
    totals are of this tensor alone; ``extras`` the extra inputs of this step by name, without those
    that are not passed.
    """

    def __init__(self, program: Program, **hypers: float) -> None:
        self.program = program
        self.hypers = {h.name: np.float64(hypers.pop(h.name, h.default)) for h in program.hypers}
        if hypers:
            raise LoweringError(
                "SC309", f"{program.name} has no hyperparameter {sorted(hypers)[0]!r}"
            )
        self.initial_lr = self.hypers["lr"]
        self.before, self.after = around_step(program)
        self.once = reduced_moments(program)
        self.blocks = has_blocks(program)
        #: What a weight of l2 decay may read, which is known before the gradient is.
        totals, names = Totals(program), [(x, _ref_to(x)) for x in self.before]
        self.scalars = [
            x
            for x, r in names
            if (is_scalar(r, program) or by_shape(r, program)) and not totals.reached(r)
        ]
        self.needed = needed(program)
        self.absent = np.zeros(())  # in place of an extra input that was not passed
        self.shape: tuple[int, ...] = ()  # of the tensor that is stepped

    def initial_state(self, param: Array) -> State:
        """State before the first step."""
        made: State = {}
        for m in self.program.moments:
            start = m.init.value if isinstance(m.init, Const) else 0.0
            made[m.name] = param.copy() if m.init == "param" else np.full_like(param, start)
            if m.name in self.once:
                made[m.name] = np.full(self.kept(param.shape, self.once[m.name]), start)
        return made

    def kept(self, shape: tuple[int, ...], over: str) -> tuple[int, ...]:
        """The shape of a state that is one number ``over`` some dimensions of a tensor's."""
        left = self.left(self.split(shape), over)
        return (*left[:-2], left[-2] * left[-1]) if self.blocks else left

    def split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As what a tensor is looked at: rows in blocks where anything runs over these."""
        if not self.blocks:
            return shape
        *before, row = shape or (1,)
        width = row if row % BLOCK else BLOCK
        return (*before, row // width, width)

    def step(
        self,
        param: Array,
        grad: Array,
        state: State,
        t: int,
        noise: Array | None = None,
        norm: Array | None = None,
        extras: Mapping[str, Array] | None = None,
    ) -> tuple[Array, State]:
        """Parameter and state after step ``t`` (1, 2, …); nothing is changed in place.

        Raises LoweringError where a stochastic sign has no draw, or an extra input that the step
        cannot do without is missing.
        """
        p, passed, shape = self.program, dict(extras or {}), param.shape
        if self.blocks:
            split = self.split(shape)

            def seen(x: Array) -> Array:
                return np.reshape(x, split) if x.shape == shape else x

            param, grad = seen(param), seen(grad)
            noise = None if noise is None else seen(noise)
            passed = {name: seen(x) for name, x in passed.items()}
            state = {
                name: np.reshape(x, self.left(split, self.once[name]))
                if name in self.once
                else seen(x)
                for name, x in state.items()
            }
        self.shape = param.shape
        for name in sorted(self.needed - passed.keys()):
            raise LoweringError("SC315", f"{p.name} reads {name}: pass extras={{{name!r}: …}}")
        lr = self.hypers["lr"]
        with np.errstate(all="ignore"):
            kind, weight = "", np.zeros(())
            if norm is None and norm_scope(p):
                norm = FUNCTIONS_OF_FLOAT64["norm"](grad)
            if p.grad is not None:
                grad = _Scope(self, param, grad, state, t, norm, passed)(p.grad)
            if p.decay is not None and p.decay.kind == "l2":
                early = _Scope(self, param, grad, state, t, norm, passed)
                for x in self.scalars:
                    early.define(x)
                grad = grad + early(p.decay.weight) * param
            scope = _Scope(self, param, grad, state, t, norm, passed)
            for x in self.before:
                scope.define(x)
            if p.decay is not None:
                kind, weight = p.decay.kind, scope(p.decay.weight)
            update = self._link(scope, noise)
            change = lr * update
            if kind == "decoupled":
                change = change + lr * weight * param
            elif kind == "independent":
                share = lr / self.initial_lr if self.initial_lr != 0 else 0.0
                change = change + share * weight * param
            scope.stepped = param - change
            for x in self.after:
                scope.define(x)
            made = scope.stepped if p.new_param is None else scope(p.new_param)
        if self.blocks:
            sizes = {name: self.kept(shape, over) for name, over in self.once.items()}
            values = {
                name: np.reshape(x, sizes.get(name, shape if x.shape == split else x.shape))
                for name, x in scope.values.items()
            }
            return np.reshape(made, shape), values
        return made, scope.values

    def left(self, shape: tuple[int, ...], over: str) -> tuple[int, ...]:
        """The shape of what a reduction leaves of ``shape``."""
        axis = _axes(shape, over, self.blocks)
        return tuple(1 if i in axis else n for i, n in enumerate(shape))

    def evaluated(self, param: Array, state: State) -> Array:
        """What the model is evaluated with where parameter and state are these."""
        if self.program.eval_param is None:
            return param
        scope = _Scope(self, param, param, state, 0, None)
        scope.values = state
        return scope(self.program.eval_param)

    def ratio(self, scope: _Scope) -> Array:
        """numerator / denominator with 0/0 = 0; as an update x/0 = 0 for every finite x, while the
        mean of a stochastic sign is clipped and so may be infinite here."""
        num = scope(self.program.numerator)
        if self.program.denominator is None:
            return num
        den = scope(self.program.denominator)
        nothing = num == 0 if self.program.link == "expected" else np.isfinite(num)
        return np.where(nothing & (den == 0), 0.0, num / den)

    def corrected(self, average: Array, weights: Array) -> Array:
        """An average divided by the sum of its weights."""
        return average / weights

    def operation(self, e: Op, *args: Array) -> Array:
        """The value of ``e`` for those of its operands."""
        if e.fn == "total":
            return FUNCTIONS_OF_FLOAT64["sum"](np.broadcast_to(args[0], self.shape))
        if e.fn == "msign":
            return self.msign(e, *args)
        if e.fn in REDUCTIONS:
            (x,) = args
            axis = _axes(x.shape, e.over, self.blocks)
            made = FUNCTIONS_OF_FLOAT64[e.fn](x, axis=axis, keepdims=True)
            return made if e.over else np.reshape(made, ())
        return FUNCTIONS_OF_FLOAT64[e.fn](*args)

    def msign(self, e: Op, x: Array) -> Array:
        """The matrix sign as the program's iteration finds it, in float64."""
        seen = self.matrices(e, x)
        norm = np.sqrt(np.sum(np.square(seen), axis=(1, 2), keepdims=True))
        made = np.where(norm == 0, 0.0, seen / norm)
        for a, b, c in triples(e.how):
            gram = made @ made.transpose(0, 2, 1)
            made = a * made + (b * gram + c * (gram @ gram)) @ made
        return np.reshape(made, x.shape)

    def matrices(self, e: Op, x: Array) -> Array:
        """What a matrix sign is found of: [matrices, rows, columns]."""
        whole = np.broadcast_to(x, self.shape)
        dims = (*whole.shape[:-2], whole.shape[-2] * whole.shape[-1]) if self.blocks else self.shape
        rows, columns = _matrix(dims)
        if e.over:
            rows, columns = (1,) * (2 - len(dims)) + dims[-2:]
        return np.reshape(whole, (-1, rows, columns))

    def _link(self, scope: _Scope, noise: Array | None) -> Array:
        p = self.program
        if p.link == "sign":
            return np.sign(scope(p.numerator))
        if p.link == "stosign":
            if noise is None:
                raise LoweringError("SC310", "a stochastic sign needs its draw: pass noise=")
            assert p.denominator is not None
            return np.sign(scope(p.numerator) + scope(p.denominator) * noise)
        ratio = self.ratio(scope)
        return np.clip(ratio, -1.0, 1.0) if p.link == "expected" else ratio


def _ref_to(x: Moment | Temp) -> Ref:
    return Ref("value" if isinstance(x, Moment) else "temp", x.name)


class _Scope:
    """Values of all names at one step."""

    def __init__(
        self,
        ev: Evaluator,
        param: Array,
        grad: Array,
        state: State,
        t: int,
        norm: Array | None = None,
        extras: Mapping[str, Array] | None = None,
    ) -> None:
        self.extras = extras or {}
        self.ev, self.param, self.grad, self.prev, self.t = ev, param, grad, state, t
        self.norm = norm
        self.stepped = param
        self.values: State = {}
        self.temps: State = {}

    def define(self, x: Moment | Temp) -> None:
        if isinstance(x, Moment):
            value = self.moment(x)
            shape = self.grad.shape
            if x.name in self.ev.once:
                shape = self.ev.left(self.grad.shape, self.ev.once[x.name])
            self.values[x.name] = np.broadcast_to(value, shape).copy()
        else:
            self.temps[x.name] = self(x.expr)

    def moment(self, m: Moment) -> Array:
        if m.next is not None:
            return self(m.next)
        assert m.input is not None and m.beta is not None
        u, beta, prev = self(m.input), self(m.beta), self.prev[m.name]
        if m.init == "first" and self.t == 1:
            return u
        return np.maximum(beta * prev, u) if m.kind == "max" else beta * prev + (1 - beta) * u

    def __call__(self, e: Expr) -> Array:
        if isinstance(e, Const):
            return np.float64(e.value)  # type: ignore[return-value]
        if isinstance(e, Ref):
            return self._ref(e)
        assert isinstance(e, Op)
        if e.fn == "corrected":
            ref = e.args[0]
            assert isinstance(ref, Ref)
            beta = self.ev.program.moment(ref.name).beta
            assert beta is not None
            return self.ev.corrected(self(ref), 1 - self(beta) ** self.t)
        return self.ev.operation(e, *(self(a) for a in e.args))

    def _ref(self, e: Ref) -> Array:
        tables: dict[str, Mapping[str, Array]] = {
            "value": self.values,
            "prev": self.prev,
            "temp": self.temps,
        }
        if e.kind in tables:
            return tables[e.kind][e.name]
        if e.kind == "hyper":
            return self.ev.hypers[e.name]  # type: ignore[return-value]
        if e.kind == "extra":  # what was not passed is 0 everywhere: a sum counts its elements
            return np.broadcast_to(self.extras.get(e.name, self.ev.absent), self.param.shape)
        if e.kind == "number":
            return self.extras.get(e.name, self.ev.absent)
        if e.kind == "given":
            return np.float64(e.name in self.extras)  # type: ignore[return-value]
        dims = self.param.shape
        rows, columns = _matrix(dims)
        shape = {"ndim": len(dims), "numel": math.prod(dims), "rows": rows, "columns": columns}
        fixed = {
            "grad": self.grad,
            "param": self.param,
            "t": np.float64(self.t),
            "norm": self.norm,
            "stepped": self.stepped,
            "shape": np.float64(shape.get(e.name, 0)),
        }
        return fixed[e.kind]  # type: ignore[return-value]


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the matrix that a tensor is: a vector is one row."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape[1:] if len(shape) > 1 else shape)


def _axes(shape: tuple[int, ...], over: str, blocks: bool) -> tuple[int, ...]:
    """The dimensions of an array that a reduction runs over; blocks: whether the last two are its
    rows, in blocks.

    A vector is a row: there are no dimensions before its own.
    """
    n = len(shape)
    row = [n - 2, n - 1] if blocks else [n - 1]
    first = row[0] > 0
    named = {
        "": range(n),
        "block": [n - 1],
        "last": row,
        "second_last": [row[0] - 1],
        "matrix": [row[0] - 1, *row],
        "first": [0] if first else [],
        "rest": range(1, n) if first else range(n),
    }
    return tuple(i for i in named[over] if 0 <= i < n)


#: What every function means, in NumPy.
FUNCTIONS_OF_FLOAT64: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "pow": np.power,
    "sqrt": np.sqrt,
    "root": lambda x, order: np.power(x, 1 / order),
    "abs": np.abs,
    "sign": np.sign,
    "max": np.maximum,
    "min": np.minimum,
    "where": np.where,
    "norm": lambda x, **axis: np.sqrt(np.sum(np.square(x), **axis)),
    "mean": np.mean,
    "sum": np.sum,
    "amax": np.max,
    "amin": np.min,
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "mod": np.mod,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
