"""Operations on the bits of tensors that torch itself does not have."""

from __future__ import annotations

from torch import Tensor

#: All ones.
MASK = 0xFFFFFFFF


def shift_right(x: Tensor, n: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (x >> n) & (MASK >> n)
