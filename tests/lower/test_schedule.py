"""Statements, scalars, storage and random bits that lowering decides, on specs written here."""

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from signconv.errors import LoweringError
from signconv.ir.nodes import Const, Op, Ref, add
from signconv.ir.show import text
from signconv.lower.kernel_program import KernelProgram, Statement
from signconv.pipeline import build, resolve
from signconv.runtime.kernel import step
from signconv.runtime.reference import step as reference_step
from tests.support import built_class, spec_file

PAIR = """\
b1, b2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
wd = hyper(0.1, ge=0)
m, v = ema(grad, b1), ema(grad**2, b2)
decay = decoupled(wd)
"""
CORRECTED = "numerator = m.corrected\ndenominator = sqrt(v.corrected)"


def lowered(folder: Path, body: str, convert: str | None = None, state: str = "fp32"):
    return build(spec_file(folder, body).spec, convert=convert, state=state).kernel


def lines(statements: tuple[Statement, ...]) -> list[str]:
    return [f"{s.target} = {text(s.expr)}" for s in statements]


#: spec, passes, float64 scalars, elementwise statements
TABLE = {
    "ratio": (
        PAIR + CORRECTED + " + 2",
        None,
        [
            "one_minus_b1 = 1 - b1",
            "one_minus_b2 = 1 - b2",
            "root_correction = sqrt(1 / (1 - b2**t))",
            "decay = wd * (1 - b1**t)",
            "minus_lr = 0 - 1 / (1 - b1**t) * lr",
        ],
        [
            "m = fma(b1, m.prev, one_minus_b1 * g)",
            "v = fma(b2, v.prev, one_minus_b2 * (g * g))",
            "update = m * reciprocal(fma(divisor_sqrt(v), root_correction, 2))",
            "p = fma(minus_lr, fma(decay, p, update), p)",
        ],
    ),
    "sign form of a square root, bias corrections in one gain": (
        PAIR + CORRECTED,
        "stosign",
        [
            "one_minus_b1 = 1 - b1",
            "one_minus_b2 = 1 - b2",
            "noise_gain = (1 - b1**t) * (1 - b1**t) / (1 - b2**t)",
            "minus_lr = 0 - lr",
        ],
        [
            "m = fma(b1, m.prev, one_minus_b1 * g)",
            "v = fma(b2, v.prev, one_minus_b2 * (g * g))",
            "direction = fma(m, abs(m), v * noise_gain * (noise * abs(noise)))",
            "p = fma(minus_lr, fma(wd, p, sign(direction)), p)",
        ],
    ),
    "sign form without bias correction": (
        PAIR + "numerator = m\ndenominator = sqrt(v)",
        "stosign",
        ["one_minus_b1 = 1 - b1", "one_minus_b2 = 1 - b2", "minus_lr = 0 - lr"],
        [
            "m = fma(b1, m.prev, one_minus_b1 * g)",
            "v = fma(b2, v.prev, one_minus_b2 * (g * g))",
            "direction = fma(m, abs(m), v * (noise * abs(noise)))",
            "p = fma(minus_lr, fma(wd, p, sign(direction)), p)",
        ],
    ),
    "factors inside and outside of the root": (
        PAIR + "numerator = m / 2\ndenominator = 3 * sqrt(v / 5)",
        "stosign",
        [
            "one_minus_b1 = 1 - b1",
            "one_minus_b2 = 1 - b2",
            "noise_gain = 7.2",
            "minus_lr = 0 - lr",
        ],
        [
            "m = fma(b1, m.prev, one_minus_b1 * g)",
            "v = fma(b2, v.prev, one_minus_b2 * (g * g))",
            "direction = fma(m, abs(m), v * noise_gain * (noise * abs(noise)))",
            "p = fma(minus_lr, fma(wd, p, sign(direction)), p)",
        ],
    ),
    "an offset keeps the linear form": (
        PAIR + "numerator = m\ndenominator = sqrt(v) + 1",
        "stosign:eps=keep",
        ["one_minus_b1 = 1 - b1", "one_minus_b2 = 1 - b2", "minus_lr = 0 - lr"],
        [
            "m = fma(b1, m.prev, one_minus_b1 * g)",
            "v = fma(b2, v.prev, one_minus_b2 * (g * g))",
            "direction = fma(sqrt(v) + 1, noise, m)",
            "p = fma(minus_lr, fma(wd, p, sign(direction)), p)",
        ],
    ),
    "a factor that may be negative keeps the linear form": (
        PAIR.replace(", ge=0, lt=1", "") + CORRECTED,
        "stosign",
        [
            "one_minus_b1 = 1 - b1",
            "one_minus_b2 = 1 - b2",
            "m_correction = 1 / (1 - b1**t)",
            "v_correction = 1 / (1 - b2**t)",
            "minus_lr = 0 - lr",
        ],
        [
            "m = fma(b1, m.prev, one_minus_b1 * g)",
            "v = fma(b2, v.prev, one_minus_b2 * (g * g))",
            "direction = fma(m, m_correction, sqrt(v * v_correction) * noise)",
            "p = fma(minus_lr, fma(wd, p, sign(direction)), p)",
        ],
    ),
    "running maximum": (
        "m = ema(grad, 0.5)\nnumerator = m",
        "stosign",
        ["minus_lr = 0 - lr"],
        [
            "m = fma(0.5, m.prev, 0.5 * g)",
            "G = nonneg_max(beta2 * G.prev, abs(m))",
            "direction = fma(G, noise, m)",
            "p = fma(minus_lr, sign(direction), p)",
        ],
    ),
    "a plain sign drops positive factors": (
        "k = hyper(2.0, gt=0)\nm = ema(grad, 0.5)\nupdate = sign(k * m.corrected / 3)",
        None,
        ["minus_lr = 0 - lr"],
        ["m = fma(0.5, m.prev, 0.5 * g)", "direction = m", "p = fma(minus_lr, sign(direction), p)"],
    ),
    "a plain sign keeps a factor of unknown sign": (
        "k = hyper(2.0)\nupdate = sign(k * grad)",
        None,
        ["minus_lr = 0 - lr"],
        ["direction = k * g", "p = fma(minus_lr, sign(direction), p)"],
    ),
    "division by a scalar": (
        "k = hyper(2.0, gt=0)\nnumerator = grad / k",
        None,
        ["numerator_scale = 1 / k", "minus_lr = 0 - lr"],
        ["update = g * numerator_scale", "p = fma(minus_lr, update, p)"],
    ),
    "first input, l2 and independent decay": (
        "b = hyper(0.9)\nwd = hyper(0.1)\nm = ema(grad, b, init='first')\nnumerator = m\n"
        "decay = l2(wd)",
        None,
        [
            "m_beta = where(t == 1, 0, b)",
            "m_rest = where(t == 1, 1, 1 - b)",
            "minus_lr = 0 - lr",
        ],
        [
            "g = fma(wd, p, g)",
            "m = fma(m_beta, m.prev, m_rest * g)",
            "update = m",
            "p = fma(minus_lr, update, p)",
        ],
    ),
    "independent decay": (
        "wd = hyper(0.1)\nnumerator = grad\ndecay = independent(wd)",
        None,
        ["decay_step = lr / where(initial_lr == 0, inf, initial_lr) * wd"],
        ["update = g", "p = p - fma(lr, update, decay_step * p)"],
    ),
    "temporaries, scalar and elementwise": (
        "b = hyper(0.9)\nwarm = 1 - b**t\nc = grad * warm\nd = c * c\nnumerator = c + d",
        None,
        ["warm = 1 - b**t", "minus_lr = 0 - lr"],
        ["c = g * warm", "d = c * c", "update = c + d", "p = fma(minus_lr, update, p)"],
    ),
    "powers by squaring": (
        "numerator = grad**2 + abs(grad)**3 + grad**5",
        None,
        ["minus_lr = 0 - lr"],
        None,
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_statements(case: str, tmp_path: Path) -> None:
    body, convert, scalars, math = TABLE[case]
    k = lowered(tmp_path, body, convert)
    made = lines(k.scalars)
    # 1 - 0.5 is exact: whether it is a scalar's name or a literal is the lowering's business
    names = [s.target for s in k.scalars if text(s.expr) in ("0.5", "1 - 0.5")]
    made = [x for x in made if x.split(" = ")[0] not in names]
    assert made == scalars
    if math is not None:
        found = lines(k.math)
        for name in names:
            found = [re.sub(rf"\b{name}\b", "0.5", x) for x in found]
        assert found == math


@pytest.mark.parametrize("n", [2, 3, 5, 8, 16])
def test_integer_powers_multiply_little(n: int, tmp_path: Path) -> None:
    """Binary powering: no more than 2 log2(n) products where common ones are shared."""
    (update, _) = lowered(tmp_path, f"numerator = grad**{n}").math

    def distinct(e, seen: set) -> int:
        if not isinstance(e, Op) or e in seen:
            return 0
        seen.add(e)
        return 1 + sum(distinct(a, seen) for a in e.args)

    assert distinct(update.expr, set()) <= 2 * n.bit_length() - 2
    assert set(re.findall(r"\w+", text(update.expr))) == {"g"}


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("read", ["m", "m.corrected"])
def test_stosign_code_has_no_root_and_no_division(order: int, read: str, tmp_path: Path) -> None:
    body = (
        "b = hyper(0.9, ge=0, lt=1)\nm = ema(grad, b)\nv = moment(grad, order={0}, beta=b)\n"
        "numerator = {1}\ndenominator = root(v{2}, {0})"
    ).format(order, read, ".corrected" if "." in read else "")
    k = lowered(tmp_path, body, "stosign")
    used = {n.fn for s in k.math for n in _ops(s.expr)}
    assert not used & {"div", "ratio", "sqrt", "cbrt", "root"}
    assert k.noise
    gain = [s for s in k.scalars if s.target == "noise_gain"]
    assert bool(gain) is ("." in read)


def _ops(e):
    if isinstance(e, Op):
        yield e
        for a in e.args:
            yield from _ops(a)


def test_scalar_names_are_readable(tmp_path: Path) -> None:
    k = lowered(tmp_path, PAIR + CORRECTED)
    assert {"one_minus_b1", "one_minus_b2", "root_correction", "decay", "minus_lr"} <= set(
        k.outputs
    )
    assert len(set(k.outputs)) == len(k.outputs)


@pytest.mark.parametrize("taken", ["one_minus_b1", "m_correction", "minus_lr", "update"])
def test_names_of_the_spec_win_over_those_of_scalars(taken: str, tmp_path: Path) -> None:
    if taken == "update":
        taken = "numerator_scalar"
    body = PAIR + f"{taken} = grad * 2\nnumerator = m.corrected + {taken}\ndenominator = sqrt(v)"
    k = lowered(tmp_path, body)
    assert f"{taken} = g * 2" in lines(k.math)
    assert taken not in k.outputs


# ---------------------------------------------------------------- the self-check


def kernel(**changes) -> KernelProgram:
    base = KernelProgram(
        program=resolve("lion"), storage="fp32", scalars=(), outputs=("lr",), math=(), moments=(),
        noise=False, words=1,
    )  # fmt: skip
    return replace(base, **changes)


G, LOST = Ref("grad", "grad"), Ref("temp", "lost")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"math": (Statement("x", add(G, LOST)),)}, "x reads 'lost' before it is computed"),
        (
            {"math": (Statement("x", Ref("temp", "y")), Statement("y", G))},
            "x reads 'y' before it is computed",
        ),
        ({"math": (Statement("x", Ref("prev", "m")),)}, "x reads 'm_prev'"),
        ({"math": (Statement("x", Ref("draw", "other")),)}, "x reads 'other'"),
        ({"math": (Statement("x", Op("mod", (G, G))),)}, "x: no backend can print 'mod'"),
        ({"math": (Statement("x", Op("corrected", (G,))),)}, "no backend can print 'corrected'"),
        ({"outputs": ("gain",)}, "scalars .*'gain'.* read but never computed"),
        ({"scalars": (Statement("k", Ref("temp", "lost")),)}, "k reads 'lost'"),
        ({"scalars": (Statement("k", Ref("grad", "grad")),)}, "k reads 'g'"),
        ({"scalars": (Statement("k", Op("signed", (Const(1.0), Const(1.0)))),)}, "print 'signed'"),
    ],
)
def test_check_refuses(changes: dict, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        kernel(**changes).check()


def test_check_refuses_a_moment_that_is_stored_but_never_computed(tmp_path: Path) -> None:
    k = lowered(tmp_path, PAIR + CORRECTED)
    with pytest.raises(LoweringError, match="'v' is stored but never computed"):
        replace(k, math=tuple(s for s in k.math if s.target == "m")).check()


def test_unknown_state_gives_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="unknown state format 'fp16'; did you mean 'bf16'"):
        lowered(tmp_path, "numerator = grad", state="fp16")


# ---------------------------------------------------------------- which maximum


@pytest.mark.parametrize(
    ("written", "fn"),
    [
        ("max(abs(grad), param**2)", "nonneg_max"),
        ("max(abs(grad), param)", "max"),  # +0 beside -0: there the order of zeros is not idle
        ("max(grad, param**2)", "max"),
        ("max(grad, param)", "max"),
        ("max(grad, -1)", "nonneg_max"),  # one is never 0
        ("min(2, grad)", "nonzero_min"),
        ("max(grad, 0)", "max"),
        ("min(grad, 1e-40)", "min"),  # 0 where subnormal numbers are
        ("min(grad, h)", "nonzero_min"),
        ("max(grad, -h)", "nonneg_max"),
        ("max(grad, lr)", "max"),
    ],
)
def test_the_short_forms_only_where_the_order_of_zeros_is_idle(
    written: str, fn: str, tmp_path: Path
) -> None:
    k = lowered(tmp_path, f"h = hyper(1.0, ge=1e-30)\nnumerator = {written} * h")
    used = {n.fn for s in k.math for n in _ops(s.expr)}
    assert {"max", "min", "nonneg_max", "nonzero_min"} & used == {fn}


# ---------------------------------------------------------------- names do not move bits

RENAMED = """\
{0} = hyper(0.9, ge=0, lt=1)
{1} = hyper(0.99, ge=0, lt=1)
{2} = hyper(0.1, ge=0)
{3} = ema(grad, {0})
{4} = ema(grad**2, {1})
{5} = {0} * {3}.prev + (1 - {0}) * grad + {2} * {3}
{6} = {4}.prev * {5} - {5} * {3} - {4}
numerator = {5} + {6} * {3} - {3} * ({6} + {5})
denominator = sqrt({4}.corrected) + abs({6}) + {2}
decay = decoupled({2})
"""


@pytest.mark.parametrize("state", ["fp32", "fp8"])
@pytest.mark.parametrize("convert", [None, "stosign"])
def test_renaming_every_symbol_gives_the_same_bits(
    convert: str | None, state: str, tmp_path: Path
) -> None:
    """The names of the second spec sort in the opposite order."""
    ends = []
    for i, names in enumerate(("a b c d e f h", "z y x w v u q")):
        folder = tmp_path / str(i)
        folder.mkdir()
        cls = built_class(folder, RENAMED.format(*names.split()), convert, state)
        rng = torch.Generator().manual_seed(1)
        p = torch.randn(64, 32, generator=rng).requires_grad_()
        optimizer = cls([p], lr=0.01, backend="reference", seed=3)
        for _ in range(5):
            p.grad = torch.randn(64, 32, generator=rng)
            optimizer.step()
        kept = [p.detach(), *(v for k, v in optimizer.state[p].items())]
        ends.append(kept)
    assert len(ends[0]) == len(ends[1])
    for one, other in zip(*ends):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


# ---------------------------------------------------------------- storage and random bits

#: moment -> its format with fp8 state
FORMATS = {
    "ema(grad, 0.9)": "e4m3",
    "ema(sign(grad), 0.9)": "e4m3",
    "ema(abs(grad), 0.9)": "e4m3",
    "max_ema(abs(grad))": "e4m3",
    "ema(grad**2, 0.9)": "e5m3",
    "ema(grad * grad, 0.9)": "e5m3",
    "max_ema(grad**2)": "e5m3",
    "ema(grad * grad * 1.5 - grad**2, 0.9)": "bf16",  # may be negative
    "ema(param * grad, 0.9)": "fp32",
    "ema(grad + 1, 0.9)": "bf16",
    "ema(grad**3, 0.9)": "bf16",
    "ema(abs(grad)**1.5, 0.9)": "e5m3",
    "ema(abs(grad)**2.5, 0.9)": "e6m2",
    "ema(abs(grad)**3, 0.9)": "e6m2",
    "ema(grad**4, 0.9)": "e6m2",
    "ema(abs(grad)**4.5, 0.9)": "bf16",
    "ema(abs(grad)**5, 0.9)": "e4m3-root5",
    "ema(abs(grad)**8 + grad**8, 0.9)": "e4m3-root8",
    "ema(grad**10, 0.9)": "bf16",  # its powers leave fp32's range too soon
    "ema(grad + param, 0.9)": "fp32",  # of the parameter's size, which moves by less than bf16's
}


@pytest.mark.parametrize("moment", FORMATS)
def test_format_by_degree(moment: str, tmp_path: Path) -> None:
    body = f"q = {moment}\nnumerator = grad + q"
    (plan,) = lowered(tmp_path, body, state="fp8").moments
    assert plan.format == FORMATS[moment]
    for state in ("fp32", "bf16"):
        (plan,) = lowered(tmp_path, body, state=state).moments
        assert plan.format == state


@pytest.mark.parametrize(
    ("count", "below"), [(n, d) for n in (1, 2, 3, 4, 5) for d in (0, 1, 2) if d <= n]
)
@pytest.mark.parametrize("convert", [None, "stosign"])
def test_bits_plan(count: int, below: int, convert: str | None, tmp_path: Path) -> None:
    """No two moments share a field, and none has the sign's or, of the denominator's, that of the
    parameter.

    ``below`` of the moments are read by the denominator.
    """
    names = [f"m{i}" for i in range(count)]
    body = "\n".join(f"{n} = ema(abs(grad), 0.{i + 1})" for i, n in enumerate(names))
    body += f"\nnumerator = grad + {' + '.join(names)}"
    if below:
        body += f"\ndenominator = {' + '.join(names[:below])}"
    k = lowered(tmp_path, body, convert)
    fields = {m.name: (m.word, m.field) for m in k.moments}
    assert len(set(fields.values())) == len(fields)
    assert {word for word, _ in fields.values()} | {0} == set(range(k.words))
    assert not k.noise or (0, 0) not in fields.values()
    assert all(fields[n] != (0, 1) for n in names[:below])


def test_sign_noise_and_parameter_never_share() -> None:
    """Read off the code that every optimizer shares, kernel and reference."""
    for module in (step, reference_step):
        nodes = [*ast.walk(ast.parse(inspect.getsource(module)))]

        def arguments(name: str, nodes: list[ast.AST] = nodes) -> list[str]:
            (call,) = (n for n in nodes if type(n) is ast.Call and ast.unparse(n.func) == name)
            return [ast.unparse(a) for a in call.args]

        def assigned(name: str, nodes: list[ast.AST] = nodes) -> list[str]:
            made = (n for n in nodes if type(n) is ast.Assign and ast.unparse(n.targets[0]) == name)
            return [ast.unparse(n.value) for n in made]

        noise = arguments("ops.sign_noise")[0]
        if noise == "sign":  # the kernel's, which another kind of noise turns
            assert assigned("sign") == [
                "ops.field(first, 0)", "ops.turned(sign, keys[2 * WORDS], NOISE)",
            ]  # fmt: skip
            assert assigned("hashed")[0] == "(first,)"
        else:
            assert noise == "words[0].field(0)"
        (rounding,) = (a for a in arguments("ops.store_param") if "field" in a or a == "of_param")
        if rounding == "of_param":  # of antithetic noise field 1 has the step's multiplier
            assert assigned("of_param") == [
                "ops.multiplied(first, keys[2 * WORDS + 1])", "ops.field(first, 1)",
            ]  # fmt: skip
        else:
            assert rounding == "words[0].field(1)"
