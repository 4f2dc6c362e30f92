"""Exact fp32 master weights of bf16 parameters (``master="split"``).

A fp32 number is its nearest bf16, ties away from zero, and the low 16 bits of its pattern, read
as a signed number: the parameter holds the first, the state the second.  Beside them every row of
32 has a checksum of its bf16 weights, by which the next step sees that one was changed from
outside; it then takes the row as it finds it, without rests.  Where blocks of 32 would straddle
rows the state holds the fp32 number whole, and a change is seen per element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import sharded
from signconv.runtime.errors import coded
from signconv.runtime.formats import CHECK, MASTER, PLAIN, SPLIT, WHOLE
from signconv.runtime.program import block_shape, whole_blocks
from signconv.runtime.reference import ops as ref


def check(value: object) -> None:
    """Raise ValueError unless ``value`` is a legal ``master`` argument."""
    if value not in (None, "split"):
        raise coded(
            ValueError,
            "SC408",
            f"master={value!r} is not one of None, 'split': None rounds bf16 parameters "
            "stochastically, 'split' keeps their exact fp32 values",
        )


def param_format(entry: Mapping[str, Tensor]) -> int:
    """How the parameter with this state is stored: PLAIN, SPLIT or WHOLE."""
    if MASTER not in entry:
        return PLAIN
    return SPLIT if CHECK in entry else WHOLE


def layout(p: Tensor, master: str | None) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and dtypes of a parameter's state for its master weight; all start as zeros.

    Two bytes instead of an int16, which gloo's collectives refuse.  Zeros are no checksums, or
    else stand for rests of 0: either way the first step starts from the bf16 weight.
    """
    if master is None or p.dtype != torch.bfloat16:
        return {}
    if not whole_blocks(p):
        return {MASTER: (p.shape, torch.float32)}
    return {
        MASTER: (torch.Size([*p.shape, 2]), torch.uint8),
        CHECK: (block_shape(p), torch.int32),
    }


def read(p: Tensor, entry: Mapping[str, Tensor]) -> Tensor:
    """A new fp32 tensor with the exact weights: the master's, or the parameter's own."""
    values, plain = sharded.readable(p, entry)
    exact = ref.load_param(values.contiguous(), plain).view(values.shape)
    return sharded.place_part(exact, p, p.shape)


def write(p: Tensor, entry: Mapping[str, Tensor], value: Tensor) -> None:
    """Set a parameter and its master weight to fp32 values of the same shape."""
    x = value.detach().to(p.device, torch.float32)
    x = sharded.readable(sharded.place(x, p, p.device), {})[0].contiguous().view(-1)
    values, plain = sharded.readable(p, entry)
    flat = values.contiguous()
    ref.store_param(flat, x, x, plain)
    sharded.write_back(p, entry, flat, plain)


def parameters(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters, a tied one under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)


def export(model: torch.nn.Module, state: Mapping[Any, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The model's state dict with every floating parameter as fp32, exact where it has a master."""
    made = {k: v.detach().clone() for k, v in model.state_dict().items()}
    for name, p in parameters(model):
        if name in made and p.is_floating_point():
            made[name] = read(p, state.get(p, {})) if p.dtype == torch.bfloat16 else p.float()
    return made
