"""Expressions as infix text, in source order; the printers of generated code build on Infix."""

from __future__ import annotations

from signconv.ir.nodes import APART, NOISE, Const, Expr, Op, Program, Ref, add, div, mul, op
from signconv.runtime.axes import NOTATION
from signconv.runtime.polar import SCHEDULES, STEPS, split

_BINARY = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2), "mod": ("%", 2)}
RELATION = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


class Infix:
    """Prints an expression with the fewest parentheses that keep its order of evaluation."""

    #: functions printed as a call: fn -> name
    calls: dict[str, str] = {}
    #: binary operators this language prints infix
    infix = frozenset(_BINARY)

    def __call__(self, e: Expr) -> str:
        return self._print(e)[0]

    def whole(self, e: Expr) -> str:
        """``e`` as the whole right-hand side of an assignment."""
        return self(e)

    def _print(self, e: Expr) -> tuple[str, int]:
        if isinstance(e, Const):
            return self.const(e.value), 9 if e.value >= 0 else 0
        if isinstance(e, Ref):
            return self.ref(e), 9
        assert isinstance(e, Op)
        special = self.special(e)
        if special is not None:
            return special
        if e.fn in self.infix:
            sign, level = _BINARY[e.fn]
            left, l_level = self._print(e.args[0])
            right, r_level = self._print(e.args[1])
            left = f"({left})" if l_level < level else left
            right = f"({right})" if r_level <= level else right
            return f"{left} {sign} {right}", level
        if e.fn in RELATION:
            return f"{self(e.args[0])} {RELATION[e.fn]} {self(e.args[1])}", 0
        return f"{self.calls.get(e.fn, e.fn)}({', '.join(self(a) for a in e.args)})", 9

    def special(self, e: Op) -> tuple[str, int] | None:
        """A subclass's own way to print ``e``: the text and its binding strength (9: atom)."""
        return None

    def const(self, x: float) -> str:
        return repr(x)

    def ref(self, r: Ref) -> str:
        return r.name


class _Text(Infix):
    """For people: comments, docstrings and ``signconv show``."""

    def const(self, x: float) -> str:
        return str(int(x)) if abs(x) < 1e15 and x == int(x) else repr(x)

    def ref(self, r: Ref) -> str:
        if r.kind == "grad":
            return "g"
        if r.kind == "param":
            return "p"
        if r.kind == "norm":
            return f'norm(g, over="{r.name}")'
        return f"{r.name}.prev" if r.kind == "prev" else r.name

    def special(self, e: Op) -> tuple[str, int] | None:
        asked = e.args[0]
        if e.fn == "ne" and isinstance(asked, Ref) and asked.kind == "given":
            return f"given({asked.name})", 9
        if e.fn == "pow":
            base, level = self._print(e.args[0])
            power, p_level = self._print(e.args[1])
            base = base if level == 9 else f"({base})"
            return f"{base}**{power if p_level == 9 else f'({power})'}", 8
        if e.fn == "neg":
            inner, level = self._print(e.args[0])
            return (f"-{inner}" if level >= 2 else f"-({inner})"), 2
        if e.fn == "corrected":
            return f"{self(e.args[0])}.corrected", 9
        if e.fn == "total":
            return f'sum({self(e.args[0])}, over="{e.over}")', 9
        if e.fn in APART:
            axis = f", axis={NOTATION[e.over]}" if e.over else ""
            name = e.fn.removeprefix("a") if e.fn in ("amax", "amin") else e.fn
            return f"{name}({self(e.args[0])}{axis}{_iteration(e)})", 9
        return None


def _iteration(e: Op) -> str:
    """What is not the default of how a matrix sign is found."""
    if not e.how:
        return ""
    name, steps = split(e.how)
    usual = next(iter(SCHEDULES))
    made = "" if name == usual else f', coefficients="{name}"'
    return made + ("" if steps == STEPS[name] else f", steps={steps}")


text = _Text()


def link_text(p: Program) -> str:
    """The update as a formula of numerator and denominator."""
    num, den = p.numerator, p.denominator
    if den is None:
        return text(num) if p.link == "ratio" else text(op("sign", num))
    update = {
        "ratio": div(num, den),
        "sign": op("sign", num),
        "stosign": op("sign", add(num, mul(den, NOISE))),
        "expected": op("clip", div(num, den), -1, 1),
    }
    return text(update[p.link])


def step_text(p: Program) -> str:
    """The parameter's new value as a formula."""
    decay = ""
    if p.decay is not None and p.decay.kind == "decoupled":
        decay = f" - lr * {text(p.decay.weight)} * p"
    elif p.decay is not None and p.decay.kind == "independent":
        decay = f" - lr / initial_lr * {text(p.decay.weight)} * p"
    return f"p - lr * update{decay}"
