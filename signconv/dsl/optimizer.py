"""The class body as a specification: names are taken as they are bound, in source order."""

from __future__ import annotations

import keyword
from dataclasses import replace
from typing import Any

from signconv.dsl import functions
from signconv.dsl.parts import cut_all
from signconv.dsl.terms import DecayTerm, ExtraTerm, HyperTerm, MomentTerm, Term, caller, lift
from signconv.errors import SpecError
from signconv.ir.check import check
from signconv.ir.nodes import (
    RELATIONS,
    Const,
    Decay,
    Expr,
    Extra,
    Hyper,
    Moment,
    Op,
    Program,
    Ref,
    Temp,
)

#: Bound in every class body; a spec may not rebind them.
PREBOUND = {
    name: getattr(functions, name)
    for name in (
        "abs", "clip", "columns", "decoupled", "ema", "exp", "extra", "given", "grad", "hyper",
        "independent", "l2", "log", "max", "max_ema", "mean", "min", "moment", "msign", "ndim",
        "norm", "numel", "param", "root", "rows", "sign", "sqrt", "state", "stepped",
        "stochastic_sign", "sum", "t", "tanh", "where",
    )
}  # fmt: skip
#: Names whose meaning is fixed: they say what the update is.
ROLES = ("numerator", "denominator", "update", "decay", "new_param", "eval_param")
#: Names that a generated module needs for itself, by what a spec may not call so (a test compares
#: them with what is generated): in its functions, …
RESERVED = frozenset({
    "p", "g", "noise", "moments", "scalars", "hypers", "states", "initial_lr", "real_t",
    "CODEC", "dev", "ref", "tl", "torch", "float", "gradient_norm",
})  # fmt: skip
#: … in its constructor and as keys of a param group, …
RESERVED_HYPERS = frozenset({
    "self", "super", "params", "betas", "seed", "backend", "maximize", "master", "skip_nonfinite",
    "unknown", "program", "format", "lr0", "param_names", "capturable", "evaluating",
})  # fmt: skip
#: … as arguments of ``step``, …
RESERVED_EXTRAS = frozenset({"self", "closure"})
#: … and as keys of a parameter's state, beside ``<moment>_scale``.
RESERVED_MOMENTS = frozenset({"step", "offset", "master", "master_check", "training"})


class _Body(dict[str, Any]):
    """The namespace of the class body: names terms when they are bound."""

    def __missing__(self, name: str) -> Any:
        if name in PREBOUND:
            return PREBOUND[name]
        raise KeyError(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if not (name.startswith("__") and name.endswith("__")) and name != "_":
            value = self._bind(name, value)
        super().__setitem__(name, value)

    def _bind(self, name: str, value: Any) -> Any:
        if name in PREBOUND:
            raise SpecError(
                "SC112", f"{name!r} is a name of the DSL and cannot be bound again", caller()
            )
        if self._reserved(name, value):
            raise SpecError(
                "SC113", f"{name!r} is reserved for generated code: choose another", caller()
            )
        self._endings(name, value)
        if not name.isascii():
            raise SpecError("SC111", f"{name!r}: names are ASCII identifiers", caller())
        if name in self:
            raise SpecError(
                "SC114", f"{name!r} is bound twice: each name has one meaning", caller()
            )
        if isinstance(value, HyperTerm | MomentTerm | ExtraTerm):
            if name in ROLES and value.name is not None:
                return value
            if name in ROLES:
                raise SpecError(
                    "SC116",
                    f"give the {value.what.split()[-1]} a name of its own before {name!r} uses it",
                    caller(),
                )
            if value.name is not None:
                raise SpecError(
                    "SC115", f"{value.name!r} already names this; use it instead", caller()
                )
            value.name = name
            value.origin = caller()
            return value
        if name == "decay":
            if not isinstance(value, DecayTerm):
                raise SpecError(
                    "SC137", "decay is one of l2(…), decoupled(…), independent(…)", caller()
                )
            return value
        if name in ROLES:
            if not isinstance(value, Term):
                lift(value)  # refuses what is no expression, at its own line
            return value
        if isinstance(value, Term) and isinstance(value.node, Op) and value.node.fn in RELATIONS:
            return Term(value.node, caller())  # a condition is no number: where(…) gets all of it
        if isinstance(value, Term):
            return TempTerm(name, value.node)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(
                "SC117",
                f"{name!r} is bound to a {type(value).__name__}: a spec holds numbers, "
                "hyperparameters, moments and expressions",
                caller(),
            )
        return value

    @staticmethod
    def _reserved(name: str, value: Any) -> bool:
        names = RESERVED
        if isinstance(value, HyperTerm):
            names = RESERVED | RESERVED_HYPERS
        elif isinstance(value, MomentTerm):
            names = RESERVED | RESERVED_MOMENTS
        elif isinstance(value, ExtraTerm):
            names = RESERVED | RESERVED_EXTRAS
        return name in names or name.startswith("_") or keyword.iskeyword(name)

    def _endings(self, name: str, value: Any) -> None:
        """``m_prev`` is m before the step, ``m_scale`` the key of m's block scales, ``x_given``
        whether an extra input was passed."""
        for end, kinds in (("_prev", object), ("_scale", MomentTerm), ("_given", object)):
            near = name.removesuffix(end) if name.endswith(end) else name + end
            if near in self and isinstance(value, kinds) and isinstance(self[near], kinds):
                asked = (value, self[near])
                if end == "_given" and not any(isinstance(x, ExtraTerm) for x in asked):
                    continue
                raise SpecError(
                    "SC113",
                    f"{name!r} beside {near!r}: generated code appends {end} to names",
                    caller(),
                )


class TempTerm(Term):
    """A named intermediate expression."""

    __slots__ = ("expr", "name")

    def __init__(self, name: str, expr: Expr) -> None:
        super().__init__(Ref("temp", name))
        self.name = name
        self.expr = expr


class OptimizerMeta(type):
    """Turns the class body into a Program, checked."""

    program: Program

    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **kwargs: Any) -> _Body:
        return _Body()

    def __new__(cls, name: str, bases: tuple[type, ...], body: _Body) -> OptimizerMeta:
        made = super().__new__(cls, name, bases, dict(body))
        if bases:
            made.program = check(_program(name, body))
        return made


class Optimizer(metaclass=OptimizerMeta):
    """Base of all optimizer descriptions; ``program`` holds the checked Program.

    A body binds hyperparameters (``lr`` is required), moments, named intermediate values, and
    ``numerator`` with or without ``denominator`` (or ``update``), and optionally ``decay``.
    Raises SpecError, with the user's file and line, for anything that is not a valid optimizer.
    """


def _program(name: str, body: _Body) -> Program:
    where = caller()
    if not (name.isidentifier() and name.isascii()):
        raise SpecError("SC111", f"the class name {name!r} is not an ASCII identifier", where)
    hypers, moments, temps, extras = [], [], [], []
    for key, value in ((k, v) for k, v in body.items() if k not in ROLES):
        if isinstance(value, HyperTerm):
            hypers.append(Hyper(key, value.default, **value.ranges, origin=value.origin))
        elif isinstance(value, MomentTerm):
            if value.recurrence == "state" and value.next is None:
                raise SpecError("SC130", f"state {key!r} has no {key}.next", value.origin)
            moments.append(
                Moment(
                    key,
                    value.recurrence,
                    input=value.input,
                    beta=value.beta,
                    init="zero" if value.init == Const(0.0) else value.init,
                    next=value.next,
                    store=value.store,
                    origin=value.origin,
                )
            )
        elif isinstance(value, ExtraTerm):
            extras.append(Extra(key, value.per, value.nonneg, value.origin))
        elif isinstance(value, TempTerm):
            temps.append(Temp(key, value.expr, value.origin))
    if "numerator" in body and "update" in body:
        raise SpecError("SC153", f"{name} binds both numerator and update: keep one", where)
    if "numerator" not in body and "update" not in body:
        raise SpecError("SC135", f"{name} needs either `numerator = …` or `update = …`", where)
    if "denominator" in body and "numerator" not in body:
        raise SpecError("SC136", f"{name} has a denominator but no numerator", where)
    decay = body.get("decay")
    numerator = lift(body["numerator"] if "numerator" in body else body["update"])
    denominator = lift(body["denominator"]) if "denominator" in body else None
    link = "ratio"
    read = [e for m in moments for e in m.reads] + [x.expr for x in temps] + [numerator]
    new_param, eval_param = (
        lift(body[role]) if role in body else None for role in ("new_param", "eval_param")
    )
    last = (denominator, decay and decay.weight, new_param)
    read += [e for e in last if e is not None]
    cut, parts = cut_all(read, {k for k in body} | set(PREBOUND) | RESERVED)
    moments = [
        replace(
            m,
            input=m.input and cut(m.input),
            beta=m.beta and cut(m.beta),
            next=m.next and cut(m.next),
        )
        for m in moments
    ]
    temps = [replace(x, expr=cut(x.expr)) for x in temps]
    numerator = cut(numerator)
    denominator = denominator and cut(denominator)
    kept = None if decay is None else Decay(decay.kind, cut(decay.weight), decay.origin)
    temps += parts
    if denominator is None and isinstance(numerator, Op) and numerator.fn == "sign":
        numerator, link = numerator.args[0], "sign"
    elif denominator is None and isinstance(numerator, Op) and numerator.fn == "stochastic_sign":
        (numerator, denominator), link = numerator.args, "stosign"
    return Program(
        name=name,
        key=name.lower(),
        origin=where,
        doc=str(body.get("__doc__") or ""),
        hypers=tuple(hypers),
        moments=tuple(moments),
        temps=tuple(temps),
        numerator=numerator,
        denominator=denominator,
        link=link,
        decay=kept,
        new_param=new_param and cut(new_param),
        eval_param=eval_param,
        extras=tuple(extras),
    )
