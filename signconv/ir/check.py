"""What is legal in a Program; runs after the DSL and after every pass."""

from __future__ import annotations

from signconv.errors import SpecError, nearest
from signconv.ir.analysis import (
    Ranges,
    after_step,
    evaluation_order,
    first_origin,
    is_scalar,
    made_of_stepped,
    reads_gradient,
    unread,
)
from signconv.ir.axes import by_shape, over, reduced_moments
from signconv.ir.nodes import (
    APART,
    FUNCTIONS,
    NOISES,
    PER,
    RELATIONS,
    SCOPES,
    SHAPES,
    STEPPED,
    Const,
    Expr,
    Extra,
    Hyper,
    Moment,
    Op,
    Program,
    Ref,
    Temp,
    all_expressions,
    everything,
    scopes,
    walk,
)
from signconv.ir.show import text
from signconv.ir.totals import Totals
from signconv.runtime.axes import ELEMENTS, NOTATION, reduced

LINKS = ("ratio", "stosign", "expected", "sign")
DECAYS = ("l2", "decoupled", "independent")


def check(p: Program) -> Program:
    """Return ``p`` if it is legal; raise SpecError naming what is not, with the user's line."""
    if p.link not in LINKS:
        raise SpecError("SC151", f"unknown link {p.link!r}; {nearest(p.link, LINKS)}")
    if p.noise not in NOISES:
        raise SpecError("SC151", f"unknown noise {p.noise!r}; {nearest(p.noise, NOISES)}")
    if p.link in ("stosign", "expected") and p.denominator is None:
        raise SpecError("SC151", f"link {p.link} needs a denominator")
    if p.decay is not None and p.decay.kind not in DECAYS:
        raise SpecError("SC137", f"unknown decay {p.decay.kind!r}; {nearest(p.decay.kind, DECAYS)}")
    _names(p)
    for e in everything(p):
        for n in walk(e):
            _node(p, n)
    _gradient(p)
    _after(p)
    _hypers(p)
    _extras(p)
    _moments(p)
    _axes(p)
    _scalars(p)
    _totals(p)
    return p


def _names(p: Program) -> None:
    seen: set[str] = set()
    x: Hyper | Extra | Moment | Temp
    for x in [*p.hypers, *p.extras, *p.defined]:
        if x.name in seen:
            raise SpecError("SC114", f"{x.name!r} is bound twice", x.origin)
        if not x.name.isidentifier() or not x.name.isascii():
            raise SpecError("SC111", f"{x.name!r} is not an ASCII identifier", x.origin)
        seen.add(x.name)


def _node(p: Program, n: Expr) -> None:
    if isinstance(n, Ref):
        tables = {
            "hyper": {h.name for h in p.hypers},
            "value": {m.name for m in p.moments},
            "prev": {m.name for m in p.moments},
            "temp": {x.name for x in p.temps},
            "grad": {"grad"},
            "param": {"param"},
            "t": {"t"},
            "norm": set(SCOPES),
            "stepped": {"stepped"},
            "shape": set(SHAPES),
            "extra": {x.name for x in p.extras if x.per == "element"},
            "number": {x.name for x in p.extras if x.per == "step"},
            "given": {x.name for x in p.extras},
        }
        if n.kind not in tables:
            raise SpecError("SC152", f"a program cannot refer to a {n.kind} ({n.name})")
        if n.name not in tables[n.kind]:
            raise SpecError("SC109", f"undefined symbol {n.name!r}; {nearest(n.name, p.names)}")
    elif isinstance(n, Op):
        if n.fn not in FUNCTIONS:
            raise SpecError(
                "SC152", f"unknown function {n.fn!r}; {nearest(n.fn, FUNCTIONS)}", n.origin
            )
        if len(n.args) != FUNCTIONS[n.fn]:
            raise SpecError("SC152", f"{n.fn} takes {FUNCTIONS[n.fn]} arguments", n.origin)
        if n.fn == "stochastic_sign":
            raise SpecError(
                "SC149",
                "stochastic_sign(m, sigma) can only be the whole update: update = "
                "stochastic_sign(…)",
                n.origin,
            )
        if n.fn == "total" and n.over not in SCOPES:
            known = nearest(n.over, SCOPES)
            raise SpecError("SC158", f"sum(…, over={n.over!r}): {known}", n.origin)
        if n.fn in APART and is_scalar(n.args[0], p):
            raise SpecError(
                "SC150",
                f"{n.fn.removeprefix('a')}() of a scalar: it runs over the elements of a tensor",
                n.origin,
            )
        _call(p, n)


def _axes(p: Program) -> None:
    """Reductions have something left to reduce, and what they leave has a name."""
    for e in everything(p):
        for n in walk(e):
            if not isinstance(n, Op) or n.fn not in APART:
                continue
            source = over(n.args[0], p)
            if n.fn == "msign":
                _matrix(n, source)
                continue
            if reduced(source, n.over) is None:
                kind = NOTATION[source]
                left = f"over axis={kind}" if kind else "over the whole tensor"
                raise SpecError(
                    "SC164",
                    f"{text(n)}: its operand is what a reduction {left} left: another can only be "
                    "over what that has not run over: -2 after -1 (or the other way), (1, ...) "
                    "after 0 (or the other way), -1 after blocks, or the whole tensor",
                    n.origin,
                )


def _matrix(n: Op, source: str) -> None:
    if source != ELEMENTS:
        raise SpecError(
            "SC170",
            f"{text(n)}: its operand is what a reduction left, and msign() is of all elements of "
            "a tensor",
            n.origin,
        )


def _totals(p: Program) -> None:
    """What all parameters share does not depend on how often one of them was stepped."""
    totals = Totals(p)
    if p.decay is not None and p.decay.kind == "l2" and totals.reached(p.decay.weight):
        raise SpecError(
            "SC168",
            "l2 decay is part of the gradient before anything is summed, and its weight reads a "
            "sum over all tensors: use decoupled(…), or a state's .prev",
            p.decay.origin,
        )
    for name in sorted(totals.shared):
        m = p.moment(name)
        if totals.names(m.reads, lambda r: r.kind == "t"):
            raise SpecError(
                "SC167",
                f"{name!r} is made of sums over all tensors, or goes with a state that is, and "
                "there is one for all parameters, while t is each parameter's own: count in a "
                "state, n = state(); n.next = n.prev + 1, and read n",
                m.origin,
            )


def _gradient(p: Program) -> None:
    """What stands for the gradient is made of it and of scalars; there is one norm."""
    kinds = {n.kind for n in walk(p.grad) if isinstance(n, Ref)} if p.grad is not None else set()
    if kinds - {"grad", "hyper", "norm", "t"}:
        raise SpecError("SC152", "what stands for the gradient reads more than it and scalars")
    found = scopes(p)
    if len(found) > 1:
        raise SpecError(
            "SC157",
            f"{p.name} reads norms or sums over {' and over '.join(sorted(found))}: a step has one "
            "of them",
            p.origin,
        )


def _after(p: Program) -> None:
    """What is known after the update is not read before it, and the update reaches the parameter;
    what is evaluated is at hand between steps."""
    late = after_step(p)

    def known_after(e: Expr) -> list[Ref]:
        return [n for n in walk(e) if isinstance(n, Ref) and made_of_stepped(n, late)]

    before = [p.numerator, p.denominator, p.decay.weight if p.decay is not None else None]
    for e in (e for e in before if e is not None):
        for n in known_after(e):
            decay = p.decay if p.decay is not None and e is p.decay.weight else None
            kept = "keep it in a state and use its .prev" if n == STEPPED else "use .prev"
            raise SpecError(
                "SC159",
                f"the update reads {n.name!r}, which is known after it: {kept} for the last "
                "step's value",
                (decay and decay.origin) or first_origin(e) or p.origin,
            )
    for e in all_expressions(p):
        for x in walk(e):
            if isinstance(x, Op) and x.fn in (*APART, "total") and known_after(x):
                raise SpecError(
                    "SC161",
                    f"{'sum' if x.fn == 'total' else x.fn}() runs over the tensor before the "
                    "update, and cannot be of what is known after it",
                    x.origin or p.origin,
                )
    if p.new_param is not None and not known_after(p.new_param):
        raise SpecError(
            "SC162",
            "new_param reads nothing of `stepped`, so the update would do nothing: write it as a "
            "change of stepped",
            first_origin(p.new_param) or p.origin,
        )
    if p.eval_param is not None:
        _evaluated(p, p.eval_param)
    for e in (e for e in (p.new_param, p.eval_param) if e is not None):
        if is_scalar(e, p):
            raise SpecError("SC160", "a parameter cannot become one number", p.origin)


def _evaluated(p: Program, e: Expr) -> None:
    """What ``eval_param`` is made of is there between steps."""
    for n in walk(e):
        wrong = ""
        if isinstance(n, Ref) and n.kind not in ("param", "hyper"):
            kept = n.kind == "value" and not is_scalar(n, p) and n.name not in reduced_moments(p)
            wrong = "" if kept else text(n)
            wrong += " (write the expression in its place)" if n.kind == "temp" else ""
        elif isinstance(n, Op) and (n.fn in (*APART, "corrected", "total")):
            wrong = text(n)
        if wrong:
            raise SpecError(
                "SC160",
                "eval_param is made of param, moments of its shape and hyperparameters, which are "
                f"there between steps, and not of {wrong}",
                first_origin(e) or p.origin,
            )


def _call(p: Program, n: Op) -> None:
    if n.fn == "corrected":
        m = n.args[0]
        if not isinstance(m, Ref) or m.kind != "value" or p.moment(m.name).kind != "ema":
            raise SpecError("SC142", ".corrected (bias correction) belongs to an ema", n.origin)
        if p.moment(m.name).init != "zero":
            raise SpecError("SC142", ".corrected needs an ema that starts from zero", n.origin)
    if n.fn == "root" and not (isinstance(n.args[1], Const) and n.args[1].value >= 1):
        raise SpecError("SC124", "root(x, order) takes a number >= 1 as order", n.origin)
    if n.fn == "pow":
        exponent = n.args[1]
        if isinstance(exponent, Const):
            if not is_scalar(n.args[0], p) and not 1 <= exponent.value <= 16:
                raise SpecError(
                    "SC144",
                    "a power of an elementwise expression takes an exponent from 1 to 16: below 1 "
                    "there are sqrt(x) and root(x, k), below 0 there is 1 / x",
                    n.origin,
                )
        elif not (is_scalar(n.args[0], p) and is_scalar(exponent, p)):
            words = "beta**t is for scalars: hyperparameters, t and numbers"
            if is_scalar(exponent, p):
                words = (
                    "a power of an elementwise expression takes a number as exponent: x**k of a "
                    "hyperparameter k is exp(k * log(x)), for x >= 0"
                )
            raise SpecError("SC145", words, n.origin)
    for i, a in enumerate(n.args):
        relation = isinstance(a, Op) and a.fn in RELATIONS
        if relation != (n.fn == "where" and i == 0):
            raise SpecError(
                "SC143",
                "a comparison belongs in the first place of where(…), and nothing else does; as a "
                "number it is where(condition, 1, 0)",
                n.origin,
            )


def _hypers(p: Program) -> None:
    if p.hyper("lr") is None:
        raise SpecError("SC138", f"{p.name} has no lr: add `lr = hyper(1e-3, ge=0)`", p.origin)
    for h in p.hypers:
        if not h.allows(h.default):
            raise SpecError(
                "SC121",
                f"the default {h.name} = {h.default:g} is outside its own range: {h.legal}",
                h.origin,
            )
    for name in unread(p, [h.name for h in p.hypers if h.name != "lr"]):
        raise SpecError("SC139", f"hyperparameter {name!r} is never read", p.hyper(name).origin)  # type: ignore[union-attr]


def _extras(p: Program) -> None:
    for x in p.extras:
        if x.per not in PER:
            raise SpecError("SC165", f"{x.name}: extra(per={x.per!r}); {nearest(x.per, PER)}")
    for name in unread(p, [x.name for x in p.extras]):
        origin = next(x.origin for x in p.extras if x.name == name)
        raise SpecError("SC139", f"the extra input {name!r} is never read", origin)


def _moments(p: Program) -> None:
    evaluation_order(p)
    _powers(p)
    names = [m.name for m in p.moments]
    for name in unread(p, names):
        raise SpecError("SC139", f"moment {name!r} is never read", p.moment(name).origin)
    for name in unread(p, [x.name for x in p.temps]):
        raise SpecError("SC139", f"{name!r} is never read", p.temp(name).origin)
    ranges = Ranges(p)
    for m in p.moments:
        if m.beta is not None and not is_scalar(m.beta, p):
            raise SpecError(
                "SC147",
                f"the beta of {m.name!r} must be the same for all elements of all parameters"
                + (
                    ": for a rule by shape keep two moments, and choose by where(ndim >= 2, …)"
                    if by_shape(m.beta, p)
                    else ""
                ),
                m.origin,
            )
        if m.kind == "max" and not (m.input is not None and ranges.nonneg(m.input)):
            raise SpecError(
                "SC148",
                f"max_ema needs an input that is never negative: {m.name} = max_ema(abs(…), …)",
                m.origin,
            )


def _powers(p: Program) -> None:
    ranges = Ranges(p)
    for e in all_expressions(p):
        for n in walk(e):
            if isinstance(n, Op) and n.fn == "pow" and isinstance(n.args[1], Const):
                whole = n.args[1].value == int(n.args[1].value)
                if not whole and not is_scalar(n.args[0], p) and not ranges.nonneg(n.args[0]):
                    raise SpecError(
                        "SC146",
                        f"a power {n.args[1].value:g} of what may be negative: write "
                        f"abs(x)**{n.args[1].value:g}",
                        n.origin,
                    )


def _scalars(p: Program) -> None:
    if not reads_gradient(p):
        raise SpecError("SC140", f"{p.name}'s update does not depend on the gradient", p.origin)
    for e in all_expressions(p):
        if isinstance(e, Op) and e.fn in RELATIONS:
            raise SpecError(
                "SC143",
                "a comparison is no number: write where(condition, a, b), where(condition, 1, 0) "
                "say",
                e.origin,
            )
    if p.decay is not None and not by_shape(p.decay.weight, p):
        raise SpecError(
            "SC147",
            "the weight of a decay must be the same for all elements of a parameter: it may read "
            "hyperparameters, t, ndim, numel, rows and columns",
            p.decay.origin,
        )
    for e in all_expressions(p):
        for n in walk(e):
            if isinstance(n, Op) and n.fn == "mod" and not is_scalar(n, p):
                raise SpecError("SC145", "t % k is for scalars", first_origin(n))
