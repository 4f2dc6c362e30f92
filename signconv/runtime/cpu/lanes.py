"""A row of 32 elements under compilation: the reference's PyTorch calls, as LLVM instructions.

The CPU backend does not have functions of its own for formats and arithmetic.  It calls the
generated module's reference function once with ``Lanes`` in the place of tensors: each torch
operation then writes the one LLVM instruction that computes it, on vectors of 32 elements.  So
a codec or an operation is written once, in ``reference.ops``, and means the same here.  An
operation that has no instruction yet raises NotImplementedError and names itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from llvmlite import ir
from torch import Tensor

from signconv.runtime.formats import BLOCK
from signconv.runtime.reference import ops

if TYPE_CHECKING:
    from signconv.runtime.cpu.trace import Trace

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


class _Numel:
    """The number of elements, which only the tensor at run time has: arithmetic on it fails."""


class Lanes:
    """32 elements of a tensor, or one number for all of them, while the reference is compiled.

    ``make`` writes the instructions of one part and returns its value; it is called with the
    part's number and the values of ``sources``.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        trace: Trace,
        dtype: torch.dtype,
        wide: bool,
        make: Callable[..., Any],
        *sources: Lanes,
        stage: int | None = None,
        number: float | None = None,
    ) -> None:
        self.trace, self.dtype, self.wide, self.make = trace, dtype, wide, make
        self.sources, self.number = sources, number
        self.stage: int = max((s.stage for s in sources), default=0) if stage is None else stage
        self._values: dict[int, Any] = {}
        trace.nodes.append(self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = getattr(ops, func.__name__, None) is func
        name = f"_{func.__name__}" if own else _OPERATORS.get(func.__name__, func.__name__)
        known = next((c.__dict__[name] for c in cls.__mro__ if name in c.__dict__), None)
        if known is None:
            raise NotImplementedError(f"the CPU backend cannot compile {func.__name__}()")
        if isinstance(known, staticmethod):
            return known(*args, **(kwargs or {}))
        first = next(a for a in args if isinstance(a, Lanes))
        return known(first._as_lanes(args[0]), *args[1:], **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(f"the CPU backend cannot compile Tensor.{name}")

    # ---------------------------------------------------------------- values

    def at(self, part: int, wide: bool = True) -> Any:
        """The LLVM value of a part; of a number, spread over a part if ``wide``."""
        key = part if self.wide else 0
        if key not in self._values:
            values = [s.at(part, self.wide) for s in self.sources]
            self._values[key] = self.make(part, *values)
        value = self._values[key]
        if self.wide or not wide:
            return value
        if -1 not in self._values:
            self._values[-1] = spread(self.trace.builder, value, self.trace.width)
        return self._values[-1]

    def _new(self, dtype: torch.dtype, make: Callable[..., Any], *sources: Lanes) -> Lanes:
        """A node from LLVM values of its sources, spread if any source is wide."""
        wide = any(s.wide for s in sources)
        return Lanes(self.trace, dtype, wide, lambda _, *values: make(*values), *sources)

    def _type(self, dtype: torch.dtype) -> Any:
        return ir.VectorType(LLVM[dtype], self.trace.width) if self.wide else LLVM[dtype]

    def _as_lanes(self, x: Any) -> Any:
        """A number or a one-element tensor beside ``self``, by torch's promotion of numbers."""
        if isinstance(x, Lanes):
            return x
        if isinstance(x, Tensor):
            return self.trace.constant(x.item(), x.dtype)
        if isinstance(x, bool | int | float):
            dtype = torch.int64 if self.dtype == torch.bool else self.dtype
            whole = not dtype.is_floating_point
            return self.trace.constant(
                x, torch.float32 if isinstance(x, float) and whole else dtype
            )
        raise NotImplementedError(f"the CPU backend cannot compile an operand {x!r}")

    def _pair(self, other: Any) -> tuple[torch.dtype, Lanes, Lanes]:
        """Both operands in one dtype."""
        b = self._as_lanes(other)
        dtype = torch.promote_types(self.dtype, b.dtype)
        return dtype, self.to(dtype), b.to(dtype)

    def _arithmetic(self, other: Any, floating: str, integer: str) -> Lanes:
        dtype, x, y = self._pair(other)
        name = floating if dtype.is_floating_point else integer
        return self._new(dtype, getattr(self.trace.builder, name), x, y)

    def _bitwise(self, other: Any, name: str) -> Lanes:
        dtype, x, y = self._pair(other)
        return self._new(dtype, getattr(self.trace.builder, name), x, y)

    def _compare(self, other: Any, sign: str) -> Lanes:
        dtype, x, y = self._pair(other)
        b = self.trace.builder
        if dtype.is_floating_point:
            compare = b.fcmp_unordered if sign == "!=" else b.fcmp_ordered
        else:
            compare = b.icmp_unsigned if dtype in _UNSIGNED else b.icmp_signed
        return self._new(torch.bool, lambda u, v: compare(sign, u, v), x, y)

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
        return self._new(self.dtype, b.fneg if self.dtype.is_floating_point else b.neg, self)

    def __and__(self, other: Any) -> Lanes:
        return self._bitwise(other, "and_")

    def __or__(self, other: Any) -> Lanes:
        return self._bitwise(other, "or_")

    def __xor__(self, other: Any) -> Lanes:
        return self._bitwise(other, "xor")

    def __invert__(self) -> Lanes:
        return self._new(self.dtype, self.trace.builder.not_, self)

    def __lshift__(self, other: Any) -> Lanes:
        return self._bitwise(other, "shl")

    def __rshift__(self, other: Any) -> Lanes:
        return self._bitwise(other, "lshr" if self.dtype in _UNSIGNED else "ashr")

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

    def _call(self, name: str) -> Lanes:
        return self._new(self.dtype, lambda x: self.trace.intrinsic(name, x.type, x), self)

    def abs(self) -> Lanes:
        return self._call("fabs") if self.dtype.is_floating_point else where(self < 0, -self, self)

    def sqrt(self) -> Lanes:
        return self._call("sqrt")

    def floor(self) -> Lanes:
        return self._call("floor")

    def isnan(self) -> Lanes:
        return self != self

    def isfinite(self) -> Lanes:
        return self.abs() < math.inf

    def div(self, other: Any, rounding_mode: str | None = None) -> Lanes:
        dtype, x, y = self._pair(other)
        b = self.trace.builder
        if dtype.is_floating_point and rounding_mode is None:
            return self._new(dtype, b.fdiv, x, y)
        if dtype.is_floating_point or rounding_mode != "floor" or dtype in _UNSIGNED:
            raise NotImplementedError(f"the CPU backend cannot compile div in {dtype}")
        quotient, rest = self._new(dtype, b.sdiv, x, y), self._new(dtype, b.srem, x, y)
        lower = (rest != 0) & ((rest ^ y) < 0)
        return quotient - lower.to(dtype)

    def maximum(self, other: Any) -> Lanes:
        """The larger, NaN if either is."""
        dtype, a, b = self._pair(other)
        larger = where(a > b, a, b)
        return where(a.isnan(), a, larger) if dtype.is_floating_point else larger

    def minimum(self, other: Any) -> Lanes:
        """The smaller, NaN if either is."""
        dtype, a, b = self._pair(other)
        smaller = where(a < b, a, b)
        return where(a.isnan(), a, smaller) if dtype.is_floating_point else smaller

    def clamp(self, min: float | None = None, max: float | None = None) -> Lanes:
        """NaN stays, as in torch."""
        x = self
        if min is not None:
            x = where(x < min, min, x)
        if max is not None:
            x = where(x > max, max, x)
        return x

    def ones_like(self) -> Lanes:
        return self.trace.constant(1, self.dtype)

    def zeros_like(self) -> Lanes:
        return self.trace.constant(0, self.dtype)

    def full_like(self, value: float) -> Lanes:
        return self.trace.constant(value, self.dtype)

    def to(self, target: Any) -> Lanes:
        """Conversion as torch has it; a float beyond the integers' range is undefined in both."""
        source = self.dtype
        if isinstance(target, torch.device) or target == source:
            return self
        if self.number is not None:
            return self.trace.constant(self.number, target)
        if torch.bfloat16 in (target, source) or target == torch.bool:
            raise NotImplementedError(f"the CPU backend cannot compile {source} to {target}")
        b, t = self.trace.builder, self._type(target)
        narrow = source != torch.bool and target.itemsize < source.itemsize
        if source.is_floating_point and target.is_floating_point:
            convert = b.fptrunc if narrow else b.fpext
        elif source.is_floating_point:
            convert = b.fptosi
        elif target.is_floating_point:
            convert = b.uitofp if source in _UNSIGNED else b.sitofp
        elif source != torch.bool and target.itemsize == source.itemsize:
            return self._new(target, lambda x: x, self)
        else:
            convert = b.trunc if narrow else b.zext if source in _UNSIGNED else b.sext
        return self._new(target, lambda x: convert(x, t), self)

    def view(self, *shape: Any) -> Lanes:
        """Another dtype of the same size, or another shape: rows are not told apart here."""
        if not isinstance(shape[0], torch.dtype):
            return self
        t, b = self._type(shape[0]), self.trace.builder
        return self._new(shape[0], lambda x: x if x.type == t else b.bitcast(x, t), self)

    def reshape(self, *shape: Any) -> Lanes:
        return self

    def contiguous(self) -> Lanes:
        return self

    def clone(self) -> Lanes:
        return self._new(self.dtype, lambda x: x, self)

    def numel(self) -> Any:
        return _Numel()

    def amax(self, dim: int) -> Lanes:
        """The largest of a row."""
        if self.dtype != torch.int32 or dim != 1 or not self.wide:
            raise NotImplementedError("the CPU backend compiles amax of int32 rows alone")
        trace, b = self.trace, self.trace.builder

        def largest(_: int) -> Any:
            best, *others = (self.at(part) for part in trace.parts)
            for x in others:
                best = b.select(b.icmp_signed(">", x, best), x, best)
            return trace.intrinsic("vector.reduce.smax", LLVM[torch.int32], best)

        return Lanes(trace, self.dtype, False, largest, stage=self.stage + 1)

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
    def _either(condition: Lanes, a: float, b: float) -> Lanes:
        return where(condition, condition.trace.constant(a, torch.float32), b)

    @staticmethod
    def _fma(a: Any, b: Any, c: Any) -> Lanes:
        """One instruction where the CPU has it, else the C library's function."""
        first = next(x for x in (a, b, c) if isinstance(x, Lanes))
        operands = [first._as_lanes(x) for x in (a, b, c)]

        def made(x: Any, y: Any, z: Any) -> Any:
            return first.trace.intrinsic("fma", x.type, x, y, z)

        return first._new(torch.float32, made, *operands)

    @staticmethod
    def _sqrt(x: Lanes) -> Lanes:
        """LLVM's root is correctly rounded: no detour over float64."""
        return x.sqrt()

    @staticmethod
    def _unpack(x: Lanes) -> Lanes:
        """Both halves of each byte, beside each other."""
        trace, b, n = x.trace, x.trace.builder, x.trace.width
        wide = ir.VectorType(LLVM[torch.int32], n)

        def halves(part: int, packed: Any) -> Any:
            none = ir.Constant(packed.type, ir.Undefined)
            twice = ir.Constant(wide, [i // 2 for i in range(n)])
            bytes_ = b.zext(b.shuffle_vector(packed, none, twice), wide)
            return b.and_(
                b.lshr(bytes_, ir.Constant(wide, [0, 4] * (n // 2))), ir.Constant(wide, [15] * n)
            )

        return Lanes(trace, torch.int32, True, halves, x)

    @staticmethod
    def _pack(x: Lanes) -> Lanes:
        """A byte of each two neighbours: half as many numbers in a part."""
        trace, b, n = x.trace, x.trace.builder, x.trace.width
        half = ir.VectorType(LLVM[torch.int32], n // 2)

        def both(part: int, code: Any) -> Any:
            none = ir.Constant(code.type, ir.Undefined)
            even, odd = (
                b.shuffle_vector(code, none, ir.Constant(half, [*range(first, n, 2)]))
                for first in (0, 1)
            )
            joined = b.or_(even, b.shl(odd, ir.Constant(half, [4] * (n // 2))))
            return b.trunc(joined, ir.VectorType(LLVM[torch.uint8], n // 2))

        return Lanes(trace, torch.uint8, True, both, x)

    @staticmethod
    def _padded(x: Lanes, scale: Any, block: int = BLOCK) -> Lanes:
        """Zero behind a row's last element, for numbers that a scale or a sum is taken of."""
        trace = x.trace
        if not trace.inside or x.dtype != torch.float32:
            return x
        zeros = ir.Constant(ir.VectorType(LLVM[torch.float32], trace.width), [0.0] * trace.width)

        def kept(part: int, value: Any) -> Any:
            return trace.builder.select(trace.inside[1][part], value, zeros)

        return Lanes(trace, x.dtype, True, kept, x)

    @staticmethod
    def _trimmed(x: Lanes, scale: Any, numel: Any) -> Lanes:
        return x

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

    @staticmethod
    def _sum_of_sum(total: Lanes, numel: Any) -> Lanes:
        return _reduced(total, "sum_of_sum")


def _reduced(total: Lanes, name: str) -> Lanes:
    trace = total.trace
    trace.reductions.append(name)
    if trace.reduced is None:
        return trace.constant(0.0, torch.float32)
    return trace.reduced(len(trace.reductions) - 1)


def where(condition: Lanes, a: Any, b: Any) -> Lanes:
    """torch.where; two plain numbers are int64 or fp32, as in torch by default."""
    if not isinstance(a, Lanes) and not isinstance(b, Lanes):
        whole = isinstance(a, int) and isinstance(b, int)
        a = condition.trace.constant(a, torch.int64 if whole else torch.float32)
    if not isinstance(a, Lanes):
        a = b._as_lanes(a)
    dtype, x, y = a._pair(b)
    return a._new(dtype, a.trace.builder.select, condition, x, y)


def spread(b: Any, value: Any, width: int) -> Any:
    """A number as a vector."""
    t = ir.VectorType(value.type, width)
    if isinstance(value, ir.Constant):
        return ir.Constant(t, [value.constant] * width)
    i32, none = LLVM[torch.int32], ir.Constant(t, ir.Undefined)
    one = b.insert_element(none, value, ir.Constant(i32, 0))
    return b.shuffle_vector(one, none, ir.Constant(ir.VectorType(i32, width), [0] * width))
