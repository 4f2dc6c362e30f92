"""How lowered expressions are written for each target; the order of evaluation is never changed."""

from __future__ import annotations

from signconv.errors import LoweringError
from signconv.ir.nodes import Const, Expr, Op, Ref
from signconv.ir.show import Infix
from signconv.lower.kernel_program import QUOTIENTS, local_name


class _Code(Infix):
    def functions_of(self, module: str) -> frozenset[str]:
        """The functions of expressions that are printed as calls into a module."""
        return frozenset(f for f, name in self.calls.items() if name.split(".")[0] == module)

    def ref(self, r: Ref) -> str:
        return local_name(r)

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn == "neg":  # Triton negates by 0 - x, which loses the sign of zero
            return self._print(Op("mul", (Const(-1.0), e.args[0])))
        if e.fn == "newton_root":
            x, order = e.args
            assert isinstance(order, Const)
            return f"{self.calls[e.fn]}({self(x)}, {int(order.value)})", 9
        if e.fn not in self.infix and e.fn not in self.calls and not _relation(e.fn):
            raise LoweringError("SC306", f"{type(self).__name__} cannot print {e.fn!r}")
        return None


def _relation(fn: str) -> bool:
    return fn in ("lt", "le", "gt", "ge", "eq", "ne")


class TritonPrinter(_Code):
    """Elementwise fp32 in a kernel: roots and quotients are the correctly rounded ones."""

    infix = frozenset({"add", "sub", "mul"})
    #: These choose their instructions by the kernel's CODEC.
    by_codec = QUOTIENTS
    calls = {
        "div": "dev.divide",
        "sqrt": "dev.sqrt",
        "abs": "tl.abs",
        "where": "tl.where",
        "sign": "dev.sign",
        "signed": "dev.signed",
        "mean_ratio": "dev.mean_ratio",
        "ratio": "dev.ratio",
        "cbrt": "dev.cbrt",
        "newton_root": "dev.root",
        "real_power": "dev.real_power",
        "bf16": "dev.bf16_nearest",
        "exp": "dev.exp",
        "log": "dev.log",
        "tanh": "dev.tanh",
        "max": "dev.maximum",
        "min": "dev.minimum",
        "nonneg_max": "dev.nonneg_maximum",
    }

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn in self.by_codec:
            operands = ", ".join(self(x) for x in e.args)
            return f"{self.calls[e.fn]}({operands}, CODEC)", 9
        return super().special(e)


class TorchPrinter(_Code):
    """Elementwise fp32 in the reference: one torch operation per node."""

    infix = frozenset({"add", "sub", "mul"})
    calls = {
        "div": "torch.div",
        "sqrt": "ref.sqrt",
        "abs": "torch.abs",
        "where": "torch.where",
        "sign": "ref.sign",
        "signed": "ref.signed",
        "mean_ratio": "ref.mean_ratio",
        "ratio": "ref.ratio",
        "cbrt": "ref.cbrt",
        "newton_root": "ref.root",
        "real_power": "ref.real_power",
        "bf16": "ref.bf16_nearest",
        "exp": "ref.exp",
        "log": "ref.log",
        "tanh": "ref.tanh",
        "max": "ref.maximum",
        "min": "ref.minimum",
        "nonneg_max": "ref.nonneg_maximum",
    }


class _Scalar(_Code):
    """Float64 scalars; t is an integer in powers, remainders and comparisons with integers."""

    def ref(self, r: Ref) -> str:
        return "real_t" if r.kind == "t" else super().ref(r)

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn == "pow":
            base, exponent = e.args
            if _integral(exponent):
                return f"{self.calls['ipow']}({self(base)}, {_INTEGER(exponent)})", 9
            return f"{self.calls['pow']}({self(base)}, {self(exponent)})", 9
        if (e.fn == "mod" or _relation(e.fn)) and all(_integral(a) for a in e.args):
            return _INTEGER._print(e)
        return super().special(e)


class _Integer(_Code):
    """t and whole numbers."""

    infix = frozenset({"add", "sub", "mul", "mod"})

    def const(self, x: float) -> str:
        return str(int(x))


_INTEGER = _Integer()


def _integral(e: Expr) -> bool:
    if isinstance(e, Const):
        return e.value == int(e.value)
    if isinstance(e, Ref):
        return e.kind == "t"
    return isinstance(e, Op) and e.fn in _Integer.infix and all(_integral(a) for a in e.args)


def reads_real_t(e: Expr) -> bool:
    """Whether scalar code reads t as a real number, outside whole powers and whole comparisons."""
    if isinstance(e, Ref):
        return e.kind == "t"
    if not isinstance(e, Op):
        return False
    if e.fn == "pow" and _integral(e.args[1]):
        return reads_real_t(e.args[0])
    if (e.fn == "mod" or _relation(e.fn)) and all(_integral(a) for a in e.args):
        return False
    return any(reads_real_t(a) for a in e.args)


class TritonScalarPrinter(_Scalar):
    """Float64 scalars in the one-program kernel."""

    calls = {
        "ipow": "dev.power64",
        "pow": "dev.real_power64",
        "exp": "dev.exp64",
        "log": "dev.log64",
        "sqrt": "tl.sqrt",
        "abs": "tl.abs",
        "where": "tl.where",
        "max": "tl.maximum",
        "min": "tl.minimum",
    }

    def whole(self, e: Expr) -> str:
        """A whole right-hand side: a bare number would be typed fp32."""
        return (
            f"tl.full((), {self.const(e.value)}, tl.float64)" if isinstance(e, Const) else self(e)
        )

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn == "where" and all(isinstance(a, Const) for a in e.args[1:]):
            branches = ", ".join(self.whole(a) for a in e.args[1:])
            return f"tl.where({self(e.args[0])}, {branches})", 9
        return super().special(e)


class PythonScalarPrinter(_Scalar):
    """Float64 scalars as Python floats; division follows IEEE at zero instead of raising."""

    infix = frozenset({"add", "sub", "mul", "mod"})
    calls = {
        "div": "ref.divide64",
        "ipow": "ref.power64",
        "pow": "ref.real_power64",
        "exp": "ref.exp64",
        "log": "ref.log64",
        "sqrt": "math.sqrt",
        "abs": "abs",
        "max": "max",
        "min": "min",
    }

    def special(self, e: Op) -> tuple[str, int] | None:
        if e.fn == "where":
            cond, a, b = (self(x) for x in e.args)
            return f"({a} if {cond} else {b})", 9
        return super().special(e)
