"""S3GD as its authors ship it, and why its rounding is not our default."""

from __future__ import annotations

import pytest
import torch
from signconv.generated.s3gd import S3GD
from signconv.generated.s3gd_fp8raw_mathbf16 import S3GDFP8RAWMathBF16

from signconv.runtime.reference import ops as ref


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("lr", [1e-2, 3e-3])
def test_the_published_rule_in_torch_bf16_bit_for_bit(lr: float, weight_decay: float) -> None:
    """x *= 1 - lr*wd; m = b*m + (1-b)*sign(g); x -= lr*m; store FP8(m), all in bf16.

    The rule of the S3GD post's public code (WhyPhyLabs/s3gd), written with torch's own bf16
    operations.
    """
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=rng).bfloat16()
    p = x.clone().requires_grad_()
    optimizer = S3GDFP8RAWMathBF16([p], lr=lr, weight_decay=weight_decay, backend="reference")
    bf16 = [torch.tensor(v, dtype=torch.bfloat16) for v in (0.9, lr, weight_decay)]
    b, step, decay = bf16
    m = torch.zeros_like(x).to(torch.float8_e4m3fn)
    for _ in range(60):
        g = torch.randn(64, 32, generator=rng).bfloat16()
        p.grad = g
        optimizer.step()
        x = x * (1 - step * decay)
        fresh = b * m.bfloat16() + (1 - b) * g.sign()
        x = x - step * fresh
        m = fresh.float().to(torch.float8_e4m3fn)
        assert torch.equal(p.detach(), x)
        assert torch.equal(optimizer.state[p]["m"], m.view(torch.uint8))


def limit(cls: type, steps: int = 200) -> float:
    """Mean of m after many gradients of one sign; exact arithmetic comes to 1."""
    p = torch.zeros(32, 32, requires_grad=True)
    optimizer = cls([p], lr=0.0, backend="reference")
    p.grad = torch.ones_like(p)
    for _ in range(steps):
        optimizer.step()
    entry, program = optimizer.state[p], cls.program  # type: ignore[attr-defined]
    fmt = program.moments[0].stored
    return float(ref.load_moment(entry["m"], entry.get("m_scale"), fmt).mean())


def test_nearest_rounding_stalls_the_ema_and_stochastic_rounding_does_not() -> None:
    """docs/design.md#nearest-rounding-stalls: E4M3, b = 0.9, from 0 towards 1: stuck at 0.75."""
    assert limit(S3GDFP8RAWMathBF16) == 0.75
    assert limit(S3GD) > 0.97
