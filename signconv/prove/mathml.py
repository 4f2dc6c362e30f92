"""Formulas as MathML, which browsers draw without a script or a font of ours.

What ``ir.describe.algorithm`` and ``prove.formulas.formula_text`` print is read with ``ast``: it is
written as Python is, so one text is the source of the terminal's box and of the page's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container
from html import escape

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "kappa": "κ", "mu": "μ",
    "rho": "ρ", "tau": "τ",
}  # fmt: skip
_SIGNS: dict[type[ast.AST], tuple[str, int]] = {
    ast.Add: ("+", 1),
    ast.Sub: ("−", 1),
    ast.Mult: ("", 2),
    ast.Mod: ("mod", 2),
}
_RELATIONS: dict[type[ast.AST], str] = {
    ast.Lt: "<", ast.LtE: "≤", ast.Gt: ">", ast.GtE: "≥", ast.Eq: "=", ast.NotEq: "≠",
}  # fmt: skip
#: What binds as tightly as a name.
_ATOM = 9
#: Beside a statement: a prefix in words, and a remark in parentheses.
_LINE = re.compile(r"(?:(?P<prefix>[a-z][a-z ]+): )?(?P<math>.*?)(?:   \((?P<remark>.*)\))?")


def statement(line: str, moving: Container[str]) -> str:
    """A line of the algorithm as one ``math`` element.

    moving: names of what is kept from step to step, which get the step as an index, as gradient g
    and parameter p do.  What cannot be read as a formula stands there as text.
    """
    found = _LINE.fullmatch(line)
    assert found is not None
    prefix, math, remark = found.group("prefix", "math", "remark")
    left, equals, right = math.partition(" = ")
    try:
        if equals and left.isidentifier():
            body = _Printer(moving, "t")(left) + _operator("=") + _Printer(moving, "t−1")(right)
        else:
            body = _Printer(moving, "t" if prefix else "t−1")(math)
    except SyntaxError:
        body = f"<mtext>{escape(math)}</mtext>"
    before = f"<mtext>{escape(prefix)}&#160;</mtext>" if prefix else ""
    after = f"<mtext>&#8195;({escape(remark)})</mtext>" if remark else ""
    return f'<math display="block"><mrow>{before}{body}{after}</mrow></math>'


def formula(text: str) -> str:
    """A formula of hyperparameters as one ``math`` element."""
    return f'<math display="block"><mrow>{_Printer(())(text)}</mrow></math>'


class _Printer:
    """Prints an expression with the fewest parentheses that keep its order of evaluation."""

    def __init__(self, moving: Container[str], parameter: str = "") -> None:
        self.moving = moving
        self.parameter = parameter

    def __call__(self, text: str) -> str:
        return self._print(ast.parse(text, mode="eval").body)[0]

    def _print(self, e: ast.AST) -> tuple[str, int]:
        """The markup and how tightly it binds."""
        if isinstance(e, ast.Constant):
            return f"<mn>{escape(str(e.value))}</mn>", _ATOM
        if isinstance(e, ast.Name):
            return self._name(e.id), _ATOM
        if isinstance(e, ast.Attribute) and isinstance(e.value, ast.Name):
            if e.attr == "prev":
                return _indexed(e.value.id, "t−1"), _ATOM
            return _indexed(e.value.id, "t", hat=True), _ATOM
        if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
            return _operator("−", "prefix") + self._at_least(e.operand, 2), 1
        if isinstance(e, ast.BinOp):
            return self._binary(e)
        if isinstance(e, ast.Compare) and len(e.ops) == 1:
            sign = _operator(_RELATIONS[type(e.ops[0])])
            return f"{self._inner(e.left)}{sign}{self._inner(e.comparators[0])}", 0
        if isinstance(e, ast.Call) and isinstance(e.func, ast.Name):
            return self._call(e.func.id, e), _ATOM
        raise SyntaxError(ast.unparse(e))

    def _inner(self, e: ast.AST) -> str:
        return self._print(e)[0]

    def _row(self, e: ast.AST) -> str:
        return f"<mrow>{self._inner(e)}</mrow>"

    def _at_least(self, e: ast.AST, level: int) -> str:
        made, own = self._print(e)
        return _fenced("(", made, ")") if own < level else made

    def _binary(self, e: ast.BinOp) -> tuple[str, int]:
        if isinstance(e.op, ast.Div):
            return f"<mfrac>{self._row(e.left)}{self._row(e.right)}</mfrac>", 3
        if isinstance(e.op, ast.Pow):
            base = self._at_least(e.left, _ATOM)
            return f"<msup><mrow>{base}</mrow>{self._row(e.right)}</msup>", 8
        if type(e.op) not in _SIGNS:
            raise SyntaxError(ast.unparse(e))
        sign, level = _SIGNS[type(e.op)]
        left, right = self._at_least(e.left, level), self._at_least(e.right, level + 1)
        if not sign:
            return f"{left}{_times(e.right)}{right}", level
        return f"{left}{_operator(sign)}{right}", level

    def _call(self, fn: str, e: ast.Call) -> str:
        arguments = e.args
        if fn in ("sqrt", "cbrt", "root") and arguments:
            if fn == "sqrt":
                return f"<msqrt>{self._inner(arguments[0])}</msqrt>"
            order = "<mn>3</mn>" if fn == "cbrt" else self._row(arguments[1])
            return f"<mroot>{self._row(arguments[0])}{order}</mroot>"
        if fn == "abs":
            return _fenced("|", self._inner(arguments[0]), "|")
        if fn == "where" and len(arguments) == 3:
            condition, yes, no = map(self._inner, arguments)
            rows = ((yes, f"<mtext>if&#160;</mtext>{condition}"), (no, "<mtext>otherwise</mtext>"))
            cells = "".join(
                f"<mtr><mtd><mrow>{a}</mrow></mtd><mtd><mrow>{b}</mrow></mtd></mtr>"
                for a, b in rows
            )
            return f'<mrow><mo stretchy="true">{{</mo><mtable>{cells}</mtable></mrow>'
        name = f"<mi>{escape(fn)}</mi>"
        if e.keywords:
            over = ", ".join(f"{k.arg} = {_plain(k.value)}" for k in e.keywords)
            name = f"<msub>{name}<mtext>{escape(over)}</mtext></msub>"
        comma = '<mo separator="true">,</mo>'
        return name + _fenced("(", comma.join(map(self._inner, arguments)), ")")

    def _name(self, name: str) -> str:
        if name == "p" and self.parameter:
            return _indexed(name, self.parameter)
        return _indexed(name, "t" if name == "g" or name in self.moving else "")


def _plain(e: ast.expr) -> str:
    """An argument in words: a string without its quotes."""
    return str(e.value) if isinstance(e, ast.Constant) else ast.unparse(e)


def _indexed(name: str, t: str, hat: bool = False) -> str:
    """``beta1`` as β with index 1, ``m`` at step t as m with index t."""
    found = re.fullmatch(r"([A-Za-z]+?)_?(\d*)", name)
    stem, digits = found.groups() if found else (name, "")
    if stem not in _GREEK and len(stem) > 1:
        stem, digits = name, ""
    made = f"<mi>{escape(_GREEK.get(stem, stem))}</mi>"
    if hat:
        made = f'<mover accent="true">{made}<mo>^</mo></mover>'
    parts = [f"<mn>{digits}</mn>"] if digits else []
    if t:
        parts.append("<mi>t</mi>" if t == "t" else "<mi>t</mi><mo>−</mo><mn>1</mn>")
    index = "<mo>,</mo>".join(parts)
    return f"<msub>{made}<mrow>{index}</mrow></msub>" if parts else made


def _operator(sign: str, form: str = "infix") -> str:
    return f'<mo form="{form}">{escape(sign)}</mo>'


def _times(right: ast.AST) -> str:
    """A thin space; a dot before a number."""
    while isinstance(right, ast.BinOp) and isinstance(right.op, ast.Pow | ast.Mult):
        right = right.left
    return _operator("·") if isinstance(right, ast.Constant) else '<mspace width="0.2em"/>'


def _fenced(left: str, inner: str, right: str) -> str:
    """Parentheses, as tall as what is inside where that is more than a line."""
    stretchy = str(any(f"<{x}" in inner for x in ("mfrac", "msqrt", "mroot", "mtable"))).lower()
    return (
        f'<mrow><mo form="prefix" stretchy="{stretchy}">{left}</mo>{inner}'
        f'<mo form="postfix" stretchy="{stretchy}">{right}</mo></mrow>'
    )
