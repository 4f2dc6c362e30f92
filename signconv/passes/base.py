"""What a pass is, the registry of passes, and the rewrites that several of them share."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from signconv.errors import PassError, nearest
from signconv.ir.analysis import Ranges, inlined, is_scalar, unread
from signconv.ir.extras import reads_extra
from signconv.ir.nodes import (
    Const,
    Expr,
    Hyper,
    Moment,
    Op,
    Program,
    Ref,
    references,
    rewrite,
    walk,
)

Options = Mapping[str, str]

#: Default beta of a running maximum that a pass installs: one that never forgets (1, the paper's)
#: is set by a training's first gradients and ended 0.1 to 0.17 nats higher (docs/results.md).
FORGETTING = 0.99


@dataclass(frozen=True)
class Pass:
    """A rewrite of a Program, found by name on the command line.

    ``order`` places it in the canonical sequence (docs/design.md#passes); passes of one ``group``
    exclude each other; ``options`` maps an option's name to its values, from which the tests on
    random programs draw: ``keep|drop``, a range ``1…8`` without default, or what a number x or a
    whole number n with a default can be, ``0 < x < 1``.  ``apply`` returns a
    rebuilt Program, or raises PassError where the pass does not apply.  ``source`` is the paper
    and its algorithm.  What the pass promises is checked by the law of its name
    (signconv/verification/laws/), where there is one.
    """

    name: str
    order: int
    group: str
    title: str
    summary: str
    source: str
    requires: str
    provides: str
    apply: Callable[[Program, Options], Program]
    options: Mapping[str, str]


def registry() -> dict[str, Pass]:
    """All passes, by name: every module of this package that defines PASS."""
    import signconv.passes as package

    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        made = getattr(importlib.import_module(f"{package.__name__}.{info.name}"), "PASS", None)
        if isinstance(made, Pass):
            found[made.name] = made
    return dict(sorted(found.items(), key=lambda item: item[1].order))


@dataclass(frozen=True)
class Request:
    """One pass as asked for: its name and options, e.g. ``stosign:eps=keep``."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        return ":".join((self.name, *(f"{k}={v}" for k, v in self.options)))


def parse(text: str) -> Request:
    """``stosign:eps=keep`` as a Request; unknown names and options are refused."""
    name, *options = text.strip().split(":")
    passes = registry()
    if name not in passes:
        raise PassError("SC201", f"unknown pass {name!r}; {nearest(name, passes)}")
    pairs: list[tuple[str, str]] = []
    for option in options:
        key, eq, value = option.partition("=")
        if not eq or key not in passes[name].options:
            known = passes[name].options
            ways = "; ".join(f"{k}={v}" for k, v in known.items()) or "none"
            raise PassError("SC202", f"pass {name!r} has no option {option!r}; it takes: {ways}")
        if key in dict(pairs):
            raise PassError("SC203", f"pass {name!r}: option {key!r} is given twice")
        pairs.append((key, value))
    return Request(name, tuple(sorted(pairs)))


#: What the passes of a group each decide.
_DECIDES = {
    "link": "how the finished ratio becomes the update",
    "point": "what is kept beside the parameters",
}


def canonical(requests: list[Request]) -> list[Request]:
    """Requests in canonical order; two of one group, or one twice, is an error that explains."""
    passes = registry()
    groups: dict[str, Request] = {}
    for r in requests:
        group = passes[r.name].group
        other = groups.setdefault(group, r)
        if other is not r:
            if other.name == r.name:
                raise PassError("SC204", f"pass {r.name!r} is asked for twice; it applies once")
            raise PassError(
                "SC205",
                f"{other.name!r} and {r.name!r} exclude each other: each decides "
                f"{_DECIDES.get(group, 'the same')}, so ask for one of them",
            )
    return sorted(requests, key=lambda r: passes[r.name].order)


def transform(p: Program, request: Request) -> Program:
    """Apply one requested pass and record it in the history."""
    made = registry()[request.name].apply(p, dict(request.options))
    return replace(made, history=(*p.history, request.text))


# ---------------------------------------------------------------- shared by several passes


def free_name(p: Program, *wanted: str) -> str:
    """The first of ``wanted`` that the program does not use yet."""
    for name in wanted:
        if name not in p.names:
            return name
    raise PassError("SC206", f"{p.name} already uses the names {', '.join(wanted)}")


def number(
    name: str, key: str, given: str, below: float = math.inf, most: float = math.inf
) -> float:
    """The number above 0 that an option gives as a default; PassError for anything else."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (0 < value < below and value <= most and value < math.inf):
        end = f" < {below:g}" if below < math.inf else f" <= {most:g}" if most < math.inf else ""
        raise PassError("SC218", f"{name}:{key}={given} is not a number 0 < {key}{end}")
    return value


def before_decay(p: Program, new: Hyper) -> tuple[Hyper, ...]:
    """The hyperparameters with one more, before those of weight decay."""
    hypers = list(p.hypers)
    places = [i for i, h in enumerate(hypers) if h.name in decay_names(p)]
    hypers.insert(min(places, default=len(hypers)), new)
    return tuple(hypers)


def refuse_second_point(p: Program, name: str) -> None:
    """Refuse an optimizer that keeps another point beside its parameters already."""
    if p.new_param is not None or p.eval_param is not None:
        raise PassError(
            "SC221",
            f"{p.name} keeps a second point beside its parameters already; {name} would add "
            "another: leave it out",
        )


def reread(
    e: Expr, plain: Callable[[str], Expr | None], corrected: Callable[[str], Expr | None]
) -> Expr:
    """``e`` with other reads of moments, by their names; None leaves one as it is.

    Bias-corrected reads first: the value inside them must not be rewritten on its own.
    """
    marks: dict[Expr, Expr] = {}

    def mark(x: Expr) -> Expr | None:
        if not (isinstance(x, Op) and x.fn == "corrected" and isinstance(x.args[0], Ref)):
            return None
        made = corrected(x.args[0].name)
        if made is None:
            return None
        marked = Ref("temp", f"corrected {x.args[0].name}")
        marks[marked] = made
        return marked

    def bare(x: Expr) -> Expr | None:
        return plain(x.name) if isinstance(x, Ref) and x.kind == "value" else None

    return rewrite(rewrite(rewrite(e, mark), bare), marks.get)


def looks_ahead(p: Program, e: Expr) -> Moment | None:
    """An EMA to which ``e`` adds its own newest input, as Nesterov's momentum does."""
    for n in walk(e):
        if isinstance(n, Op) and n.fn in ("add", "sub"):
            parts = [_unscaled(p, a) for a in n.args]
            for one, other in (parts, parts[::-1]):
                if isinstance(one, Ref) and one.kind == "value":
                    m = p.moment(one.name)
                    if m.kind == "ema" and m.input is not None and inlined(p, m.input) == other:
                        return m
    return None


def _unscaled(p: Program, e: Expr) -> Expr:
    """``e`` without the scalars that multiply or divide it, and without bias correction."""
    if isinstance(e, Op) and e.fn == "corrected":
        return e.args[0]
    if isinstance(e, Op) and e.fn in ("mul", "div"):
        for kept, factor in (e.args, e.args[::-1])[: 2 if e.fn == "mul" else 1]:
            if is_scalar(factor, p) and not is_scalar(kept, p):
                return _unscaled(p, kept)
    return e


def prune(p: Program, reason: str) -> Program:
    """Drop moments, temporaries, hyperparameters and extra inputs that nothing reads any more."""
    gone = set(unread(p, [x.name for x in p.defined]))
    p = replace(
        p,
        moments=tuple(m for m in p.moments if m.name not in gone),
        temps=tuple(x for x in p.temps if x.name not in gone),
    )
    names = [*(h.name for h in p.hypers if h.name != "lr"), *(x.name for x in p.extras)]
    left = unread(p, names)
    return replace(
        p,
        hypers=tuple(h for h in p.hypers if h.name not in left),
        extras=tuple(x for x in p.extras if x.name not in left),
        removed=(*p.removed, *((name, reason) for name in left)),
    )


def without_offset(e: Expr, p: Program) -> Expr:
    """A denominator without the scalars (eps) that are summands of the whole of it.

    sqrt(v) + eps and sqrt(v + eps), whose whole is the root, also times or over scalars.  What
    stands inside a factor, a function or a maximum is part of what the denominator means.
    """
    if isinstance(e, Ref) and e.kind == "temp" and not is_scalar(e, p):
        whole = p.temp(e.name).expr
        bare = without_offset(whole, p)
        return e if bare == whole else bare
    if not isinstance(e, Op):
        return e
    if e.fn == "add":
        kept = _summands(e, p)
        return e if kept == e else without_offset(kept, p)
    if e.fn in ("sqrt", "root") or (e.fn == "div" and is_scalar(e.args[1], p)):
        inner = without_offset(e.args[0], p)
        return e if inner == e.args[0] else replace(e, args=(inner, *e.args[1:]))
    if e.fn == "mul" and any(is_scalar(a, p) for a in e.args):
        args = tuple(a if is_scalar(a, p) else without_offset(a, p) for a in e.args)
        return e if args == e.args else replace(e, args=args)
    return e


def _summands(e: Expr, p: Program) -> Expr:
    """A sum without those of its summands that are scalars, but for what an extra input is part of:
    that is no eps."""
    if isinstance(e, Ref) and e.kind == "temp":
        whole = p.temp(e.name).expr
        bare = _summands(whole, p)
        return e if bare == whole else bare
    if not isinstance(e, Op) or e.fn != "add":
        return e
    kept = [_summands(a, p) for a in e.args if not is_scalar(a, p) or reads_extra(p, a)]
    if len(kept) < 2:
        return kept[0] if kept else e
    return e if tuple(kept) == e.args else replace(e, args=tuple(kept))


def refuse_unknown_sign(p: Program, name: str) -> None:
    """Refuse a denominator of extra inputs that may be negative for all that is known: a pass that
    is right for a size would turn the update round."""
    den = p.denominator
    if den is None or not reads_extra(p, den):
        return
    ranges = Ranges(p)

    def size(e: Expr) -> bool:
        if isinstance(e, Ref) and e.kind == "temp":
            return size(p.temp(e.name).expr)
        if isinstance(e, Op) and e.fn == "max":  # no less than either
            return any(map(size, e.args))
        if isinstance(e, Op) and e.fn in ("add", "mul", "div"):
            return all(map(size, e.args))
        return ranges.nonneg(e)

    if not size(den):
        raise PassError(
            "SC225",
            f"{name} needs a denominator that is never negative, and nothing says so of "
            f"{p.name}'s, which is made of extra inputs: declare them with ge=0, or write max(..., "
            "eps)",
        )


def sign_defaults(p: Program) -> Program:
    """Defaults for an update of size 1: lr times 0.2 (AdamW's update RMS), decay times 5."""
    if p.link == "sign":
        return p
    weights = _factors(p, p.decay.weight) if p.decay else set()

    def scaled(x: float, factor: float) -> float:
        return float(f"{x * factor:.12g}")

    def rescaled(h: Hyper) -> Hyper:
        value = scaled(h.default, 0.2 if h.name == "lr" else 5.0)
        changes = (h.name == "lr" or h.name in weights) and h.allows(value)
        return replace(h, default=value) if changes else h

    hypers = tuple(rescaled(h) for h in p.hypers)
    note = (
        "defaults: lr x 0.2 (the RMS of AdamW's update), weight_decay x 5, so that "
        "lr*weight_decay is kept"
    )
    return replace(p, hypers=hypers, notes=(*p.notes, note))


def _factors(p: Program, e: Expr) -> set[str]:
    """Hyperparameters which, times c, make e itself c times as large: of a product one factor, of
    a sum one of each summand, of a rule one of each case but 0.  A warmup inside the weight of a
    decay is none."""
    if isinstance(e, Ref):
        if e.kind == "temp":
            return _factors(p, p.temp(e.name).expr)
        return {e.name} if e.kind == "hyper" else set()
    if not isinstance(e, Op):
        return set()
    if e.fn in ("add", "sub", "where"):
        summed = e.args if e.fn != "where" else [a for a in e.args[1:] if a != Const(0.0)]
        each = [_factors(p, a) for a in summed]
        return set().union(*each) if all(each) else set()
    if e.fn in ("mul", "div", "neg"):
        args = e.args if e.fn == "mul" else e.args[:1]
        return next((found for a in args if (found := _factors(p, a))), set())
    return set()


def decay_names(p: Program) -> set[str]:
    """Hyperparameters that weight decay reads."""
    return references(p.decay.weight, "hyper") if p.decay else set()


def install_running_max(p: Program) -> Program:
    """Give a program without denominator one: G = max(beta*G, abs(numerator))."""
    state = free_name(p, "G", "G2")
    beta = free_name(p, "beta2", "beta3", "beta4", "beta5")
    moment = Moment(
        state, "max", input=Op("abs", (p.numerator,)), beta=Ref("hyper", beta), init="zero"
    )
    return replace(
        p,
        hypers=before_decay(p, Hyper(beta, FORGETTING, ge=0, le=1)),
        moments=(*p.moments, moment),
        denominator=Ref("value", state),
    )
