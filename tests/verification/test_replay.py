"""Signs of matrices that a kernel takes from the reference: each within its bound, or it shows."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import signconv
from signconv.runtime import msign
from signconv.verification.bits import different
from signconv.verification.matrix import Replay, replayed

SHAPES = ((8, 40), (8, 40), (33, 5), (70,))


def run(kernel: Callable[[Tensor], Tensor], moved: float = 0.0) -> tuple[Replay, int]:
    """Two steps of Muon in the reference and in the kernel, whose signs ``kernel`` changes and
    whose gradient is ``moved``; how many numbers of the parameters differ."""
    ends = []
    real = msign.matrix_sign
    with replayed() as replay:
        for backend in ("reference", "triton"):
            rng = torch.Generator().manual_seed(0)
            params = [torch.randn(s, generator=rng).requires_grad_() for s in SHAPES]
            optimizer = signconv.compile("muon")(params, lr=0.1, backend=backend)

            def other(x: Tensor, how: str, out: Tensor) -> None:
                real(x, how, out)
                out.copy_(kernel(out))

            with patch.object(msign, "matrix_sign", other if backend == "triton" else real):
                for _ in range(2):
                    for p in params:
                        p.grad = torch.randn(p.shape, generator=rng)
                    if backend == "triton":
                        params[0].grad[0, 0] += moved
                    optimizer.step()
            ends.append(params)
    return replay, sum(different(p.detach(), q.detach()) for p, q in zip(*ends))


def test_signs_within_their_bounds_are_the_references() -> None:
    replay, differ = run(lambda sign: sign * (1 + 2.0**-7))
    assert (replay.taken, replay.unknown, differ) == (8, 0, 0) and 0 < replay.worst < 1
    replay, differ = run(lambda sign: sign)
    assert (replay.worst, differ) == (0, 0)


@pytest.mark.parametrize("change", [lambda sign: 1.5 * sign, lambda sign: sign * torch.nan])
def test_signs_beyond_show(change: Callable[[Tensor], Tensor]) -> None:
    assert run(change)[0].worst > 1


def test_another_operand_shows() -> None:
    replay, differ = run(lambda sign: sign, moved=0.5)
    assert replay.unknown == 2 and differ > 0
