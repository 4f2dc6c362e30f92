"""Functions of plain numbers are numbers before a kernel could type them fp32."""

from __future__ import annotations

import pytest

from signconv.ir.nodes import Const, Expr, Op, op, rewrite
from signconv.lower.scalars import scalar_form
from signconv.runtime.reference import scalars as ref


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (op("log", 2), ref.log64(2.0)),
        (op("root", 2, 3), ref.real_power64(2.0, 1 / 3)),
        (op("mod", -5, 4), 3.0),
        (op("where", op("gt", 1, 2), 5, op("sign", -3)), -1.0),
        (op("clip", 7, 0, 0.1), 0.1),
        (op("pow", 2, -1), 0.5),
        (op("div", 1, 0), float("inf")),
    ],
)
def test_numbers_fold(written: Op, value: float) -> None:
    made: Expr = rewrite(written, scalar_form)
    assert made == Const(value)
