"""Deep, long and shared expressions: built in linear time, and the numbers stay what they were."""

from __future__ import annotations

import time
from typing import Any

import pytest

from signconv import pipeline
from signconv.dsl import Optimizer, grad, hyper, tanh


def spec(body: str) -> Any:
    names: dict[str, Any] = {}
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    exec(
        f"from signconv.dsl import *\nclass Mine(Optimizer):\n    lr = hyper(1e-2)\n{lines}", names
    )
    return names["Mine"]


def chain(n: int, first: str, last: str) -> str:
    names = "\n".join(f"x{i} = x{i - 1} * x{i - 1}" for i in range(1, n))
    return f"x0 = {first}\n{names}\nupdate = {last.format(n - 1)}"


@pytest.mark.parametrize(
    "body",
    [
        "update = sum([grad] * 1000)",
        "update = grad * sum([lr] * 1000)",
        "m = ema(sum([grad] * 300), sum([lr] * 300) / 300)\nupdate = m",
        chain(300, "lr * 2", "x{} * grad"),
        chain(300, "grad * 2", "x{}"),
        "update = root(abs(grad), 1e300)",
    ],
    ids=["sum", "scalar sum", "moment", "scalar names", "names", "root"],
)
def test_long_expressions_build_in_time(body: str) -> None:
    begin = time.process_time()
    made = pipeline.build(spec(body))
    assert time.process_time() - begin < 20
    compile(made.module.source, "made.py", "exec")


def test_an_expression_shared_by_a_loop_is_written_once() -> None:
    def deep(x: Any) -> Any:
        for _ in range(40):
            x = tanh(x) * x
        return x

    class Shared(Optimizer):
        lr = hyper(1e-2)
        update = deep(grad)

    assert len(pipeline.build(Shared).module.source) < 40_000


def test_parts_keep_the_order_of_evaluation() -> None:
    short = spec("update = " + " + ".join(["grad"] * 30)).program
    long = spec("update = " + " + ".join(["grad"] * 100)).program
    assert not short.temps
    e, temps, terms = long.numerator, {x.name: x.expr for x in long.temps}, 1
    while True:
        if getattr(e, "kind", "") == "temp":
            e = temps[e.name]
        elif getattr(e, "fn", "") == "add":
            assert e.args[1] == grad.node
            e, terms = e.args[0], terms + 1
        else:
            break
    assert (e, terms) == (grad.node, 100)
