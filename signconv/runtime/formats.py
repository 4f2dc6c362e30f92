"""How a moment is stored: the names and numbers that kernel, reference and checkpoint share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Elements of one row that share a block scale (OCP MX block size).
BLOCK = 32


@dataclass(frozen=True)
class Format:
    """One way to store a moment.

    ``code`` selects it inside a kernel; ``dtype`` is the torch dtype of the stored tensor;
    ``scaled`` says that every 32 elements carry one power-of-two scale (E8M0, one byte).  Codes
    hold the root of the given ``order`` of the moment (1: the moment itself).
    """

    name: str
    code: int
    dtype: torch.dtype
    scaled: bool = False
    order: int = 1

    @property
    def codes(self) -> str:
        """The FP8 format of the codes."""
        return "e4m3" if self.order > 1 else self.name

    @property
    def bytes_per_element(self) -> float:
        """Bytes one element takes, its share of the block scale included."""
        return self.dtype.itemsize + (1 / BLOCK if self.scaled else 0)


#: A moment of order p > 2 is stored as its p-th root; inside a kernel its code is ROOT + p.
ROOT = 16
ROOT_ORDERS = range(3, 9)

FORMATS = {
    f.name: f
    for f in (
        Format("fp32", 0, torch.float32),
        Format("bf16", 1, torch.bfloat16),
        Format("e4m3", 2, torch.uint8, scaled=True),
        Format("e5m2", 3, torch.uint8, scaled=True),
        Format("e4m3-raw", 4, torch.uint8),
        *(Format(f"e4m3-root{p}", ROOT + p, torch.uint8, True, p) for p in ROOT_ORDERS),
    )
}

#: How a parameter is stored, as kernels know it: fp32, or bf16 rounded stochastically; bf16 beside
#: the other 16 bits of its fp32 master weight; bf16 beside the whole of it.
PLAIN, SPLIT, WHOLE = range(3)
#: Keys of ``state[p]``: rests of the bits or whole weights, and the checksums beside rests.
MASTER, CHECK = "master", "master_check"
