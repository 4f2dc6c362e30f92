"""The class body: what it means, and what it refuses with the user's file and line."""

import re
from pathlib import Path

import pytest

from signconv.dsl import Optimizer, abs, decoupled, ema, grad, hyper, max_ema, param, sqrt, state
from signconv.errors import SpecError
from signconv.ir.nodes import GRAD, PARAM, Const, Decay, Ref, add, div, mul, op, sub
from signconv.pipeline import build, resolve
from tests.support import program_of, spec_file

# ---------------------------------------------------------------- what a class body means


class Everything(Optimizer):
    """All ways to bind a name."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    twice = 2.0
    (decay_rate,) = (hyper(0.1, gt=0, le=1),)

    m, v = ema(grad, beta1), ema(grad**2, beta2)
    top = max_ema(abs(grad))
    seen = state(init=1)
    seen.next = seen.prev * twice
    mixed = beta1 * m.prev + (1 - beta1) * grad
    numerator = mixed / seen
    denominator = sqrt(v.corrected) + top
    decay = decoupled(decay_rate)


P = Everything.program
BETA1 = Ref("hyper", "beta1")


def test_names_come_from_binding() -> None:
    assert [h.name for h in P.hypers] == ["lr", "beta1", "beta2", "decay_rate"]
    assert [m.name for m in P.moments] == ["m", "v", "top", "seen"]
    assert [x.name for x in P.temps] == ["mixed"]
    assert (P.name, P.key, P.doc) == ("Everything", "everything", "All ways to bind a name.")


def test_hyper_keeps_default_and_range() -> None:
    rate = P.hyper("decay_rate")
    assert rate is not None
    assert (rate.default, rate.ge, rate.gt, rate.le, rate.lt) == (0.1, None, 0, 1, None)


def test_expressions_keep_the_source_order() -> None:
    assert P.temp("mixed").expr == add(mul(BETA1, Ref("prev", "m")), mul(sub(1, BETA1), GRAD))
    assert P.numerator == div(Ref("temp", "mixed"), Ref("value", "seen"))
    root = op("sqrt", op("corrected", Ref("value", "v")))
    assert P.denominator == add(root, Ref("value", "top"))
    assert P.moment("seen").next == mul(Ref("prev", "seen"), 2)
    assert P.moment("seen").init == Const(1.0)
    assert P.decay == Decay("decoupled", Ref("hyper", "decay_rate"))


@pytest.mark.parametrize(
    ("term", "node"),
    [
        (3 - grad, sub(3, GRAD)),
        (grad - 3, sub(GRAD, 3)),
        (2 / grad, div(2, GRAD)),
        (grad * 1 + 0, add(mul(GRAD, 1), 0)),  # nothing is simplified
        (grad + param - grad, sub(add(GRAD, PARAM), GRAD)),
        (sqrt(grad**2), op("sqrt", op("pow", GRAD, 2))),  # not abs(grad)
        (-grad, op("neg", GRAD)),
        (grad == 1, op("eq", GRAD, 1)),  # a relation, not False
    ],
)
def test_operators_build_nodes_unevaluated(term, node) -> None:
    assert term.node == node


def test_sign_as_update_becomes_the_link(tmp_path: Path) -> None:
    p = program_of(tmp_path, "update = sign(grad)")
    assert (p.link, p.numerator, p.denominator) == ("sign", GRAD, None)


def test_temporaries_keep_their_names_in_the_generated_code(tmp_path: Path) -> None:
    body = "doubled = grad + grad\nshrunk = doubled * 0.25\nnumerator = doubled - shrunk"
    source = build(spec_file(tmp_path, body).spec).module.source
    assert source.count("    doubled = g + g\n") == 3  # header, kernel, reference
    assert source.count("    shrunk = doubled * 0.25\n") == 3
    assert source.count("    update = doubled - shrunk\n") == 3


# ---------------------------------------------------------------- what it refuses

BETA = "beta1 = hyper(0.9, ge=0, lt=1)\n"
TRUTH = "no truth value.*where.*no chained comparison"

#: Body of the class (the guilty line is marked "# here") and what the message must say.
REFUSED = {
    # names
    "bound twice": ("m = ema(grad, 0.9)\nm = ema(grad, 0.5)  # here", "'m' is bound twice"),
    "hyper twice": ("lr = hyper(1.0)  # here", "'lr' is bound twice"),
    "augmented": ("numerator = grad\nnumerator *= 2  # here", "'numerator' is bound twice"),
    "two names": ("a = b = ema(grad, 0.9)  # here", "'a' already names this"),
    "DSL name": ("max = ema(grad, 0.9)  # here", "'max' is a name of the DSL"),
    "DSL value": ("grad = 3  # here", "'grad' is a name of the DSL"),
    "DSL time": ("lr2, t = hyper(1.0), hyper(2.0)  # here", "'t' is a name of the DSL"),
    "reserved": ("seed = hyper(1.0)  # here", "'seed' is reserved"),
    "reserved parameter": ("p = grad * 2  # here", "'p' is reserved"),
    "underscore": ("_m = ema(grad, 0.9)  # here", "'_m' is reserved"),
    "not ASCII": ("β = hyper(0.9)  # here", "ASCII"),
    # moments and hyperparameters
    "unnamed moment": ("numerator = ema(grad, 0.9) + 1  # here", "no name: bind it first"),
    "unnamed moment alone": ("numerator = ema(grad, 0.9)  # here", "give the moment a name"),
    "unnamed beta": ("m = ema(grad, hyper(0.9))  # here", "no name: bind it first"),
    "moment unread": ("m = ema(grad, 0.9)  # here\nnumerator = grad", "'m' is never read"),
    "moment reads itself alone": (
        "m = state()  # here\nm.next = m.prev + grad\nnumerator = grad",
        "'m' is never read",
    ),
    "hyper unread": ("k = hyper(0.9)  # here\nnumerator = grad", "'k' is never read"),
    "temporary unread": ("c = grad * 2  # here\nnumerator = grad", "'c' is never read"),
    "default too large": ("k = hyper(2.0, lt=1)  # here\nnumerator = grad*k", "k = 2 .*: k < 1"),
    "default on open edge": ("k = hyper(0, gt=0)  # here\nnumerator = grad*k", "0 < k"),
    "default infinite": ("k = hyper(float('inf'))  # here", "must be a number, not inf"),
    "default NaN": ("k = hyper(float('nan'))  # here", "must be a number, not nan"),
    "default not a number": ("k = hyper('0.9')  # here", "must be a number, not '0.9'"),
    "default a bool": ("k = hyper(True)  # here", "must be a number, not True"),
    "unknown range": ("k = hyper(0.9, min=0)  # here", "unexpected keyword argument 'min'"),
    "negative input": ("u = max_ema(grad, 0.9)  # here\nnumerator = grad/u", "never negative"),
    "corrected max": (
        "u = max_ema(abs(grad), 0.9)\nnumerator = grad/u.corrected  # here",
        "belongs to an ema",
    ),
    "corrected first": (
        "m = ema(grad, 0.9, init='first')\nnumerator = m.corrected  # here",
        "starts from zero",
    ),
    "corrected state": (
        "m = state()\nm.next = m.prev + grad\nnumerator = m.corrected  # here",
        "belongs to an ema",
    ),
    "beta above 1": ("m = ema(grad, 1.5)  # here\nnumerator = m", "beta = 1.5 .*0 <= beta <= 1"),
    "beta below 0": ("m = max_ema(abs(grad), -0.1)  # here\nnumerator = m", "beta = -0.1"),
    "beta NaN": ("m = ema(grad, float('nan'))  # here\nnumerator = m", "beta = nan"),
    "beta per element": ("m = ema(grad, abs(grad))  # here\nnumerator = m", "beta of 'm'"),
    "unknown init": ("m = ema(grad, 0.9, init='ones')  # here", "neither 'zero' nor 'first'"),
    "state without next": ("m = state()  # here\nnumerator = m.prev + grad", "has no m.next"),
    "next of an ema": ("m = ema(grad, 0.9)\nm.next = grad  # here", "only state.. has .next"),
    "next twice": ("m = state()\nm.next = grad\nm.next = grad  # here", "set twice"),
    "state from a gradient": (
        "m = state(grad)  # here",
        r"a number, or param: for another start write where\(t == 1, start, s\.prev\)",
    ),
    "init of an expression": ("m = ema(grad, 0.9, init=param)  # here", r"state\(start\)"),
    "order 0": ("m = moment(grad, order=0, beta=0.9)  # here", "order = 0 is not a number >= 1"),
    # symbols
    "undefined": ("numerator = gradd  # here", "undefined symbol 'gradd'; did you mean 'grad'"),
    "undefined, own name": (
        BETA + "m = ema(grad, beta)  # here",
        "undefined symbol 'beta'; did you mean 'beta1'",
    ),
    "bound below": (
        "delta = grad + m.prev  # here\nm = ema(delta, 0.9)\nnumerator = m",
        r"'m' is read above the line that binds it.*m = state\(\), then m\.next = …",
    ),
    "undefined function": ("numerator = sqr(grad)  # here", "did you mean 'sqrt'"),
    # cycles
    "cycle": (
        "a = state()  # here\nb = state()\na.next = b + grad\nb.next = a + grad\nnumerator = a",
        r"cycle: a -> b -> a: .*\.prev",
    ),
    "cycle through a temporary": (
        "a = state()  # here\nc = a * 2\na.next = c + grad\nnumerator = a",
        "cycle: a -> c -> a",
    ),
    # truth, matrices, other types
    "chained comparison": ("numerator = where(0 < grad < 1, grad, 0)  # here", TRUTH),
    "and": ("m = ema(grad, 0.9)\nnumerator = grad and m  # here", TRUTH),
    "or": ("numerator = grad or 1  # here", TRUTH),
    "not": ("numerator = not grad  # here", TRUTH),
    "if": ("if grad > 0:  # here\n    numerator = grad", TRUTH),
    "conditional expression": ("numerator = grad if grad > 0 else -grad  # here", TRUTH),
    "Python's max": ("numerator = __import__('builtins').max(grad, 0)  # here", TRUTH),
    "Python's sorted": ("numerator = sorted([grad, param])[0]  # here", TRUTH),
    "matrix product": ("numerator = grad @ grad  # here", "matrix product is not supported.*Muon"),
    "item": ("numerator = grad[0]  # here", "one element"),
    "loop": ("numerator = grad\nfor _ in grad:  # here\n    pass", "one element"),
    "Python's sum": (
        "numerator = __import__('builtins').sum(grad)  # here",
        r"iterated: .* sum\(x\)",
    ),
    "largest of two": (
        "numerator = max(grad, t, axis=-1)  # here",
        "two expressions takes no axis",
    ),
    "axis from the front": ("numerator = grad - mean(grad, axis=1)  # here", "an axis is -1, -2"),
    "axis that is no number": ("numerator = max(grad, axis='row')  # here", "an axis is -1, -2"),
    "mean of a norm": ("numerator = grad * mean(norm(grad))  # here", "over the whole tensor left"),
    "mean of rows' means": (
        "numerator = grad * mean(mean(grad, axis=-1), axis=-1)  # here",
        "left",
    ),
    "crossed means": (
        "numerator = grad * mean(mean(grad, axis=0), axis=-1)  # here",
        "left: another",
    ),
    "two conditions": ("numerator = where((grad > 0) & (t > 1), 1, 0)  # here", "by &, | or ~"),
    "either of two": ("numerator = where((grad > 0) | (t > 1), 1, 0)  # here", "by &, | or ~"),
    "no condition": ("numerator = where(~(grad > 0), 1, 0)  # here", "by &, | or ~"),
    "float": ("numerator = float(grad)  # here", "not a number yet"),
    "math.sqrt": ("numerator = __import__('math').sqrt(grad)  # here", "not a number yet"),
    "string": ("numerator = grad + 'x'  # here", r"'x' \(str\) cannot stand in an expression"),
    "string on the left": ("numerator = 'x' + grad  # here", r"'x' \(str\)"),
    "bool": ("numerator = grad * True  # here", r"True \(bool\)"),
    "string bound": ("k = 'text'  # here", "bound to a str"),
    "function bound": ("def f(x):  # here\n    return x\nnumerator = grad", "to a function"),
    "module bound": ("import os  # here\nnumerator = grad", "bound to a module"),
    # functions
    "root of an element": (
        "numerator = abs(grad)**0.5  # here",
        r"exponent from 1 to 16: .* sqrt\(x\)",
    ),
    "negative power": ("numerator = grad**-1  # here", "exponent from 1 to 16: .* 1 / x"),
    "broken power of a sign": ("numerator = grad**1.5  # here", "may be negative: write abs"),
    "power by a hyperparameter": (
        "k = hyper(2, ge=1)\nnumerator = grad**k  # here",
        r"takes a number as exponent: .* exp\(k \* log\(x\)\)",
    ),
    "power by an element": ("numerator = 2**grad  # here", "is for scalars"),
    "root order": ("numerator = root(abs(grad), 0.5)  # here", "number >= 1 as order"),
    "comparison as number": ("numerator = (grad > 0) * 2  # here", "belongs in the first place"),
    "number as comparison": ("numerator = where(grad, 1, 2)  # here", "belongs in the first place"),
    "modulo of an element": ("numerator = grad % 2  # here", "is for scalars"),
    "argument missing": ("numerator = clip(grad, 1)  # here", "missing 1 required"),
    "member of an expression": (
        "m = ema(grad, 0.9)\nnumerator = m.prev.corrected  # here",
        "only a moment has .corrected",
    ),
    "method of an array": ("numerator = grad.clamp(1)  # here", "an expression has no .clamp"),
    "largest as a method": ("numerator = grad.max()  # here", r"no \.max: write max\(x\)"),
    "function as a method": ("numerator = grad.norm()  # here", r"no \.norm: write norm\(x\)"),
    "shape": (
        "numerator = grad / grad.numel()  # here",
        r"no \.numel: .* ndim, numel, rows and columns",
    ),
    "division by zero": ("numerator = grad * (1 / 0)  # here", "ZeroDivisionError"),
    # the class as a whole: the line of the class statement
    "no update": ("m = ema(grad, 0.9)", "needs either `numerator = …` or `update = …`"),
    "both": ("numerator = grad\nupdate = grad", "binds both numerator and update"),
    "denominator alone": ("denominator = sqrt(grad**2)\nupdate = grad", "denominator but no num"),
    "decay a number": ("decay = 3  # here\nnumerator = grad", "decay is one of l2"),
}


def refusal(path: Path, spec: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        resolve(spec)
    error = caught.value
    assert error.origin is not None, f"no line: {error}"
    assert error.origin.file == str(path)
    assert "\n" not in str(error)
    assert str(error).startswith(f"{path}:{error.origin.line}: ")
    return error


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_file_line_and_reason(case: str, tmp_path: Path) -> None:
    body, message = REFUSED[case]
    path, spec, line = spec_file(tmp_path, body)
    error = refusal(path, spec)
    class_line = 4
    assert error.origin.line == (line or class_line), error
    assert re.search(message, error.message), error


#: Whole files.
FILES = {
    "syntax": ("from signconv.dsl import Optimizer\n\nx = = 3  # here", "syntax error: invalid"),
    "indentation": ("class A:\n  x = 1\n    y = 2  # here", "syntax error: unexpected indent"),
    "not UTF-8 in the middle": ("x = '\udcff'  # here", "syntax error|UTF-8|utf-8"),
    "missing module": ("import no_such_module  # here", "no module 'no_such_module'"),
    "error in a helper": ("def f():\n    return 1 / 0  # here\nf()", "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", FILES)
def test_faulty_file_names_its_line(case: str, tmp_path: Path) -> None:
    text, message = FILES[case]
    path = tmp_path / "mine.py"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    line = next(i for i, x in enumerate(text.split("\n"), 1) if "# here" in x)
    error = refusal(path, f"{path}:Mine")
    if case != "not UTF-8 in the middle":  # Python itself does not always say which line
        assert error.origin.line == line
    assert re.search(message, error.message), error


def test_a_line_in_a_users_helper_module_is_the_users(tmp_path: Path) -> None:
    """The innermost line outside signconv, wherever the class body got it from."""
    head = "from signconv.dsl import *\n\ndef double(x):\n    return x + 'y'  # here\n\n"
    path, spec, line = spec_file(
        tmp_path, head + "class Mine(Optimizer):\n    numerator = double(grad)", head=""
    )
    assert refusal(path, spec).origin.line == line


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adamww", "unknown optimizer 'adamww'; did you mean 'adamw'"),
        ("{file}:Mime", "defines no optimizer 'Mime'; did you mean 'Mine'"),
        ("{file}", "name the optimizer in it: .*mine.py:Mine"),
        ("{file}:1x", "after the colon comes the name"),
        ("{folder}/nothing.py:Mine", "there is no file"),
        ("no_such_package.module:Mine", "no module 'no_such_package'"),
        ("signconv.specs.adamw:Adam", "defines no optimizer 'Adam'; did you mean 'AdamW'"),
    ],
)
def test_unknown_spec_gives_the_nearest(spec: str, message: str, tmp_path: Path) -> None:
    path, _, _ = spec_file(tmp_path, "numerator = grad")
    with pytest.raises(SpecError, match=message):
        resolve(spec.format(file=path, folder=tmp_path))


# ---------------------------------------------------------------- found by writing these tests


@pytest.mark.parametrize(
    ("body", "message"),
    [
        # once without a line
        ("numerator = grad\ndecay = decoupled(grad)  # here", "weight of a decay"),
        ("numerator = 1.0", "does not depend on the gradient"),
        # once accepted, though no gradient enters
        ("numerator = param * 0.5", "does not depend on the gradient"),
        # once accepted; a bare relation is no number, and `nan`, `inf` are no names of the output
        ("numerator = grad > 0  # here", "comparison"),
        ("numerator = grad * float('nan')  # here", "nan"),
        ("numerator = grad * 1e400  # here", "inf"),
        # once an AssertionError with an empty message
        ("m = ema(grad, 0.9)\nm.beta = 0.5  # here\nnumerator = m", "beta"),
        # once with the class's line instead of the line itself
        ("numerator = 'x'  # here", r"'x' \(str\)"),
        ("numerator = [grad]  # here", "list"),
        ("k = hyper(0.9, ge='x')  # here\nnumerator = grad * k", "'x'"),
        # once without the nearest name
        ("m = ema(grad, 0.9)\nnumerator = m.corected  # here", "did you mean 'corrected'"),
        # once only a list of what a moment has, or a TypeError about a str
        ("m = ema(grad, 0.9)\nnumerator = m.T @ m  # here", "no transposes and matrix products"),
        ("m = ema(grad, 0.9)\nnumerator = m / m.sum()  # here", r"no \.sum; write sum\(x\)"),
        (
            "m = ema(grad, 0.9)\nnumerator = m / m.shape[0]  # here",
            "there are ndim, numel, rows and columns",
        ),
        # once torch's TypeError, which named a class of this library
        (
            "root_ = __import__('torch').sqrt(grad)  # here\nnumerator = root_",
            r"torch's sqrt needs: write sqrt\(x\)",
        ),
    ],
)
def test_refusals_that_were_missing_or_vague(body: str, message: str, tmp_path: Path) -> None:
    path, spec, line = spec_file(tmp_path, body)
    error = refusal(path, spec)
    assert error.origin.line == (line or 4)
    assert re.search(message, error.message), error


def test_missing_lr_names_the_class(tmp_path: Path) -> None:
    text = "from signconv.dsl import *\n\nclass Mine(Optimizer):  # here\n    numerator = grad"
    path, spec, line = spec_file(tmp_path, text, head="")
    error = refusal(path, spec)
    assert error.origin.line == line
    assert "has no lr: add `lr = hyper(1e-3, ge=0)`" in error.message
