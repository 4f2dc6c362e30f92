"""Formulas as MathML: what is drawn is what the text says."""

import re
from xml.etree import ElementTree

import pytest

from signconv.ir.describe import algorithm
from signconv.pipeline import apply_passes, builtin_names, requests_of, resolve
from signconv.prove.mathml import formula, statement


def linear(markup: str) -> str:
    """The markup as one line: fractions as {a}/{b}, roots as √{a}, indices as _{t}, powers ^{2}."""
    shapes = {"mfrac": "{%s}/{%s}", "msub": "%s_{%s}", "msup": "%s^{%s}", "mover": "%s%s"}

    def go(e: ElementTree.Element) -> str:
        inner = [go(x) for x in e]
        if e.tag == "mroot":
            return f"root({inner[0]}, {inner[1]})"
        if e.tag in shapes:
            return shapes[e.tag] % tuple(inner)
        if e.tag == "mspace":
            return " "
        whole = (e.text or "") + "".join(inner)
        return f"√{{{whole}}}" if e.tag == "msqrt" else whole

    return go(ElementTree.fromstring(markup)).replace("\u2003", " ").replace("\xa0", " ")


@pytest.mark.parametrize(
    ("line", "drawn"),
    [
        ("m = beta1 * m.prev + (1 - beta1) * g", "m_{t}=β_{1} m_{t−1}+(1−β_{1}) g_{t}"),
        ("p = p - lr * update", "p_{t}=p_{t−1}−lr update"),
        ("update = m.corrected / (sqrt(v.corrected) + eps)",
         "update={m^_{t}}/{√{v^_{t}}+ε}"),
        ("x = a - (b - c)", "x=a−(b−c)"),
        ("x = a - b - c", "x=a−b−c"),
        ("x = a * (b * c)", "x=a (b c)"),
        ("x = (a / b)**2 * 3", "x=({a}/{b})^{2}·3"),
        ("x = -(a + b) % 2", "x=(−(a+b))mod2"),
        ("x = abs(root(a, 5)) * cbrt(b)", "x=|root(a, 5)| root(b, 3)"),
        ("x = where(a >= 0, a, 0)", "x={aif a≥00otherwise"),
        ("x = norm(g, over=\"all\") + mean(v, axis=(-2, -1))",
         "x=norm_{over = all}(g_{t})+mean_{axis = (-2, -1)}(v_{t})"),
        ("v = g**2   (t = 1: the first input itself)",
         "v_{t}=g_{t}^{2} (t = 1: the first input itself)"),
        ("evaluated with: p + m", "evaluated with p_{t}+m_{t}"),
        ("weight_decay2 = lr", "weight_decay2=lr"),
        ("x = lambda <", "lambda <"),
    ],
)  # fmt: skip
def test_a_line(line: str, drawn: str) -> None:
    assert linear(statement(line, {"m", "v"})).endswith(drawn)


def test_a_bound() -> None:
    text = "sqrt(beta2)*(1 - beta1)/(sqrt(1 - beta2)*sqrt(beta2 - beta1**2))"
    drawn = "{√{β_{2}} (1−β_{1})}/{√{1−β_{2}} √{β_{2}−β_{1}^{2}}}"
    assert linear(formula(text)) == drawn


def test_every_line_of_the_catalogue_is_read_as_a_formula() -> None:
    """None falls back to text, and every name and number of it is drawn."""
    for name in builtin_names():
        base = resolve(name)
        for p in (base, apply_passes(base, requests_of("nesterov")) if name == "adamw" else base):
            for line in algorithm(p):
                drawn = linear(statement(line, {m.name for m in p.moments}))
                assert "*" not in drawn and "sqrt" not in drawn, (name, line)
                for number in re.findall(r"(?<![\w.])\d+", line):
                    assert number in drawn, (name, line)
