"""Peak memory of a training step with and without gradient release (run with -s to see it)."""

from __future__ import annotations

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import nn

import signconv

pytestmark = pytest.mark.gpu
LAYERS, WIDTH = 24, 2048


def peak(release: bool, master: str | None) -> tuple[int, int]:
    """Bytes at the peak of the third step above the model's, and bytes of all gradients."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    model = nn.Sequential(*layers).to("cuda", torch.bfloat16)
    optimizer = AdamWStoSign(model.parameters(), master=master)
    if release:
        signconv.gradient_release(optimizer)
    x = torch.randn(16, WIDTH, device="cuda", dtype=torch.bfloat16)
    for t in range(3):
        if t == 2:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        model(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("master", [None, "split"])
def test_gradient_release_saves_all_but_a_few_gradients(master: str | None) -> None:
    ordinary, gradients = peak(False, master)
    released, _ = peak(True, master)
    print(
        f"\n{torch.cuda.get_device_name()}, {LAYERS} layers of {WIDTH}x{WIDTH} in bf16, master="
        f"{master}: peak above the model {ordinary / 2**20:.1f} MiB with ordinary steps, "
        f"{released / 2**20:.1f} MiB with gradient release; all gradients are "
        f"{gradients / 2**20:.1f} MiB"
    )
    assert ordinary - released > 0.8 * gradients
