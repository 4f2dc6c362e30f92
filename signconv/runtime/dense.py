"""Parameters and gradients as contiguous memory for the time of one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from signconv.runtime import mesh


class Dense:
    """Contiguous parameters and gradients of ``members``: themselves, or copies of those that are
    strided, negated lazily, or zeros without memory; all of them on ``device`` where it is given.

    ``write_back`` puts stepped copies where they came from; nothing is held after that.
    copied: whether anything is a copy.
    """

    def __init__(self, members: Sequence[Tensor], device: torch.device | None = None) -> None:
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.copied = False
        self._copies: list[tuple[Tensor, Tensor]] = []
        for p in members:
            assert p.grad is not None
            flat = p.detach()
            if not as_it_lies(flat, device):
                flat = plain_copy(flat, device)
                self._copies.append((p.detach(), flat))
            self.params.append(flat)
            grad = p.grad.detach()
            if not as_it_lies(grad, device):
                grad, self.copied = plain_copy(grad, device), True
            self.grads.append(grad)
        self.copied = self.copied or bool(self._copies)

    def write_back(self) -> None:
        for p, flat in self._copies:
            p.copy_(flat)
        self.params, self.grads, self._copies = [], [], []


def as_it_lies(x: Tensor, device: torch.device | None = None) -> bool:
    """Whether the memory of ``x`` is its elements in order, on ``device``."""
    plain = x.is_contiguous() and not x.is_neg() and not x._is_zerotensor()
    return plain and device in (None, x.device)


def plain_copy(x: Tensor, device: torch.device | None = None) -> Tensor:
    """A contiguous copy on ``device``, its own one by default."""
    made = torch.empty(x.shape, dtype=x.dtype, device=device or x.device)
    return made.copy_(x)


def find_nonfinite(params: Sequence[Tensor], flag: Tensor) -> None:
    """Raise ``flag`` (0-dim fp32) if a gradient is not finite; of a DTensor's, this rank's part."""
    for p in params:
        if p.grad is not None:
            bad = ~mesh.local(p.grad).isfinite().all()
            flag.copy_(flag.maximum(bad.to(flag.dtype)))
