"""A row of 32 elements under compilation: the reference's PyTorch calls, as LLVM instructions.

The CPU backend does not have functions of its own for formats and arithmetic.  It calls the
generated module's reference function once with ``Lanes`` in the place of tensors: each torch
operation then writes the one LLVM instruction that computes it, on vectors of 32 elements.  So
a codec or an operation is written once, in ``torch_ops``, and means the same here.  An operation
that has no instruction yet raises NotImplementedError and names itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from signconv.runtime import torch_ops
from signconv.runtime.formats import BLOCK

LLVM = {
    torch.bool: ir.IntType(1),
    torch.uint8: ir.IntType(8),
    torch.int16: ir.IntType(16),
    torch.bfloat16: ir.IntType(16),
    torch.int32: ir.IntType(32),
    torch.int64: ir.IntType(64),
    torch.float32: ir.FloatType(),
    torch.float64: ir.DoubleType(),
}
POINTER = ir.PointerType()
_UNSIGNED = (torch.bool, torch.uint8)
_OPERATORS = {"mul": "__mul__", "add": "__add__", "sub": "__sub__", "neg": "__neg__"}


@dataclass
class Trace:
    """Where instructions go, and what the reference did beside arithmetic.

    ``reductions`` are the names of the functions that turn sums into numbers, in order;
    ``summands`` what is summed.  ``reduced`` gives such a number, as the second phase reads it;
    without it nothing is stored.
    """

    builder: Any
    reduced: Callable[[int], Lanes] | None = None
    storing: bool = True
    summands: list[Lanes] = field(default_factory=list)
    reductions: list[str] = field(default_factory=list)

    def intrinsic(self, name: str, result: Any, *arguments: Any) -> Any:
        """Call an LLVM intrinsic; ``name`` without the types it is overloaded on."""
        module = self.builder.module
        types = [a.type for a in arguments]
        full = f"llvm.{name}.{_suffix(types[0])}"
        function = module.globals.get(full)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, types), full)
        return self.builder.call(function, arguments)


def _suffix(t: Any) -> str:
    if isinstance(t, ir.VectorType):
        return f"v{t.count}{_suffix(t.element)}"
    return {"float": "f32", "double": "f64"}.get(str(t), str(t))


class _Numel:
    """The number of elements, which only the tensor at run time has: arithmetic on it fails."""


class Lanes:
    """32 elements of a tensor, or one number for all of them, while the reference is compiled."""

    device = torch.device("cpu")

    def __init__(self, trace: Trace, dtype: torch.dtype, value: Any) -> None:
        self.trace, self.dtype, self.value = trace, dtype, value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = getattr(func, "__module__", None) == torch_ops.__name__
        name = f"_{func.__name__}" if own else _OPERATORS.get(func.__name__, func.__name__)
        known = getattr(cls, name, None)
        if known is None:
            raise NotImplementedError(f"the CPU backend cannot compile {func.__name__}()")
        if own or name == "where":
            return known(*args, **(kwargs or {}))
        first = next(a for a in args if isinstance(a, Lanes))
        return known(*(first._as_lanes(a) if a is args[0] else a for a in args), **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(f"the CPU backend cannot compile Tensor.{name}")

    # ---------------------------------------------------------------- values

    @property
    def wide(self) -> bool:
        return isinstance(self.value.type, ir.VectorType)

    def _new(self, dtype: torch.dtype, value: Any) -> Lanes:
        return Lanes(self.trace, dtype, value)

    def _constant(self, x: float | bool, dtype: torch.dtype) -> Lanes:
        t = LLVM[dtype]
        if not dtype.is_floating_point:
            return self._new(dtype, ir.Constant(t, int(x)))
        rounded = float(torch.tensor(x, dtype=dtype))
        return self._new(dtype, ir.Constant(t, rounded))

    def _as_lanes(self, x: Any) -> Any:
        """A number or a one-element tensor beside ``self``, by torch's promotion of numbers."""
        if isinstance(x, Tensor):
            return self._constant(x.item(), x.dtype)
        if isinstance(x, bool | int | float):
            if isinstance(x, float) and not self.dtype.is_floating_point:
                return self._constant(x, torch.float32)
            return self._constant(x, torch.int64 if self.dtype == torch.bool else self.dtype)
        return x

    def _spread(self) -> Any:
        """The value as a vector of 32."""
        if self.wide:
            return self.value
        if isinstance(self.value, ir.Constant):
            return ir.Constant(
                ir.VectorType(self.value.type, BLOCK), [self.value.constant] * BLOCK
            )
        b = self.trace.builder
        t = ir.VectorType(self.value.type, BLOCK)
        one = b.insert_element(
            ir.Constant(t, ir.Undefined), self.value, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
        return b.shuffle_vector(one, ir.Constant(t, ir.Undefined), zeros)

    def _pair(self, other: Any) -> tuple[torch.dtype, Any, Any]:
        """Both operands in one dtype and one shape."""
        b = self._as_lanes(other)
        if not isinstance(b, Lanes):
            raise NotImplementedError(f"the CPU backend cannot compile an operand {other!r}")
        dtype = torch.promote_types(self.dtype, b.dtype)
        x, y = self.to(dtype), b.to(dtype)
        if x.wide or y.wide:
            return dtype, x._spread(), y._spread()
        return dtype, x.value, y.value

    def _arithmetic(self, other: Any, floating: str, integer: str) -> Lanes:
        dtype, x, y = self._pair(other)
        name = floating if dtype.is_floating_point else integer
        return self._new(dtype, getattr(self.trace.builder, name)(x, y))

    def _compare(self, other: Any, sign: str) -> Lanes:
        dtype, x, y = self._pair(other)
        b = self.trace.builder
        if dtype.is_floating_point:
            compare = b.fcmp_unordered if sign == "!=" else b.fcmp_ordered
        else:
            compare = b.icmp_unsigned if dtype in _UNSIGNED else b.icmp_signed
        return self._new(torch.bool, compare(sign, x, y))

    # ---------------------------------------------------------------- operators

    def __add__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "fadd", "add")

    def __sub__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "fsub", "sub")

    def __mul__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "fmul", "mul")

    def __radd__(self, other: Any) -> Lanes:
        return self._as_lanes(other) + self

    def __rsub__(self, other: Any) -> Lanes:
        return self._as_lanes(other) - self

    def __rmul__(self, other: Any) -> Lanes:
        return self._as_lanes(other) * self

    def __neg__(self) -> Lanes:
        b = self.trace.builder
        return self._new(self.dtype, b.fneg(self.value) if self._floating else b.neg(self.value))

    def __and__(self, other: Any) -> Lanes:
        dtype, x, y = self._pair(other)
        return self._new(dtype, self.trace.builder.and_(x, y))

    def __or__(self, other: Any) -> Lanes:
        dtype, x, y = self._pair(other)
        return self._new(dtype, self.trace.builder.or_(x, y))

    def __xor__(self, other: Any) -> Lanes:
        dtype, x, y = self._pair(other)
        return self._new(dtype, self.trace.builder.xor(x, y))

    def __invert__(self) -> Lanes:
        return self._new(self.dtype, self.trace.builder.not_(self.value))

    def __lshift__(self, other: Any) -> Lanes:
        dtype, x, y = self._pair(other)
        return self._new(dtype, self.trace.builder.shl(x, y))

    def __rshift__(self, other: Any) -> Lanes:
        dtype, x, y = self._pair(other)
        b = self.trace.builder
        return self._new(dtype, b.lshr(x, y) if dtype in _UNSIGNED else b.ashr(x, y))

    def __lt__(self, other: Any) -> Lanes:
        return self._compare(other, "<")

    def __le__(self, other: Any) -> Lanes:
        return self._compare(other, "<=")

    def __gt__(self, other: Any) -> Lanes:
        return self._compare(other, ">")

    def __ge__(self, other: Any) -> Lanes:
        return self._compare(other, ">=")

    def __eq__(self, other: Any) -> Lanes:  # type: ignore[override]
        return self._compare(other, "==")

    def __ne__(self, other: Any) -> Lanes:  # type: ignore[override]
        return self._compare(other, "!=")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise NotImplementedError("the CPU backend cannot compile a branch on a tensor's value")

    # ---------------------------------------------------------------- torch's functions, by name

    @property
    def _floating(self) -> bool:
        return self.dtype.is_floating_point

    def abs(self) -> Lanes:
        if not self._floating:
            return where(self < 0, -self, self)
        return self._new(self.dtype, self.trace.intrinsic("fabs", self.value.type, self.value))

    def sqrt(self) -> Lanes:
        return self._new(self.dtype, self.trace.intrinsic("sqrt", self.value.type, self.value))

    def floor(self) -> Lanes:
        return self._new(self.dtype, self.trace.intrinsic("floor", self.value.type, self.value))

    def isnan(self) -> Lanes:
        return self != self

    def isfinite(self) -> Lanes:
        return self.abs() < math.inf

    def div(self, other: Any, rounding_mode: str | None = None) -> Lanes:
        dtype, x, y = self._pair(other)
        b = self.trace.builder
        if dtype.is_floating_point and rounding_mode is None:
            return self._new(dtype, b.fdiv(x, y))
        if dtype.is_floating_point or rounding_mode != "floor" or dtype in _UNSIGNED:
            raise NotImplementedError(f"the CPU backend cannot compile div in {dtype}")
        quotient = self._new(dtype, b.sdiv(x, y))
        rest = self._new(dtype, b.srem(x, y))
        lower = (rest != 0) & ((rest ^ self._new(dtype, y)) < 0)
        return quotient - lower.to(dtype)

    def maximum(self, other: Any) -> Lanes:
        _, x, y = self._pair(other)
        a, b = self._new(self.dtype, x), self._new(self.dtype, y)
        larger = where(a > b, a, b)
        return where(a.isnan(), a, larger) if self._floating else larger

    def minimum(self, other: Any) -> Lanes:
        _, x, y = self._pair(other)
        a, b = self._new(self.dtype, x), self._new(self.dtype, y)
        smaller = where(a < b, a, b)
        return where(a.isnan(), a, smaller) if self._floating else smaller

    def clamp(self, min: float | None = None, max: float | None = None) -> Lanes:
        """NaN stays, as in torch."""
        x = self
        if min is not None:
            x = where(x < min, min, x)
        if max is not None:
            x = where(x > max, max, x)
        return x

    def ones_like(self) -> Lanes:
        return self._constant(1, self.dtype)

    def zeros_like(self) -> Lanes:
        return self._constant(0, self.dtype)

    def full_like(self, value: float) -> Lanes:
        return self._constant(value, self.dtype)

    def to(self, target: Any) -> Lanes:
        """Conversion as torch has it; a float beyond the integers' range is undefined in both."""
        if isinstance(target, torch.device) or target == self.dtype:
            return self
        if torch.bfloat16 in (target, self.dtype) or target == torch.bool:
            raise NotImplementedError(f"the CPU backend cannot compile {self.dtype} to {target}")
        b, source = self.trace.builder, self.dtype
        t: Any = LLVM[target]
        t = ir.VectorType(t, BLOCK) if self.wide else t
        if isinstance(self.value, ir.Constant) and not self.wide:
            return self._constant(self.value.constant, target)
        if source.is_floating_point and target.is_floating_point:
            convert = b.fpext if target.itemsize > source.itemsize else b.fptrunc
        elif source.is_floating_point:
            convert = b.fptosi
        elif target.is_floating_point:
            convert = b.uitofp if source in _UNSIGNED else b.sitofp
        elif source != torch.bool and target.itemsize == source.itemsize:
            return self._new(target, self.value)
        elif source != torch.bool and target.itemsize < source.itemsize:
            convert = b.trunc
        else:
            convert = b.zext if source in _UNSIGNED else b.sext
        return self._new(target, convert(self.value, t))

    def view(self, *shape: Any) -> Lanes:
        """Another dtype of the same size, or another shape: rows are not told apart here."""
        if not isinstance(shape[0], torch.dtype):
            return self
        t: Any = LLVM[shape[0]]
        t = ir.VectorType(t, BLOCK) if self.wide else t
        value = self.value if t == self.value.type else self.trace.builder.bitcast(self.value, t)
        return self._new(shape[0], value)

    def reshape(self, *shape: Any) -> Lanes:
        return self

    def contiguous(self) -> Lanes:
        return self

    def clone(self) -> Lanes:
        return self._new(self.dtype, self.value)

    def numel(self) -> Any:
        return _Numel()

    def amax(self, dim: int) -> Lanes:
        """The largest of a row."""
        if self.dtype != torch.int32 or dim != 1:
            raise NotImplementedError("the CPU backend compiles amax of int32 rows alone")
        largest = self.trace.intrinsic("vector.reduce.smax", ir.IntType(32), self._spread())
        return self._new(self.dtype, largest)

    def repeat_interleave(self, times: int) -> Lanes:
        """A row's number for each of its elements."""
        if self.wide or times != BLOCK:
            raise NotImplementedError("the CPU backend repeats one number per row alone")
        return self

    @staticmethod
    def broadcast_tensors(*tensors: Any) -> tuple[Any, ...]:
        first = next(x for x in tensors if isinstance(x, Lanes))
        return tuple(first._as_lanes(x) for x in tensors)

    @staticmethod
    def where(condition: Lanes, a: Any, b: Any) -> Lanes:
        return where(condition, a, b)

    # ---------------------------------------------------------------- torch_ops' own functions

    @staticmethod
    def _sqrt(x: Lanes) -> Lanes:
        """LLVM's root is correctly rounded: no detour over float64."""
        return x.sqrt()

    @staticmethod
    def _tree_sum(x: Lanes) -> Lanes:
        x.trace.summands.append(x)
        return x

    @staticmethod
    def _norm_of_sum(total: Lanes, numel: Any) -> Lanes:
        return _reduced(total, "norm_of_sum")

    @staticmethod
    def _mean_of_sum(total: Lanes, numel: Any) -> Lanes:
        return _reduced(total, "mean_of_sum")


def _reduced(total: Lanes, name: str) -> Lanes:
    trace = total.trace
    trace.reductions.append(name)
    if trace.reduced is None:
        return total._constant(0.0, torch.float32)
    return trace.reduced(len(trace.reductions) - 1)


def where(condition: Lanes, a: Any, b: Any) -> Lanes:
    """torch.where; two plain numbers are int64 or fp32, as in torch."""
    if not isinstance(a, Lanes) and not isinstance(b, Lanes):
        dtype = torch.where(torch.tensor(True), a, b).dtype
        a = condition._constant(a, dtype)
    if not isinstance(a, Lanes):
        a = b._as_lanes(a)
    dtype, x, y = a._pair(b)
    c = condition.value
    if condition.wide or isinstance(x.type, ir.VectorType):
        c = condition._spread()
        x, y = Lanes(a.trace, dtype, x)._spread(), Lanes(a.trace, dtype, y)._spread()
    return Lanes(a.trace, dtype, a.trace.builder.select(c, x, y))


class Stored(Lanes):
    """A row in memory: read when it is made, written by ``copy_``."""

    def __init__(self, trace: Trace, dtype: torch.dtype, pointer: Any, wide: bool = True) -> None:
        t = ir.VectorType(LLVM[dtype], BLOCK) if wide else LLVM[dtype]
        load = trace.builder.load(pointer, typ=t)
        load.align = dtype.itemsize
        super().__init__(trace, dtype, load)
        self.pointer = pointer

    def view(self, *shape: Any) -> Lanes:
        return self if not isinstance(shape[0], torch.dtype) else super().view(*shape)

    def copy_(self, x: Lanes) -> None:
        """Write the row; the elements must have the dtype they are stored in."""
        if x.dtype != self.dtype:
            raise NotImplementedError(f"the CPU backend cannot store {x.dtype} as {self.dtype}")
        if self.trace.storing:
            value = x._spread() if self.wide else x.value
            self.trace.builder.store(value, self.pointer, align=self.dtype.itemsize)


def random_bits(trace: Trace, index: Any, key0: Any, key1: Any) -> Lanes:
    """32 random bits per element of the row that starts at global element ``index`` (i64); the
    twin of ``torch_ops.random_bits``."""
    b = trace.builder
    i32 = ir.IntType(32)

    def row(value: Any) -> Lanes:
        return Lanes(trace, torch.int32, value)

    def shift_right(x: Lanes, n: int) -> Lanes:
        return row(b.lshr(x.value, row(ir.Constant(i32, n))._spread()))

    high = row(b.trunc(b.lshr(index, ir.Constant(index.type, 32)), i32))
    lane = row(ir.Constant(ir.VectorType(i32, BLOCK), list(range(BLOCK))))
    low = row(b.trunc(index, i32)) + lane
    x = low ^ (high * _signed(0x9E3779B9) ^ row(key0))
    x = x ^ shift_right(x, 16)
    x = x * 0x7FEB352D
    x = x ^ shift_right(x, 15)
    x = x * _signed(0x846CA68B) + (high * _signed(0x85EBCA6B) + row(key1))
    return x ^ shift_right(x, 16)


def _signed(x: int) -> int:
    return x - (x >> 31 << 32)
