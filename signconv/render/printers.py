"""How lowered expressions are written for each target; the order of evaluation is never changed."""

from __future__ import annotations

import math
from typing import ClassVar

from signconv.errors import LoweringError
from signconv.ir.nodes import Const, Expr, Op, Ref
from signconv.ir.show import RELATION, Infix
from signconv.lower.decompositions import DECOMPOSITIONS
from signconv.lower.exact import Integer
from signconv.lower.kernel_program import function_name, local_name


class _Code(Infix):
    #: Follows the names of decomposed functions; None where there are none.
    function_end: ClassVar[str | None] = None
    #: What they take after x.
    function_rest: ClassVar[str] = ""
    #: Operations written as methods of their argument.
    methods: ClassVar[dict[str, str]] = {}
    #: How -0 is written: as a literal, Triton before its pull request 11426 takes it for 0.
    minus_zero: ClassVar[str] = "-0.0"

    def functions_of(self, module: str) -> frozenset[str]:
        """The functions of expressions that are printed as calls into a module."""
        names = {f for f, name in self.calls.items() if name.split(".")[0] == module}
        names |= {f for f, name in self.methods.items() if f"{module}." in name}
        return frozenset(names | ({"pow"} if "ipow" in names else set()))

    def ref(self, r: Ref) -> str:
        return local_name(r)

    def const(self, x: float) -> str:
        return self.minus_zero if x == 0 and math.copysign(1.0, x) < 0 else self.number(x)

    def number(self, x: float) -> str:
        """Any number but -0."""
        return super().const(x)

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn == "neg":  # Triton negates by 0 - x, which loses the sign of zero
            return self._print(Op("mul", (Const(-1.0), e.args[0])))
        if self.function_end is not None and e.fn in DECOMPOSITIONS:
            return (
                f"{function_name(e)}{self.function_end}({self(e.args[0])}{self.function_rest})",
                9,
            )
        if e.fn not in self.infix and e.fn not in self.calls and not _relation(e.fn):
            raise LoweringError("SC306", f"{type(self).__name__} cannot print {e.fn!r}")
        return None


def _relation(fn: str) -> bool:
    return fn in ("lt", "le", "gt", "ge", "eq", "ne")


class TritonPrinter(_Code):
    """Elementwise fp32 in a kernel: roots and quotients are the correctly rounded ones."""

    function_end = ""
    function_rest = ", CODEC"
    infix = frozenset({"add", "sub", "mul"})
    minus_zero = "(tl.full((), 0.0, tl.float32) * -1.0)"
    #: These choose their instructions by the kernel's CODEC.
    by_codec = frozenset({
        "div", "sqrt", "ratio", "mean_ratio", "divisor_sqrt", "reciprocal", "fma",
    })  # fmt: skip
    calls = {
        "div": "dev.divide",
        "sqrt": "dev.sqrt",
        "abs": "tl.abs",
        "where": "tl.where",
        "sign": "dev.sign",
        "mean_ratio": "dev.mean_ratio",
        "ratio": "dev.ratio",
        "divisor_sqrt": "dev.divisor_sqrt",
        "reciprocal": "dev.reciprocal",
        "bf16": "dev.bf16_nearest",
        "max": "dev.maximum",
        "min": "dev.minimum",
        "nonneg_max": "dev.nonneg_maximum",
        "nonzero_min": "dev.nonzero_minimum",
        "fma": "dev.fma",
    }

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn in self.by_codec:
            operands = ", ".join(self(x) for x in e.args)
            return f"{self.calls[e.fn]}({operands}, CODEC)", 9
        return super().special(e)


class TorchPrinter(_Code):
    """Elementwise fp32 in the reference: one torch operation per node."""

    function_end = "_reference"
    infix = frozenset({"add", "sub", "mul"})
    calls = {
        "div": "torch.div",
        "sqrt": "ref.sqrt",
        "abs": "torch.abs",
        "where": "torch.where",
        "sign": "ref.sign",
        "mean_ratio": "ref.mean_ratio",
        "ratio": "ref.ratio",
        "divisor_sqrt": "ref.divisor_sqrt",
        "reciprocal": "ref.reciprocal",
        "bf16": "ref.bf16_nearest",
        "max": "ref.maximum",
        "min": "ref.minimum",
        "nonneg_max": "ref.nonneg_maximum",
        "nonzero_min": "ref.nonzero_minimum",
        "fma": "ref.fma",
    }

    def special(self, e: Op) -> tuple[str, int] | None:
        if picks_numbers(e):
            return f"ref.either({', '.join(self(a) for a in e.args)})", 9
        return super().special(e)


class _Exact(_Code):
    """Bodies of decomposed functions: what ``lower.exact`` adds."""

    numbers: ClassVar[dict[str, str]]
    operators: ClassVar[dict[str, str]] = {"and": "&", "or": "|", "left": "<<", "right": ">>"}

    def _print(self, e: Expr) -> tuple[str, int]:
        if isinstance(e, Integer):
            sign, size = "-" * (e.value < 0), abs(e.value)
            return f"{sign}{size}" if size < 1000 else f"{sign}0x{size:X}", 9
        if isinstance(e, Const):
            return self.const(e.value), 9
        return super()._print(e)

    def number(self, x: float) -> str:
        if not math.isfinite(x):
            return self.numbers[repr(x)]
        fraction, exponent = math.frexp(x)
        return f"2.0**{exponent - 1}" if fraction == 0.5 and abs(exponent) > 10 else repr(x)

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn in self.methods:
            inner, level = self._print(e.args[0])
            return f"{inner if level == 9 else f'({inner})'}.{self.methods[e.fn]}", 9
        if e.fn in self.operators:
            printed = (self._print(a) for a in e.args)
            sides = [x if level == 9 else f"({x})" for x, level in printed]
            return f" {self.operators[e.fn]} ".join(sides), 0
        return super().special(e)


class TritonFunctionPrinter(_Exact, TritonPrinter):
    """Decomposed functions in a kernel."""

    methods = {
        "bits": "to(tl.int32, bitcast=True)",
        "of_bits": "to(tl.float32, bitcast=True)",
        "to_int": "to(tl.int32)",
        "to_float": "to(tl.float32)",
    }
    numbers = {"inf": 'float("inf")', "-inf": 'float("-inf")', "nan": 'float("nan")'}
    calls = {
        "abs": "tl.abs",
        "where": "tl.where",
        "floor": "tl.floor",
        "quotient": "dev.quotient",
        "fma": "dev.fma",
        "power": "dev.power",
        "divided": "dev.divided",
    }

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn == "clamp":
            x, low, high = (self(a) for a in e.args)
            return f"tl.minimum(tl.maximum({x}, {low}), {high})", 9
        return super().special(e)


class TorchFunctionPrinter(_Exact, TorchPrinter):
    """Decomposed functions in the reference."""

    methods = {
        "bits": "view(torch.int32)",
        "of_bits": "view(torch.float32)",
        "to_int": "to(torch.int32)",
        "to_float": "to(torch.float32)",
    }
    numbers = {"inf": "torch.inf", "-inf": "-torch.inf", "nan": "torch.nan"}
    calls = {
        "abs": "torch.abs",
        "where": "torch.where",
        "floor": "torch.floor",
        "quotient": "ref.quotient",
        "fma": "ref.fma",
        "power": "ref.power",
        "divided": "ref.divided",
        "clamp": "torch.clamp",
    }


class _Scalar(_Code):
    """Float64 scalars (docs/design.md#scalars); a whole power takes t itself as its exponent."""

    infix = frozenset({"add", "sub", "mul"})

    def number(self, x: float) -> str:
        return repr(x) if math.isfinite(x) else f'float("{x}")'

    def ref(self, r: Ref) -> str:
        return "real_t" if r.kind == "t" else super().ref(r)

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn == "pow" and _integral(e.args[1]):
            return f"{self.calls['ipow']}({self(e.args[0])}, {self.exponent(e.args[1])})", 9
        if _relation(e.fn) and _counts(e):
            return f"t {RELATION[e.fn]} {self.exponent(e.args[1])}", 0
        return super().special(e)

    def exponent(self, e: Expr) -> str:
        """A whole one: t, a number, or float64 arithmetic on them."""
        if isinstance(e, Ref):
            return "t"
        short = isinstance(e, Const) and abs(e.value) < 2**31
        return str(int(e.value)) if isinstance(e, Const) and short else self(e)


def _counts(e: Op) -> bool:
    """Whether this compares t with a whole number: both are integers."""
    t, n = e.args
    whole = isinstance(n, Const) and abs(n.value) < 2**31 and _integral(n)
    return isinstance(t, Ref) and t.kind == "t" and whole


def _integral(e: Expr) -> bool:
    """Whether a scalar is whole at every step, made of t and whole numbers."""
    if isinstance(e, Const):
        return math.isfinite(e.value) and e.value == int(e.value)
    if isinstance(e, Ref):
        return e.kind == "t"
    return (
        isinstance(e, Op)
        and e.fn in ("add", "sub", "mul", "mod")
        and all(_integral(a) for a in e.args)
    )


def picks_numbers(e: Op) -> bool:
    """Whether PyTorch chooses between two real numbers, by ``ref.either``: torch.where would take
    its default dtype."""
    return e.fn == "where" and all(type(a) is Const for a in e.args[1:])


def reads_real_t(e: Expr) -> bool:
    """Whether scalar code reads t as a real number, and not as the exponent of a whole power."""
    if isinstance(e, Ref):
        return e.kind == "t"
    if not isinstance(e, Op):
        return False
    if e.fn == "pow" and isinstance(e.args[1], Ref) and e.args[1].kind == "t":
        return reads_real_t(e.args[0])
    if _relation(e.fn) and _counts(e):
        return False
    return any(reads_real_t(a) for a in e.args)


class TritonScalarPrinter(_Scalar):
    """Float64 scalars in the one-program kernel."""

    infix = frozenset({"add", "sub", "mul", "div"})
    minus_zero = "(tl.full((), 0.0, tl.float64) * -1.0)"
    calls = {
        "ipow": "dev.power64",
        "pow": "dev.real_power64",
        "mod": "dev.mod64",
        "exp": "dev.exp64",
        "log": "dev.log64",
        "tanh": "dev.tanh64",
        "sqrt": "dev.sqrt64",
        "abs": "tl.abs",
        "where": "dev.where64",
        "max": "dev.max64",
        "min": "dev.min64",
    }

    def whole(self, e: Expr) -> str:
        """A whole right-hand side: a bare number would be typed fp32."""
        if not isinstance(e, Const) or self.const(e.value) == self.minus_zero:
            return self(e)
        return f"tl.full((), {self.const(e.value)}, tl.float64)"


class PythonScalarPrinter(_Scalar):
    """Float64 scalars as Python floats; nothing raises, everything has IEEE's value."""

    calls = {
        "div": "ref.divide64",
        "ipow": "ref.power64",
        "pow": "ref.real_power64",
        "mod": "ref.mod64",
        "exp": "ref.exp64",
        "log": "ref.log64",
        "tanh": "ref.tanh64",
        "sqrt": "ref.sqrt64",
        "abs": "abs",
        "max": "ref.max64",
        "min": "ref.min64",
    }

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn == "where":
            cond, a, b = (self(x) for x in e.args)
            return f"({a} if {cond} else {b})", 9
        return super().special(e)
