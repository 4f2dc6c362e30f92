"""What must hold of a tensor before a kernel gets its address."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

try:  # one call in C++ for type, dtype, device, sizes, strides and every dispatch key of a list
    from torch._C._dynamo import guards

    TensorGuards: Any = guards.TensorGuards
except (ImportError, AttributeError):  # private to torch; test_doors_memory takes it away
    TensorGuards = None

_FACTS = attrgetter("dtype", "device", "shape", "layout", "requires_grad")
_keys = torch._C._dispatch_keys


class Watch:
    """Everything about some tensors but addresses and values, to compare with what is there now.

    Nothing is held: neither the tensors nor their memory.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._guards: Any = None
        self._known: list[Any] = []
        self._count = len(tensors)
        if TensorGuards is not None and tensors:
            self._guards = TensorGuards(
                *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
            )
        else:
            self._known = [*map(_facts, tensors)]

    def same(self, tensors: Sequence[Any]) -> bool:
        """Whether ``tensors`` are as those were, one by one; False also for anything else.

        A tensor that stands twice is not told apart from a change.
        """
        if len(tensors) != self._count:
            return False
        if self._guards is not None:
            try:
                return bool(self._guards.check(*tensors))
            except TypeError:  # no tensor
                return False
        return self._known == [*map(_facts, tensors)]


def _facts(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return None
    return type(x), _FACTS(x), x.stride(), _keys(x).raw_repr()


def notice(params: Sequence[Tensor], sharded: bool) -> None:
    """Tell autograd that ``params`` were written, whoever did it: a graph that still needs their
    old values raises then.  Of a DTensor its part counts for itself."""
    torch.autograd.graph.increment_version(params)
    if sharded:
        parts = [p.to_local() for p in params if hasattr(p, "to_local")]
        torch.autograd.graph.increment_version(parts)


def foreign(x: Tensor) -> bool:
    """Whether operations on ``x`` are not plain arithmetic on memory of its own: subclasses with
    ``__torch_dispatch__`` (quantized weights), tensors of functorch, nested ones, zeros that are
    nowhere, and tensors whose memory was freed or is smaller than they say."""
    keys = _keys(x)
    if keys.has(torch._C.DispatchKey.Python) or x.is_nested or x.layout != torch.strided:
        return True
    if x.is_meta or x.numel() == 0:
        return False
    try:
        if x.data_ptr() == 0:
            return True
        end = (x.storage_offset() + _last(x) + 1) * x.element_size()
        return end > x.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # no storage at all
        return True


def overlaps_itself(x: Tensor) -> bool:
    """Whether several elements may share one place, as after ``expand``."""
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def sharing(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Places of two tensors that share memory; None where there are none."""
    spans = []
    for i, x in enumerate(tensors):
        begin = x.data_ptr()
        end = begin + (_last(x) + 1) * x.element_size()
        spans.append((str(x.device), begin, end, i))
    spans.sort()
    reaching: list[tuple[str, int, int, int]] = []
    for span in spans:
        reaching = [r for r in reaching if r[0] == span[0] and r[2] > span[1]]
        for other in reaching:
            if _meet(tensors[other[3]], tensors[span[3]]):
                return other[3], span[3]
        reaching.append(span)
    return None


def _last(x: Tensor) -> int:
    """From the first element to the last, in elements."""
    return sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))


def _meet(a: Tensor, b: Tensor) -> bool:
    """Whether tensors whose spans overlap share a place: columns of one matrix do not."""
    if (a.is_contiguous() and b.is_contiguous()) or a.element_size() != b.element_size():
        return True
    return bool(torch.isin(_places(a), _places(b)).any())


def _places(x: Tensor) -> Tensor:
    """The address of every element."""
    places = torch.tensor([x.data_ptr()], dtype=torch.int64, device="cpu")
    for size, stride in zip(x.shape, x.stride(), strict=True):
        steps = torch.arange(size, dtype=torch.int64, device="cpu") * (stride * x.element_size())
        places = (places[:, None] + steps).view(-1)
    return places
