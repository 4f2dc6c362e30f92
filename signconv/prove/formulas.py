"""A Program and its formulas for people: LaTeX in source order, and closed forms as text.

The algorithm goes through unevaluated SymPy expressions and ``sympy.latex``, which then sorts and
folds nothing; closed forms are printed with positive terms first.
"""

from __future__ import annotations

import re
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from signconv.ir.analysis import around_step
from signconv.ir.nodes import (
    NOISE,
    PARAM,
    STEPPED,
    Const,
    Expr,
    Moment,
    Op,
    Program,
    Ref,
    Temp,
    add,
    div,
    mul,
    op,
    rewrite,
    sub,
)

_RELATIONS = {"lt": sp.Lt, "le": sp.Le, "gt": sp.Gt, "ge": sp.Ge, "eq": sp.Eq, "ne": sp.Ne}
_GREEK = {"alpha", "beta", "gamma", "delta", "eps", "kappa", "mu", "rho", "tau"}


class _Positive:
    """Sums with their positive terms first."""

    def _as_ordered_terms(self, expr: Any, order: str | None = None) -> list[Any]:
        terms = super()._as_ordered_terms(expr, order)  # type: ignore[misc]
        return sorted(terms, key=lambda x: bool(x.could_extract_minus_sign()))


class _Text(_Positive, StrPrinter):
    pass


class _Latex(_Positive, LatexPrinter):
    pass


def formula_text(e: Any) -> str:
    """A SymPy formula as Python text."""
    return str(_Text().doprint(e))


def formula_latex(e: Any) -> str:
    """A SymPy formula of hyperparameters as LaTeX."""
    names = {s: name_latex(s.name) for s in e.free_symbols}
    return str(_Latex({"symbol_names": names, "mul_symbol": r"\,"}).doprint(e))


def name_latex(name: str) -> str:
    r"""``beta1`` as ``\beta_{1}``, ``weight_decay`` as ``\mathrm{weight\_decay}``."""
    found = re.fullmatch(r"([A-Za-z]+?)_?(\d*)", name)
    stem, digits = found.groups() if found else (name, "")
    if stem in _GREEK:
        made = r"\varepsilon" if stem == "eps" else f"\\{stem}"
    elif len(stem) == 1:
        made = stem
    else:
        stem, digits = name, ""
        made = r"\mathrm{" + name.replace("_", r"\_") + "}"
    return f"{made}_{{{digits}}}" if digits else made


class _Unevaluated:
    """Expressions as SymPy objects that keep their order of arguments."""

    def __init__(self, p: Program) -> None:
        self.p = p
        self.names: dict[Any, str] = {}

    def latex(self, e: Expr) -> str:
        made = self(e)
        return str(sp.latex(made, order="none", symbol_names=self.names, mul_symbol=r"\,"))

    def symbol(self, latex: str) -> Any:
        made = sp.Symbol(latex)
        self.names[made] = latex
        return made

    def __call__(self, e: Expr) -> Any:
        if isinstance(e, Const):
            whole = e.value == int(e.value) and abs(e.value) < 1e15
            return sp.Integer(int(e.value)) if whole else self.symbol(f"{e.value:g}")
        if isinstance(e, Ref):
            return self.symbol(self._name(e))
        assert isinstance(e, Op)
        if e.fn == "corrected":
            assert isinstance(e.args[0], Ref)
            return self.symbol(_subscript(e.args[0].name, "t", r"\hat{%s}"))
        if e.fn == "where":
            condition, yes, no = e.args
            assert isinstance(condition, Op)
            test = _RELATIONS[condition.fn](*(self(a) for a in condition.args), evaluate=False)
            return sp.Piecewise((self(yes), test), (self(no), True), evaluate=False)
        return self._call(e.fn, [self(a) for a in e.args])

    def _call(self, fn: str, a: list[Any]) -> Any:
        if fn in ("add", "sub"):
            last = a[1] if fn == "add" else sp.Mul(-1, a[1], evaluate=False)
            before = a[0].args if isinstance(a[0], sp.Add) else (a[0],)  # (x + y) + z is x + y + z
            return sp.Add(*before, last, evaluate=False)
        if fn == "neg":
            return sp.Mul(-1, a[0], evaluate=False)
        if fn == "mul":
            return sp.Mul(*a, evaluate=False)
        if fn == "div":
            below = sp.Pow(a[1], -1, evaluate=False)
            return below if a[0] == 1 else sp.Mul(a[0], below, evaluate=False)
        if fn == "pow":
            return sp.Pow(*a, evaluate=False)
        if fn in ("sqrt", "root"):
            order = a[1] if fn == "root" else 2
            if isinstance(order, sp.Symbol):  # a number that is not whole
                return sp.Pow(a[0], sp.Pow(order, -1, evaluate=False), evaluate=False)
            return sp.Pow(a[0], sp.Rational(1, order), evaluate=False)
        if fn == "abs":
            return sp.Abs(a[0], evaluate=False)
        if fn == "mod":
            return sp.Function(r"\operatorname{mod}")(*a)
        return sp.Function(rf"\operatorname{{{fn}}}")(*a)

    def _name(self, r: Ref) -> str:
        if r.kind == "hyper":
            return r"\eta" if r.name == "lr" else name_latex(r.name)
        if r.kind == "norm":
            return r"\lVert g_{t} \rVert" + (r"_{\text{group}}" if r.name == "group" else "")
        if r.kind == "given":
            return rf"\operatorname{{given}}({name_latex(r.name)})"
        fixed = {
            "grad": "g_{t}",
            "param": r"\theta_{t-1}",
            "t": "t",
            "draw": r"\xi_{t}",
            "stepped": r"\tilde{\theta}_{t}",
        }
        return fixed.get(r.kind) or _subscript(r.name, "t-1" if r.kind == "prev" else "t")


def _now(e: Expr) -> Expr:
    """With the parameter as it is after the step."""
    return rewrite(e, lambda x: Ref("value", "theta") if x == PARAM else None)


def _subscript(name: str, t: str, around: str = "%s") -> str:
    made = name_latex(name)
    found = re.fullmatch(r"(.*)_\{(\d+)\}", made)
    stem, digits = found.groups() if found else (made, "")
    return f"{around % stem}_{{{digits + ',' if digits else ''}{t}}}"


def algorithm_latex(p: Program, bound: str = "") -> str:
    """The step as one align* block, statements in the order in which they run.

    ``bound`` is a further line.  The block compiles with amsmath alone.
    """
    to = _Unevaluated(p)
    rows: list[tuple[str, str]] = []
    if p.grad is not None:
        rows.append((r"g_{t} \leftarrow{}", to.latex(p.grad)))
    if p.decay is not None and p.decay.kind == "l2":
        first = add(Ref("grad", "grad"), mul(p.decay.weight, Ref("param", "param")))
        rows.append((r"g_{t} \leftarrow{}", to.latex(first)))

    def shown(x: Moment | Temp) -> tuple[str, str]:
        made = _moment(to, x) if isinstance(x, Moment) else to.latex(x.expr)
        return f"{_subscript(x.name, 't')} ={{}}", made

    before, after = around_step(p)
    rows += map(shown, before)
    rows.append((r"\Delta_{t} ={}", _link(to, p)))
    step = r"\theta_{t-1} - \eta\, \Delta_{t}"
    if p.decay is not None and p.decay.kind != "l2":
        rate = r"\eta" if p.decay.kind == "decoupled" else r"\tfrac{\eta}{\eta_{0}}"
        step += rf" - {rate}\, {to.latex(p.decay.weight)}\, \theta_{{t-1}}"
    if after or p.new_param is not None:
        rows += [(r"\tilde{\theta}_{t} ={}", step), *map(shown, after)]
        step = to.latex(STEPPED if p.new_param is None else p.new_param)
    rows.append((r"\theta_{t} ={}", step))
    if p.eval_param is not None:
        rows.append((r"\text{evaluated with } {}", to.latex(_now(p.eval_param))))
    if bound:
        rows.append(("", bound))
    body = " \\\\\n".join(f"  {left} & {right}" for left, right in rows)
    return "\\begin{align*}\n" + body + "\n\\end{align*}"


def _moment(to: _Unevaluated, m: Moment) -> str:
    if m.next is not None:
        return to.latex(m.next)
    assert m.input is not None and m.beta is not None
    prev = mul(m.beta, Ref("prev", m.name))
    if m.kind == "max":
        return to.latex(op("max", prev, m.input))
    text = to.latex(add(prev, mul(sub(1, m.beta), m.input)))
    start = f",\\quad {_subscript(m.name, '1')} = {to.latex(m.input).replace('{t}', '{1}')}"
    return text + start if m.init == "first" else text


def _link(to: _Unevaluated, p: Program) -> str:
    num, den = p.numerator, p.denominator
    if den is None:
        return to.latex(num if p.link == "ratio" else op("sign", num))
    forms = {
        "ratio": div(num, den),
        "sign": op("sign", num),
        "stosign": op("sign", add(num, mul(den, NOISE))),
        "expected": op("clip", div(num, den), -1, 1),
    }
    made = to.latex(forms[p.link])
    return made + r",\quad \xi_{t} \sim U(-1, 1)" if p.link == "stosign" else made
