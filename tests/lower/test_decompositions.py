"""Functions as statements over exact operations: which there are, their order, their self-check.

What they compute is in tests/runtime/reference/test_arithmetic.py and test_roots.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from signconv.errors import LoweringError
from signconv.ir.nodes import Const, Expr, Op, Ref, add, mul, op, sub
from signconv.lower import lower
from signconv.lower.decompositions import DECOMPOSITIONS, decomposed, functions
from signconv.lower.exact import OPERATIONS, Integer, Value, bits, quotient, where
from signconv.lower.kernel_program import Function, Statement, function_name
from signconv.lower.powers import NEWTON, joined, split
from signconv.pipeline import resolve
from signconv.render.printers import TorchFunctionPrinter, TritonFunctionPrinter

X = Ref("local", "x")
CONSTANTS = {"newton_root": (5.0,), "inverse_root": (5.0,), "real_power": split(1.5)}


def call(fn: str, *constants: float) -> Op:
    return Op(fn, (X, *(Const(float(c)) for c in constants)))


def names(*expressions: Expr) -> list[str]:
    return [f.name for f in functions(expressions)]


def test_each_function_comes_once_and_after_what_it_calls() -> None:
    assert names(call("tanh")) == ["_exp", "_tanh"]
    assert names(call("exp"), mul(call("tanh"), call("exp"))) == ["_exp", "_tanh"]
    assert names(add(call("log"), op("sqrt", call("cbrt")))) == ["_log", "_cbrt"]
    assert names(add(X, op("sqrt", X))) == []


def test_constants_are_part_of_the_name() -> None:
    orders = [call("newton_root", n) for n in NEWTON]
    assert names(*orders) == [f"_root{n}" for n in NEWTON]
    exponents = (0.4, 1.5, 1 / 1.5, 2 / 3 + 1e-8, 1e-5, 16.0)
    made = names(*(call("real_power", *split(e)) for e in exponents))
    assert made[:2] == ["_power_0_4", "_power_1_5"] and len(set(made)) == len(exponents)
    assert all(name.isidentifier() for name in made)
    assert all(split(float(joined(*split(e)))) == split(e) for e in exponents)


@pytest.mark.parametrize("fn", DECOMPOSITIONS)
def test_functions_check_and_print_for_both(fn: str) -> None:
    made = functions([call(fn, *CONSTANTS.get(fn, ()))])
    before: frozenset[str] = frozenset()
    for f in made:
        f.check(before)
        before |= {f.name}
    assert "ULP" in made[-1].doc and made[-1].name == function_name(
        call(fn, *CONSTANTS.get(fn, ()))
    )
    for printer in (TritonFunctionPrinter(), TorchFunctionPrinter()):
        assert all(printer(s.expr) for s in made[-1].statements)


def test_a_program_without_its_functions_is_refused() -> None:
    k = lower(resolve("s3"))
    assert [f.name for f in k.functions] == ["_inverse_root3"]
    with pytest.raises(LoweringError, match="no backend can print 'inverse_root' here"):
        replace(k, functions=()).check()
    with pytest.raises(LoweringError, match="no backend can print 'inverse_root' here"):
        replace(k, functions=(decomposed(call("exp")),)).check()


WHOLE = op("bits", X)


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        (add(X, Ref("local", "lost")), "_f, y reads 'lost' before it is computed"),
        (op("sqrt", X), "_f, y: no backend can print 'sqrt' here"),
        (op("exp", X), "_f, y: no backend can print 'exp' here"),
        (add(X, WHOLE), "_f, y: add does not take float, int"),
        (op("where", X, X, X), "_f, y: where does not take float, float, float"),
        (Op("right", (WHOLE, Const(1.0))), "_f, y: right does not take int, float"),
        (op("abs", X, X), "_f, y: abs does not take float, float"),
        (Expr(), "_f, y: unknown node"),
    ],
)  # fmt: skip
def test_check_refuses(expr: Expr, message: str) -> None:
    f = Function("_f", ("x",), (Statement("y", expr),), X, "")
    with pytest.raises(LoweringError, match=message):
        f.check(frozenset())


def test_check_refuses_a_result_of_another_type() -> None:
    f = Function("_f", ("x",), (), WHOLE, "")
    with pytest.raises(LoweringError, match="_f does not return a float"):
        f.check(frozenset())
    replace(f, result=op("of_bits", WHOLE)).check(frozenset())


def test_both_printers_know_every_exact_operation() -> None:
    for printer in (TritonFunctionPrinter, TorchFunctionPrinter):
        relations = {fn for fn in OPERATIONS if len(fn) == 2 and fn != "or"}
        known = {*printer.infix, *printer.calls, *printer.methods, *printer.operators, *relations}
        assert OPERATIONS.keys() - known <= {"clamp"}  # two calls in Triton


def test_numbers_take_the_type_of_what_is_beside_them() -> None:
    x = Value(X, "float")
    assert (x > 0).expr == op("gt", X, 0)
    assert (bits(x) - 1).expr == Op("sub", (WHOLE, Integer(1)))
    assert where(x > 0, 1, 2).expr == Op("where", (op("gt", X, 0), Integer(1), Integer(2)))
    assert quotient(1.0 - x, 2).expr == op("quotient", sub(1, X), 2)


@pytest.mark.parametrize(
    ("expr", "triton", "torch"),
    [
        (op("of_bits", WHOLE), "x.to(tl.int32, bitcast=True).to(tl.float32, bitcast=True)",
         "x.view(torch.int32).view(torch.float32)"),
        (op("to_int", mul(X, 2)), "(x * 2.0).to(tl.int32)", "(x * 2.0).to(torch.int32)"),
        (Op("and", (Op("add", (WHOLE, Integer(7))), Integer(-4096))),
         "(x.to(tl.int32, bitcast=True) + 7) & -0x1000", "(x.view(torch.int32) + 7) & -0x1000"),
        (Op("clamp", (WHOLE, Integer(-9), Integer(9))),
         "tl.minimum(tl.maximum(x.to(tl.int32, bitcast=True), -9), 9)",
         "torch.clamp(x.view(torch.int32), -9, 9)"),
        (op("where", op("lt", X, -0.5), float("nan"), float("-inf")),
         'tl.where(x < -0.5, float("nan"), float("-inf"))',
         "ref.either(x < -0.5, torch.nan, -torch.inf)"),
        (mul(X, 2.0**-24), "x * 2.0**-24", "x * 2.0**-24"),
        (op("exp", mul(-2, X)), "_exp(-2.0 * x, CODEC)", "_exp_reference(-2.0 * x)"),
    ],
)  # fmt: skip
def test_printed_text(expr: Expr, triton: str, torch: str) -> None:
    assert TritonFunctionPrinter()(expr) == triton
    assert TorchFunctionPrinter()(expr) == torch
