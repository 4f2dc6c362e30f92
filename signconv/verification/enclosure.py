"""What fp32 arithmetic may make of a float64 result: intervals that the evaluator runs on.

``verify`` and the random programs of ``tools.fuzz`` compare the reference with these.

``Evaluator`` is written in NumPy functions, and ``Enclosed`` answers to those.  Every operation
widens its result by a few units in the last place and one subnormal, so whatever order the
lowering chooses for scalars and divisions, the reference has to land inside; a comparison whose
sides overlap takes both branches.  Past the largest fp32 number, and where a NaN may come up, the
interval is open and says so, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from signconv.ir.bounds import Ties, ratios
from signconv.ir.evaluate import Evaluator
from signconv.ir.nodes import Const, Expr, Op, Program, Ref, walk
from signconv.lower.quotients import DEPTH
from signconv.runtime.formats import STRIDE
from signconv.verification.matrix import sign_error

LARGEST = float(np.finfo(np.float32).max)
#: Units in the last place per operation: a quotient by a scalar is two roundings, an integer
#: power a few, exp and tanh are within 2 and 4.
ULPS = 8


class Fuzzy:
    """A comparison of intervals: ``must`` where it surely holds, ``may`` where it can."""

    def __init__(self, must: Any, may: Any, unit: float = 2.0**-24) -> None:
        self.must, self.may, self.unit = must, may, unit

    def __and__(self, other: Any) -> Fuzzy:
        other = other if isinstance(other, Fuzzy) else Fuzzy(other, other)
        return Fuzzy(self.must & other.must, self.may & other.may, self.unit)

    __rand__ = __and__

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """A choice between two plain numbers, which know nothing of intervals."""
        return Enclosed(0.0, 0.0, False, self.unit).__array_function__(
            function, types, args, kwargs
        )


class Enclosed(NDArrayOperatorsMixin):
    """Intervals [lo, hi], and where the value may be NaN; ``unit`` is 2**-24, in bf16 2**-8."""

    def __init__(self, lo: Any, hi: Any, nan: Any = False, unit: float = 2.0**-24) -> None:
        lo, hi = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
        bad = np.isnan(lo) | np.isnan(hi)
        self.lo, self.hi = np.where(bad, -np.inf, lo), np.where(bad, np.inf, hi)
        self.nan = np.broadcast_to(bad | nan, self.lo.shape)
        self.unit = unit

    @property
    def tiny(self) -> float:
        """One and the other half of the smallest subnormal: 2**-148 in fp32, 2**-132 in bf16."""
        return self.unit * 2.0**-124

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lo.shape

    def copy(self) -> Enclosed:
        return Enclosed(self.lo.copy(), self.hi.copy(), self.nan.copy(), self.unit)

    @property
    def open(self) -> Any:
        """Where the interval proves nothing."""
        return self.nan | np.isinf(self.lo) | np.isinf(self.hi)

    def has(self, x: Any) -> Any:
        """Where ``x`` lies inside."""
        return np.where(np.isnan(x), self.nan, (self.lo <= x) & (x <= self.hi))

    def wider(self, by: Any) -> Enclosed:
        """Every interval larger by ``by`` on both sides."""
        return Enclosed(self.lo - by, self.hi + by, self.nan, self.unit)

    # ---------------------------------------------------------------- NumPy

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        with np.errstate(all="ignore"):
            if ufunc in _COMPARED:
                return _COMPARED[ufunc](*(self._lift(x) for x in inputs))
            if ufunc is np.power:
                return self._power(inputs[0], float(inputs[1]))
            return _RULES[ufunc](*(self._lift(x) for x in inputs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            if function is np.where:
                return self._where(*args)
            if function is np.clip:
                x, low, high = args
                return np.minimum(np.maximum(x, low), high)
            if function is np.broadcast_to:
                x, shape = args
                lo, hi, nan = (np.broadcast_to(a, shape) for a in (x.lo, x.hi, x.nan))
                return Enclosed(lo, hi, nan, x.unit)
            if function is np.reshape:
                x, shape = args
                lo, hi, nan = (np.reshape(a, shape) for a in (x.lo, x.hi, x.nan))
                return Enclosed(lo, hi, nan, x.unit)
            if function in (np.max, np.min):
                (x,) = args
                nan = np.broadcast_to(x.nan, x.shape).any(**kwargs)
                return Enclosed(function(x.lo, **kwargs), function(x.hi, **kwargs), nan, x.unit)
            if function in (np.sum, np.mean):
                return self._sum(function, args[0], kwargs)
        return NotImplemented

    def _sum(self, function: Any, x: Enclosed, axes: dict[str, Any]) -> Enclosed:
        """Sum or mean over some dimensions, in whatever order."""
        size = np.maximum(np.abs(x.lo), np.abs(x.hi)).sum(**axes)
        count = x.lo.size // size.size
        # STRIDE numbers one after the other, and a tree
        slack = x.unit * (np.log2(count + 1) + STRIDE + ULPS) * size + count * x.tiny
        # Partial sums: Inf - Inf
        nan = np.broadcast_to(x.nan, x.shape).any(**axes) | (size > LARGEST / 2)
        slack = np.where(nan, np.inf, slack)
        total = Enclosed(x.lo.sum(**axes) - slack, x.hi.sum(**axes) + slack, nan, x.unit)
        if function is np.sum:
            nonneg = (x.lo >= 0).all(**axes)
            total.lo = np.where(nonneg, np.maximum(total.lo, 0.0), total.lo)
            return _rounded(total)
        return total / float(count)

    def _lift(self, x: Any) -> Enclosed:
        """A number enters fp32 rounded once."""
        if isinstance(x, Enclosed):
            return x
        x = np.asarray(x, np.float64)
        exact = Enclosed(x, x, False, self.unit)
        return exact if (x == x.astype(np.float32)).all() else _rounded(exact)

    def _where(self, condition: Any, a: Any, b: Any) -> Enclosed:
        a, b = self._lift(a), self._lift(b)
        if not isinstance(condition, Fuzzy):
            condition = Fuzzy(np.asarray(condition), np.asarray(condition))
        must, may = condition.must, condition.may
        lo = np.where(must, a.lo, np.where(may, np.minimum(a.lo, b.lo), b.lo))
        hi = np.where(must, a.hi, np.where(may, np.maximum(a.hi, b.hi), b.hi))
        nan = np.where(must, a.nan, np.where(may, a.nan | b.nan, b.nan))
        return Enclosed(lo, hi, nan, self.unit)

    def _power(self, base: Enclosed, n: float) -> Enclosed:
        if n == int(n) and n % 2 == 0:
            base = _abs(base)
        nan = base.nan | ((base.lo < 0) & (n != int(n)))
        low = base.lo if n == int(n) else np.maximum(base.lo, 0.0)
        return _rounded(Enclosed(low**n, base.hi**n, nan, self.unit), ULPS + 2 * n)


def _rounded(x: Enclosed, ulps: float = ULPS) -> Enclosed:
    """Widened by rounding; rounding keeps a sign, and past the largest number it may be Inf."""
    by = ulps * x.unit
    lo = x.lo - by * np.abs(x.lo) - x.tiny
    hi = x.hi + by * np.abs(x.hi) + x.tiny
    lo = np.where((x.lo >= 0) & (lo < 0), 0.0, np.minimum(lo, LARGEST))
    hi = np.where((x.hi <= 0) & (hi > 0), 0.0, np.maximum(hi, -LARGEST))
    lo = np.where(lo < -LARGEST, -np.inf, lo)
    hi = np.where(hi > LARGEST, np.inf, hi)
    return Enclosed(lo, hi, x.nan, x.unit)


def _has_zero(x: Enclosed) -> Any:
    return (x.lo <= 0) & (x.hi >= 0)


def _has_inf(x: Enclosed) -> Any:
    return np.isinf(x.lo) | np.isinf(x.hi)


def _hull(candidates: list[Any], nan: Any, unit: float) -> Enclosed:
    stacked = np.stack(np.broadcast_arrays(*candidates))
    bad = np.isnan(stacked).any(axis=0)
    lo = np.where(bad, -np.inf, stacked.min(axis=0))
    hi = np.where(bad, np.inf, stacked.max(axis=0))
    return _rounded(Enclosed(lo, hi, nan | bad, unit))


def _add(a: Enclosed, b: Enclosed) -> Enclosed:
    nan = a.nan | b.nan | (_has_inf(a) & _has_inf(b))
    return _rounded(Enclosed(a.lo + b.lo, a.hi + b.hi, nan, a.unit))


def _subtract(a: Enclosed, b: Enclosed) -> Enclosed:
    nan = a.nan | b.nan | (_has_inf(a) & _has_inf(b))
    return _rounded(Enclosed(a.lo - b.hi, a.hi - b.lo, nan, a.unit))


def _multiply(a: Enclosed, b: Enclosed) -> Enclosed:
    nan = a.nan | b.nan | (_has_zero(a) & _has_inf(b)) | (_has_inf(a) & _has_zero(b))
    return _hull([x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)], nan, a.unit)


def _divide(a: Enclosed, b: Enclosed) -> Enclosed:
    zero = _has_zero(b)
    nan = a.nan | b.nan | (zero & _has_zero(a)) | (_has_inf(a) & _has_inf(b))
    made = _hull([x / y for x in (a.lo, a.hi) for y in (b.lo, b.hi)], nan, a.unit)
    return Enclosed(
        np.where(zero, -np.inf, made.lo), np.where(zero, np.inf, made.hi), made.nan, a.unit
    )


def _abs(a: Enclosed) -> Enclosed:
    low = np.where(_has_zero(a), 0.0, np.minimum(np.abs(a.lo), np.abs(a.hi)))
    return Enclosed(low, np.maximum(np.abs(a.lo), np.abs(a.hi)), a.nan, a.unit)


def _monotone(f: Callable[[Any], Any]) -> Callable[[Enclosed], Enclosed]:
    return lambda a: _rounded(Enclosed(f(a.lo), f(a.hi), a.nan, a.unit))


def _exact(f: Callable[..., Any]) -> Callable[..., Enclosed]:
    def rule(*xs: Enclosed) -> Enclosed:
        nan = np.zeros((), bool)
        for x in xs:
            nan = nan | x.nan
        lows, highs = [x.lo for x in xs], [x.hi for x in xs]
        return Enclosed(f(*lows), f(*highs), nan, xs[0].unit)

    return rule


def _of_positive(f: Callable[[Any], Any]) -> Callable[[Enclosed], Enclosed]:
    def rule(a: Enclosed) -> Enclosed:
        low, high = np.maximum(a.lo, 0.0), np.maximum(a.hi, 0.0)
        made = Enclosed(f(low), f(high), a.nan | (a.lo < 0), a.unit)
        return _rounded(made)

    return rule


def _log(a: Enclosed) -> Enclosed:
    """Near 1 the logarithm is small and its error is that of the argument."""
    return _of_positive(np.log)(a).wider(ULPS * a.unit)


_RULES: dict[Any, Callable[..., Enclosed]] = {
    np.add: _add,
    np.subtract: _subtract,
    np.multiply: _multiply,
    np.divide: _divide,
    np.negative: lambda a: Enclosed(-a.hi, -a.lo, a.nan, a.unit),
    np.absolute: _abs,
    np.square: lambda a: _multiply(_abs(a), _abs(a)),
    np.sqrt: _of_positive(np.sqrt),
    np.log: _log,
    np.exp: _monotone(np.exp),
    np.tanh: _monotone(np.tanh),
    np.sign: _exact(np.sign),
    np.maximum: _exact(np.maximum),
    np.minimum: _exact(np.minimum),
}


def _less(a: Enclosed, b: Enclosed) -> Fuzzy:
    unsure = a.nan | b.nan
    return Fuzzy((a.hi < b.lo) & ~unsure, (a.lo < b.hi) | unsure, a.unit)


def _less_equal(a: Enclosed, b: Enclosed) -> Fuzzy:
    unsure = a.nan | b.nan
    return Fuzzy((a.hi <= b.lo) & ~unsure, (a.lo <= b.hi) | unsure, a.unit)


def _equal(a: Enclosed, b: Enclosed) -> Fuzzy:
    unsure = a.nan | b.nan
    same = (a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo)
    return Fuzzy(same & ~unsure, ((a.lo <= b.hi) & (b.lo <= a.hi)) | unsure, a.unit)


def _not_equal(a: Enclosed, b: Enclosed) -> Fuzzy:
    same = _equal(a, b)
    return Fuzzy(~same.may, ~same.must, a.unit)


def _finite(a: Enclosed) -> Fuzzy:
    return Fuzzy(
        ~a.open, np.isfinite(a.lo) | np.isfinite(a.hi) | ~_has_inf(a) | (a.lo < a.hi), a.unit
    )


_COMPARED: dict[Any, Callable[..., Fuzzy]] = {
    np.isfinite: _finite,
    np.less: _less,
    np.less_equal: _less_equal,
    np.greater: lambda a, b: _less(b, a),
    np.greater_equal: lambda a, b: _less_equal(b, a),
    np.equal: _equal,
    np.not_equal: _not_equal,
}


class Enclosing(Evaluator):
    """The evaluator on intervals; a sign update knows that the kernel compares powers.

    sign(m + root(v)*n) is computed as sign(m*|m| + v*n*|n|), which underflows earlier
    (docs/design.md#the-argument-of-a-sign has the range of gradients).  A root in a
    denominator may count what is tiny as 0, and of an overflow it is NaN (docs/design.md#ratios).
    """

    def __init__(self, program: Program, **hypers: float) -> None:
        super().__init__(program, **hypers)
        self.divisors = divisor_roots(program)
        self.absent: Any = Enclosed(0.0, 0.0)
        self.least = 1.0  # of the sums of weights that corrections divide by at this step
        #: Matrix signs that a backend made at this step (``matrix.watched``): they are taken from
        #: there, so that what comes after them keeps its own narrow intervals.
        self.signs: list[tuple[Any, Any]] = []
        self.worst_sign = 0.0  # the largest error of those, in units of its bound
        self.strays = 0  # that are of no operand, or beyond their bound

    def corrected(self, average: Any, weights: Any) -> Any:
        self._weigh(weights)
        return super().corrected(average, weights)

    def _weigh(self, weights: Any) -> None:
        lo = weights.lo if isinstance(weights, Enclosed) else weights
        self.least = min(self.least, float(np.min(lo)))

    def step(self, *args: Any, **given: Any) -> Any:
        self.least = 1.0
        return super().step(*args, **given)

    def operation(self, e: Op, *args: Any) -> Any:
        made: Any = super().operation(e, *args)
        if e.fn == "div" and _corrects(e.args[1]):  # written out: v / (1 - beta**t)
            self._weigh(args[1])
        if e not in self.divisors or not isinstance(args[0], Enclosed):
            return made
        order = _order(e)
        # What is too small may count as huge, and moves nothing; or as it is: the true value.
        # A kernel looks at averages before they are corrected
        small = args[0].lo * self.least < (
            2.0**-100 if order == 2 else 2.0**-126 if order < 5 else 2.0**-148
        )
        hi = np.where(small, 2.0**101 if order == 2 else np.inf, made.hi)
        return Enclosed(made.lo, hi, made.nan | np.isinf(args[0].hi), made.unit)

    def msign(self, e: Op, x: Any) -> Any:
        if not isinstance(x, Enclosed):
            return super().msign(e, x)
        if self.signs:
            return self._made(e, x)
        lo, hi = self.matrices(e, x.lo), self.matrices(e, x.hi)
        middle = np.where(np.isfinite(lo + hi), (lo + hi) / 2, 0.0)
        sign = self.matrices(e, super().msign(e, np.reshape(middle, np.shape(x.lo))))
        lost: Any = self.matrices(e, x.open).any(axis=(1, 2))
        errors = [
            np.inf if bad else sign_error(m, float(np.linalg.norm(high - m)), e.how)
            for bad, m, high in zip(lost, middle, hi, strict=True)
        ]
        by = np.reshape(errors, (-1, 1, 1))
        nan = np.reshape(np.broadcast_to(lost[:, None, None], sign.shape), self.shape)
        lo, hi = np.reshape(sign - by, self.shape), np.reshape(sign + by, self.shape)
        return Enclosed(lo, hi, nan, x.unit)

    def _made(self, e: Op, x: Any) -> Any:
        """The sign that a backend made of what lies in ``x``, looked at by itself."""
        lo, hi = self.matrices(e, x.lo), self.matrices(e, x.hi)
        for one in self.signs:
            if one[0].shape == lo.shape and ((lo <= one[0]) & (one[0] <= hi)).all():
                start, sign = one
                break
        else:
            self.strays += 1
            return Enclosed(np.full(self.shape, -np.inf), np.full(self.shape, np.inf), True, x.unit)
        wanted = self.matrices(e, super().msign(e, np.reshape(start, self.shape)))
        for x0, made, exact in zip(start, sign, wanted, strict=True):
            bound, gap = sign_error(x0, 0.0, e.how), float(np.linalg.norm(made - exact))
            self.strays += gap > bound
            self.worst_sign = max(self.worst_sign, gap / bound if bound else 0.0)
        made = np.reshape(sign, self.shape)
        return Enclosed(made, made, False, x.unit)

    def rounded_hypers(self, unit: float) -> None:
        """Hyperparameters as bf16 arithmetic reads them: 1 - beta is a bf16 difference."""
        one = Enclosed(1.0, 1.0, False, unit)
        self.hypers = {n: one * x for n, x in self.hypers.items()}
        self.absent = Enclosed(0.0, 0.0, False, unit)

    def _link(self, scope: Any, noise: Any) -> Any:
        p = self.program
        if p.link not in ("sign", "stosign"):
            return super()._link(scope, noise)
        num = scope(p.numerator)
        order = root_order(p) if p.link == "stosign" else 1
        blur = 2.0 ** (-125 / order) if order > 1 else 64 * num.tiny
        argument, size = num, _size(num)
        if p.link == "stosign":
            den = scope(p.denominator)
            argument = num + den * noise
            size = np.maximum(size, _size(den))
            slack = ULPS * argument.unit * (_size(num) + _size(den * noise))
            argument = argument.wider(blur + slack)
        else:
            argument = argument.wider(np.where(size == 0, 0.0, blur))
        lost = argument.nan | (size > 2.0 ** (126 / order - 6))
        made = np.sign(argument)
        return Enclosed(np.where(lost, -1, made.lo), np.where(lost, 1, made.hi), lost, made.unit)


def _corrects(e: Expr) -> bool:
    """Whether ``e`` is 1 - beta**t, which lowering takes out of a root."""
    if not (isinstance(e, Op) and e.fn == "sub" and e.args[0] == Const(1.0)):
        return False
    return isinstance(e.args[1], Op) and e.args[1].fn == "pow"


def divisor_roots(p: Program) -> set[Op]:
    """Roots in denominators that count what is tiny as 0 (lower/quotients.py)."""
    ties, found = Ties(p), set[Op]()

    def below(e: Expr, numerator: Expr, depth: int = DEPTH) -> None:
        if depth == 0:
            return
        if isinstance(e, Ref) and e.kind == "temp":
            below(p.temp(e.name).expr, numerator, depth - 1)
        elif isinstance(e, Op) and e.fn in ("sqrt", "root"):
            if ties(numerator, e.args[0], _order(e)):
                found.add(e)
        elif isinstance(e, Op):
            for a in e.args:
                below(a, numerator, depth - 1)

    for numerator, denominator in ratios(p):
        below(denominator, numerator)
    return found


def _order(e: Op) -> float:
    """Of a root."""
    return 2 if e.fn == "sqrt" else e.args[1].value  # type: ignore[attr-defined]


def _size(x: Enclosed) -> Any:
    return np.maximum(np.abs(x.lo), np.abs(x.hi))


def root_order(p: Program) -> int:
    """The product of the orders of all roots that the denominator takes."""
    order = 1
    pending = [] if p.denominator is None else [p.denominator]
    while pending:
        for n in walk(pending.pop()):
            if isinstance(n, Ref) and n.kind == "temp":
                pending.append(p.temp(n.name).expr)
            elif isinstance(n, Op) and n.fn == "sqrt":
                order *= 2
            elif isinstance(n, Op) and n.fn == "root":
                order *= int(n.args[1].value)  # type: ignore[attr-defined]
    return order
