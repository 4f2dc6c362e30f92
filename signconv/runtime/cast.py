"""bf16 models: cast parameters, keep some of them in fp32."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable

import torch
from torch import nn

from signconv.runtime.errors import coded

#: Modules whose parameters stay as they are: their running statistics are fp32 buffers.
_STATISTICS = (nn.modules.batchnorm._BatchNorm,)


def cast(
    model: nn.Module,
    dtype: torch.dtype = torch.bfloat16,
    keep: Iterable[str] | Callable[[str, nn.Parameter], bool] = (),
) -> nn.Module:
    """Cast the floating parameters of ``model`` to ``dtype``, in place, and return it.

    ``keep`` says what stays as it is: name patterns (``"*norm*"``, ``"lm_head.weight"``), or a
    function of name and parameter.  Parameters of batch norms stay too.  Buffers are not touched
    (``model.to(dtype)`` rounds rotary frequencies and running statistics).  Parameters remain the
    same objects, so tied ones stay tied and an optimizer that holds them goes on.  A tied
    parameter is kept if any of its names is.  Layers that do not take mixed dtypes need
    ``torch.autocast``.

    Raises TypeError if ``dtype`` is not fp32 or bf16, ValueError for a pattern that fits no name.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise coded(TypeError, "SC421", f"cast takes torch.bfloat16 or torch.float32, not {dtype}")
    named = list(model.named_parameters(remove_duplicate=False))
    if callable(keep):
        kept = {p for name, p in named if keep(name, p)}
    else:
        kept = set()
        for pattern in [keep] if isinstance(keep, str) else keep:
            found = {p for name, p in named if fnmatch.fnmatchcase(name, pattern)}
            if not found:
                some = ", ".join(name for name, _ in named[:5])
                raise coded(
                    ValueError,
                    "SC422",
                    f"keep={pattern!r} fits none of the model's {len(named)} parameter names "
                    f"({some}, …): use a pattern such as '*norm*'",
                )
            kept |= found
    for module in model.modules():
        if isinstance(module, _STATISTICS):
            kept |= set(module.parameters(recurse=False))
    for _, p in named:
        if p in kept or not p.is_floating_point() or p.dtype == dtype:
            continue
        grad, p.grad = p.grad, None
        p.data = p.data.to(dtype)
        p.grad = None if grad is None else grad.to(dtype)
    return model
