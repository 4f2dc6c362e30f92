"""Parameters, master weights and moments as they lie in memory, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from signconv.runtime.formats import BLOCK, CHECK, MASTER, Format
from signconv.runtime.reference import codecs
from signconv.runtime.reference.bits import shift_right


def split_master(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bf16 (as fp32), ties away from zero, and the signed 16-bit rest of the bits.

    Ties to even would leave 65,537 fp32 numbers to every even bf16, one too many.  NaN becomes
    the one NaN 0x7FC00000, whose rest is 0.
    """
    bits = torch.where(x.isnan(), 0x7FC00000, x.view(torch.int32))
    return ((bits + 0x8000) & -0x10000).view(torch.float32), bits.to(torch.int16)


def join_master(high: Tensor, low: Tensor) -> Tensor:
    """The fp32 number split_master took apart; a pair it never makes that spells NaN is ``high``.

    Such a pair is a weight set to 0 from outside beside a negative rest.
    """
    x = (high.view(torch.int32) + low.to(torch.int32)).view(torch.float32)
    return torch.where(x.isnan(), high, x)


def row_check(x: Tensor) -> Tensor:
    """int32 [numel/32]: a checksum of each row of 32 bf16 numbers (as fp32).

    Any one changed element changes it for certain (every operation is a bijection of its bits).
    """
    lane = torch.arange(BLOCK, dtype=torch.int32, device=x.device) << 16
    mixed = (shift_right(x.view(torch.int32), 16).view(-1, BLOCK) | lane) * 0x7FEB352D
    mixed = mixed ^ shift_right(mixed, 15)
    return mixed.sum(dim=1, dtype=torch.int64).to(torch.int32)


def load_float(x: Tensor) -> Tensor:
    """A parameter or a gradient as flat fp32, never a view: the step writes in place."""
    return codecs.decode_bf16(x.view(-1)) if x.dtype == torch.bfloat16 else x.view(-1).clone()


def store_float(target: Tensor, x: Tensor, field: Tensor) -> None:
    """From fp32: as it is, or rounded stochastically to bf16."""
    target.view(-1).copy_(codecs.encode_bf16(x, field) if target.dtype == torch.bfloat16 else x)


def load_param(param: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """A parameter as flat fp32, with a master weight that one.

    The master weight in ``state`` is the rests of the bits, two bytes each, beside checksums, or
    whole fp32 weights without.  Where a bf16 weight is not the one that was stored, it was changed
    from outside and counts as it is: each element for itself, or its row of 32 where there are
    checks.
    """
    p = load_float(param)
    master, check = state.get(MASTER), state.get(CHECK)
    if master is None:
        return p
    if check is None:
        whole = master.view(-1)
        high, _ = split_master(whole)
        return torch.where(high.view(torch.int32) == p.view(torch.int32), whole, p)
    same = (row_check(p) == check.view(-1)).repeat_interleave(BLOCK)
    return torch.where(same, join_master(p, master.view(torch.int16).view(-1)), p)


def store_param(param: Tensor, x: Tensor, field: Tensor, state: Mapping[str, Tensor]) -> None:
    """A parameter from flat fp32, with a master weight that one too."""
    master, check = state.get(MASTER), state.get(CHECK)
    if master is None:
        store_float(param, x, field)
        return
    high, low = split_master(x)
    param.view(-1).copy_((high.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16))
    if check is None:
        master.view(-1).copy_(x)
    else:
        master.view(torch.int16).view(-1).copy_(low)
        check.view(-1).copy_(row_check(high))


def load_moment(
    stored: Tensor, scale: Tensor | None, fmt: Format, numel: int | None = None
) -> Tensor:
    """A stored moment as flat fp32, never a view: the step writes in place.

    numel: how many elements, where rows may end in a partial block.
    """
    if scale is None or numel is None:
        return fmt.decode(stored, scale)
    return codecs.trimmed(fmt.decode(_whole_blocks(stored, scale, fmt), scale), scale, numel)


def load_apart(stored: Tensor, scale: Tensor, fmt: Format, numel: int) -> tuple[Tensor, Tensor]:
    """What ``load_moment`` multiplies, flat fp32 each: the codes, and each one's block scale."""
    code = fmt.codec.codes(_whole_blocks(stored, scale, fmt))
    factor = codecs.scales_of(scale.view(-1))
    return codecs.trimmed(code, scale, numel), codecs.trimmed(factor, scale, numel)


def _whole_blocks(stored: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    return codecs.padded(stored.view(-1), scale, BLOCK // 2 if fmt.packed else BLOCK)


def store_moment(
    stored: Tensor, scale: Tensor | None, x: Tensor, field: Tensor, fmt: Format
) -> None:
    """Encode flat fp32 and store; the scale used to encode is the one that is stored."""
    if scale is None:
        stored.view(-1).copy_(fmt.encode(x, field)[0])
        return
    code, byte = fmt.encode(codecs.padded(x, scale), codecs.padded(field, scale))
    assert byte is not None
    stored.view(-1).copy_(codecs.trimmed(code, scale, stored.numel()))
    scale.view(-1).copy_(byte)
