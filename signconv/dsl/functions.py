"""What a class body is written with: inputs, hyperparameters, moments and functions, as terms."""

from __future__ import annotations

import builtins
import math
from typing import Any

from signconv.dsl.terms import (
    DecayTerm,
    ExtraTerm,
    HyperTerm,
    MomentTerm,
    Term,
    call,
    caller,
    lift,
)
from signconv.errors import SpecError, nearest
from signconv.ir.nodes import GRAD, PER, SCOPES, STATES, STEPPED, Const, Extra, Ref
from signconv.runtime.polar import MOST_STEPS, SCHEDULES, STEPS, named

grad = Term(Ref("grad", "grad"))
param = Term(Ref("param", "param"))
t = Term(Ref("t", "t"))
stepped = Term(STEPPED)
ndim = Term(Ref("shape", "ndim"))
numel = Term(Ref("shape", "numel"))
rows = Term(Ref("shape", "rows"))
columns = Term(Ref("shape", "columns"))


def hyper(
    default: float,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> HyperTerm:
    """A hyperparameter with a default and a legal range (ge: >=, gt: >, le: <=, lt: <).

    A bound of infinity, below or above, is none.
    """
    number = _plain(default, "default")
    if number is None or not math.isfinite(number):
        raise SpecError(
            "SC120", f"a hyperparameter's default must be a number, not {default!r}", caller()
        )
    low = {n: _bound(n, x, -math.inf) for n, x in (("ge", ge), ("gt", gt))}
    high = {n: _bound(n, x, math.inf) for n, x in (("le", le), ("lt", lt))}
    return HyperTerm(float(number), {**low, **high})


def extra(*, per: str, ge: float | None = None) -> ExtraTerm:
    """An input beside the gradient, passed as ``step(name=…)``: a tensor for every parameter
    (per="element") or one number for all of them (per="step").

    ge=0 says that it is never negative, which is taken for granted.
    """
    if per not in PER:
        raise SpecError("SC165", f"extra(per={per!r}); {nearest(str(per), PER)}", caller())
    if ge is not None and (isinstance(ge, bool) or ge != 0):
        raise SpecError(
            "SC165", f"extra(ge={ge!r}): ge=0 is the one thing to say of its values", caller()
        )
    return ExtraTerm(per, ge is not None)


def given(x: Any) -> Term:
    """Whether an extra input was passed at this step: a condition for ``where``."""
    if not isinstance(x, ExtraTerm):
        raise SpecError(
            "SC166", "given(x) asks for an extra input: x = extra(per=…), then given(x)", caller()
        )
    name = x.node.name  # type: ignore[attr-defined]
    return Term(Extra(name, x.per).given, caller())


def _bound(name: str, bound: Any, none: float) -> float | None:
    """A bound as a plain number; None where there is none."""
    if bound is None or bound == none:
        return None
    number = _plain(bound, f"{name}=")
    if number is None or not math.isfinite(number):
        raise SpecError(
            "SC120", f"a hyperparameter's {name}= must be a number, not {bound!r}", caller()
        )
    return number


def _plain(x: Any, what: str) -> float | None:
    """A Python number that a generated module can hold; None for anything else."""
    if isinstance(x, bool) or not isinstance(x, int | float):
        return None
    try:
        float(x)
    except OverflowError:
        raise SpecError("SC120", f"a hyperparameter's {what} is past float64", caller()) from None
    return x if type(x) in (int, float) else float(x)


def _beta(beta: Any) -> Any:
    if isinstance(beta, int | float) and not 0 <= beta <= 1:
        raise SpecError("SC122", f"beta = {beta:g} is outside 0 <= beta <= 1", caller())
    return beta


def ema(u: Any, beta: Any, init: str = "zero", *, store: str | None = None) -> MomentTerm:
    """Exponential moving average s = beta*s + (1-beta)*u; init "zero", or "first": s = u at t=1.

    store: how it is kept between steps, as ``--state`` would say it ("fp32"); None leaves that to
    the build.  So for the other three.
    """
    return MomentTerm("ema", u, _beta(beta), _start(init), _store(store))


def _start(init: Any) -> str:
    if isinstance(init, Term):  # which compares with a string as an expression does
        words = "init is 'zero' or 'first'; an average with another start is a state(start)"
        raise SpecError("SC123", words, caller())
    if init not in ("zero", "first"):
        raise SpecError("SC123", f"init={init!r} is neither 'zero' nor 'first'", caller())
    return str(init)


def max_ema(u: Any, beta: Any = 1.0, *, store: str | None = None) -> MomentTerm:
    """Decayed running maximum s = max(beta*s, u), from zero; u must be >= 0."""
    return MomentTerm("max", u, _beta(beta), "zero", _store(store))


def moment(
    u: Any, *, order: float, beta: Any, init: str = "zero", store: str | None = None
) -> MomentTerm:
    """The moment of the given order: an EMA of u for order 1, of abs(u)**order otherwise."""
    if isinstance(order, bool) or not isinstance(order, int | float) or order < 1:
        raise SpecError("SC124", f"order = {order!r} is not a number >= 1", caller())
    if order == 1:
        return ema(u, beta, init, store=store)
    power = call("pow", u if order % 2 == 0 else call("abs", u), order)
    return ema(power, beta, init, store=store)


def state(init: Any = 0.0, *, store: str | None = None) -> MomentTerm:
    """Any other quantity kept between steps: set ``s.next = expression`` using ``s.prev``."""
    start = lift(init)
    if start == Ref("param", "param"):
        return MomentTerm("state", None, None, "param", _store(store))
    if not isinstance(start, Const):
        raise SpecError(
            "SC125",
            "state(init) takes a number, or param: for another start write where(t == 1, start, "
            "s.prev) where s.prev would stand",
            caller(),
        )
    return MomentTerm("state", None, None, start, _store(store))


def _store(store: Any) -> str:
    if store is None:
        return ""
    if store not in STATES:
        known = nearest(str(store), STATES)
        raise SpecError("SC156", f"store={store!r} is no state format; {known}", caller())
    return str(store)


def l2(weight: Any) -> DecayTerm:
    """Weight decay added to the gradient: g + weight*p."""
    return DecayTerm("l2", weight)


def decoupled(weight: Any) -> DecayTerm:
    """Decoupled weight decay: p shrinks by lr*weight*p (Loshchilov & Hutter 2019)."""
    return DecayTerm("decoupled", weight)


def independent(weight: Any) -> DecayTerm:
    """Weight decay independent of the learning rate's size: p shrinks by (lr/lr0)*weight*p."""
    return DecayTerm("independent", weight)


def sqrt(x: Any) -> Term:
    """Square root, correctly rounded."""
    return call("sqrt", x)


def root(x: Any, order: float) -> Term:
    """The root of the given order of x >= 0."""
    return call("root", x, order)


def abs(x: Any) -> Term:
    """Absolute value."""
    return call("abs", x)


def sign(x: Any) -> Term:
    """-1, 0 or 1; sign(0) = 0, sign(NaN) = NaN."""
    return call("sign", x)


def max(a: Any, b: Any = None, *, axis: Any = None, over: str = "tensor") -> Term:
    """The larger of two; of one expression its largest element, as ``mean`` takes its mean.  NaN if
    any is NaN."""
    return _extreme("max", a, b, axis, over)


def min(a: Any, b: Any = None, *, axis: Any = None, over: str = "tensor") -> Term:
    """The smaller of two; of one expression its smallest element, as ``mean`` takes its mean.  NaN
    if any is NaN."""
    return _extreme("min", a, b, axis, over)


def _extreme(fn: str, a: Any, b: Any, axis: Any, over: str) -> Term:
    if _many(fn, axis, over):
        raise SpecError(
            "SC158",
            f"{fn}(…, over={over!r}): over many tensors there are sum, mean, norm",
            caller(),
        )
    if b is None:
        return call(f"a{fn}", a, over=_over(fn, axis))
    if axis is not None:
        raise SpecError("SC163", f"{fn}(a, b) of two expressions takes no axis", caller())
    return call(fn, a, b)


def where(condition: Any, a: Any, b: Any) -> Term:
    """a where the condition holds, else b."""
    return call("where", condition, a, b)


def clip(x: Any, low: Any, high: Any) -> Term:
    """min(max(x, low), high)."""
    return call("clip", x, low, high)


def stochastic_sign(m: Any, sigma: Any) -> Term:
    """sign(m + sigma*n), n uniform on (-1, 1): mean clip(m/sigma, -1, 1).  Only as the update."""
    return call("stochastic_sign", m, sigma)


def exp(x: Any) -> Term:
    """Exponential function."""
    return call("exp", x)


def log(x: Any) -> Term:
    """Natural logarithm."""
    return call("log", x)


def tanh(x: Any) -> Term:
    """Hyperbolic tangent."""
    return call("tanh", x)


def norm(x: Any, *, axis: Any = None, over: str = "tensor") -> Term:
    """Euclidean norm, as ``mean`` takes the mean; ``norm(grad, over=…)`` is of gradients as they
    come, before decay and clipping."""
    if not _many("norm", axis, over):
        return call("norm", x, over=_over("norm", axis))
    return Term(Ref("norm", over)) if lift(x) == GRAD else sqrt(_total(call("pow", x, 2), over))


def mean(x: Any, *, axis: Any = None, over: str = "tensor") -> Term:
    """Mean over the tensor, or over dimensions of it: -1 (the last), -2, (-2, -1), 0, or
    (1, ...), all but the first.  A tensor of one dimension or none counts as one row.  Reduced
    dimensions are kept with one element: the result stands beside what it was made of.

    over: "group", all elements of all tensors of the param group together, or "all" that the
    optimizer steps: one number, and so a scalar."""
    if not _many("mean", axis, over):
        return call("mean", x, over=_over("mean", axis))
    return _total(x, over) / _total(1, over)


def sum(x: Any, start: Any = 0, *, axis: Any = None, over: str = "tensor") -> Any:
    """Sum, as ``mean`` takes the mean; of a list of expressions Python's own."""
    if _many("sum", axis, over):
        return _total(x, over)
    if isinstance(x, Term):
        return call("sum", x, over=_over("sum", axis))
    return builtins.sum(x, start)


def msign(
    x: Any, *, coefficients: str = "quintic", steps: int | None = None, axis: Any = None
) -> Term:
    """The matrix sign U V^T of x = U S V^T, its polar factor: x orthogonalized (Muon; Jordan et al.
    2024), found by ``steps`` matrix iterations in bf16 from x over its Frobenius norm.

    coefficients: "quintic", which leaves singular values between about 0.7 and 1.2 after its usual
    5 steps, of those that are 0.0015 of the norm or more; "polar_express" (8), whose come near 1;
    "newton_schulz" (16), 1 in the limit.
    axis: without one the first dimension stands against all others, as of a convolution's kernel,
    and a vector is one row: x/norm(x); (-2, -1): the last two dimensions are a matrix each.

    Elementwise, of x's shape; fp32 that holds bf16 numbers.  Raises SpecError for coefficients,
    steps or an axis that there are not."""
    if coefficients not in SCHEDULES:
        known = nearest(str(coefficients), tuple(SCHEDULES))
        raise SpecError("SC169", f"msign(…, coefficients={coefficients!r}): {known}", caller())
    steps = STEPS[coefficients] if steps is None else steps
    most = MOST_STEPS[coefficients]
    if type(steps) is not int or not 1 <= steps <= most:
        nearer = ' (to come nearer to 1: coefficients="polar_express")'
        better = nearer if coefficients == "quintic" else ""
        raise SpecError(
            "SC169",
            f"msign(…, steps={steps!r}): a whole number from 1 to {most} of {coefficients}{better}",
            caller(),
        )
    over = "" if axis is None else _over("msign", axis)
    if over not in ("", "matrix"):
        raise SpecError(
            "SC169",
            f"msign(…, axis={axis!r}): (-2, -1), a matrix of the last two dimensions each, or no "
            "axis, the first dimension against all others",
            caller(),
        )
    return call("msign", x, over=over, how=named(coefficients, steps))


def _many(fn: str, axis: Any, over: Any) -> bool:
    """Whether ``over`` says that a reduction is over many tensors."""
    if over == "tensor":
        return False
    if axis is not None:
        raise SpecError("SC163", f"{fn}(…, over={over!r}) takes no axis", caller())
    if over not in SCOPES:
        known = nearest(str(over), ("tensor", *SCOPES))
        raise SpecError("SC158", f"{fn}(…, over={over!r}): {known}", caller())
    return True


def _total(x: Any, over: str) -> Term:
    return call("total", x, over=over)


#: Which reductions ``axis=`` can name.
_AXES = {
    -1: "last",
    -2: "second_last",
    0: "first",
    (-2, -1): "matrix",
    (1, ...): "rest",
    "block": "block",
}


def _over(fn: str, axis: Any) -> str:
    """The name of what ``axis=`` says (``runtime.axes``)."""
    if axis is None:
        return ""
    single = axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis
    parts = single if isinstance(single, tuple) else (single,)
    plain = all(type(x) in (int, str) or x is ... for x in parts)
    if not plain or single not in _AXES:
        raise SpecError(
            "SC163",
            f'{fn}(…, axis={axis!r}): an axis is -1, -2, (-2, -1), 0, (1, ...) or "block", and '
            "all of the tensor without one",
            caller(),
        )
    return _AXES[single]
