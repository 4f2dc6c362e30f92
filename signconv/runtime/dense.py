"""Parameters and gradients as contiguous memory for the time of one step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from signconv.runtime import sharded


class Dense:
    """Contiguous parameters and gradients of ``members``: themselves, or copies of strided ones.

    ``write_back`` puts stepped copies where they came from; nothing is held after that.
    """

    def __init__(self, members: Sequence[Tensor]) -> None:
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        for p in members:
            assert p.grad is not None
            flat = p.detach()
            if not p.is_contiguous():
                flat = flat.contiguous()
                self._copies.append((p.detach(), flat))
            self.params.append(flat)
            self.grads.append(p.grad.detach().contiguous())

    def write_back(self) -> None:
        for p, flat in self._copies:
            p.copy_(flat)
        self.params, self.grads, self._copies = [], [], []


def find_nonfinite(params: Sequence[Tensor], flag: Tensor) -> None:
    """Raise ``flag`` (0-dim fp32) if a gradient is not finite; of a DTensor's, this rank's part."""
    for p in params:
        if p.grad is not None:
            bad = ~sharded.local(p.grad).isfinite().all()
            flag.copy_(flag.maximum(bad.to(flag.dtype)))
