"""What every optimizer refuses, with a way out; ``name`` is what its class is called."""

from __future__ import annotations

import torch
from torch import Tensor

from signconv.runtime import sharded
from signconv.runtime.backend import NAMES
from signconv.runtime.errors import coded


def backend(name: object) -> None:
    """Raise ValueError for a backend that there is not."""
    if name not in NAMES:
        raise coded(ValueError, "SC401", f"backend={name!r} is not one of {', '.join(NAMES)}")


def param(p: object, name: str) -> None:
    """Raise TypeError for a parameter that no optimizer here can step."""
    if not isinstance(p, Tensor):
        raise coded(
            TypeError, "SC436", f"{name}: {p!r} in a param group is no parameter: put tensors there"
        )
    if p.is_complex():
        raise coded(
            TypeError,
            "SC411",
            f"{name} does not support complex parameters: optimize "
            "torch.view_as_real(parameter) instead",
        )
    if p.dtype not in (torch.float32, torch.bfloat16):
        raise coded(
            TypeError,
            "SC412",
            f"{name} supports fp32 and bf16 parameters, not {p.dtype}: convert the model with "
            ".float() or .bfloat16(), or freeze the parameter with requires_grad_(False)",
        )
    if p.layout != torch.strided:
        raise coded(
            TypeError, "SC413", f"{name} does not support {p.layout} parameters: use dense ones"
        )
    if sharded.is_sharded(p):
        sharded.check(p, name)


def grad(p: Tensor, g: Tensor, name: str) -> None:
    """Raise RuntimeError for a gradient that does not fit its parameter."""
    if g.is_sparse or g.layout != torch.strided:
        raise coded(
            RuntimeError,
            "SC414",
            f"{name} does not support sparse gradients: build the embedding with sparse=False, "
            "or give its parameters to torch.optim.SparseAdam",
        )
    if g.device != p.device:
        raise coded(
            RuntimeError,
            "SC415",
            f"{name}: a parameter on {p.device} has its gradient on {g.device}: move the model "
            "to one device before the optimizer is built",
        )
    if g.dtype not in (torch.float32, torch.bfloat16):
        raise coded(RuntimeError, "SC416", f"{name} needs fp32 or bf16 gradients, not {g.dtype}")
    sharded.check_grad(p, g, name)
