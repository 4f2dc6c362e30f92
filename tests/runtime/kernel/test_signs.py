"""Matrix signs between the launches of a bucket: odd shapes, stacks, parts of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import signconv
from signconv.dsl import Optimizer, ema, grad, hyper, mean, msign, norm, sqrt
from signconv.runtime import msign as signs
from signconv.runtime.kernel import stages
from signconv.runtime.kernel.stages import Stages

SHAPES = (
    (), (1,), (7,), (96,), (33, 65), (64, 40), (64, 40), (7, 1), (5, 7), (5, 7), (4, 3, 3, 3),
    (4, 64, 32), (3, 5, 7), (96, 128), (2, 3, 32, 64),
)  # fmt: skip


class Strided(Optimizer):
    """A sign beside rows and columns, all found in one stage."""

    lr = hyper(1e-2, ge=0)
    m = ema(grad, 0.9)
    column = ema(mean(grad**2, axis=-2), 0.9)
    row = ema(mean(grad**2, axis=-1), 0.9)
    update = msign(m) / sqrt(column + row + 1e-8)


class Stacked(Optimizer):
    """Signs of stacks, what is found of them, and a sign of another kind."""

    lr = hyper(1e-2, ge=0)
    m = ema(grad, 0.9)
    o = msign(m, axis=(-2, -1), coefficients="polar_express", steps=4)
    column = ema(mean(o**2, axis=-2), 0.9)
    update = o / sqrt(column + 1e-8) + 0.1 * msign(grad) * norm(grad)


def trained(cls: Any, backend: str, device: str) -> list[Tensor]:
    """Parameters and state after three steps, of which one leaves out half of the gradients."""
    rng = torch.Generator().manual_seed(3)
    params = [
        torch.nn.Parameter(
            torch.randn(s, generator=rng).to(device, (torch.float32, torch.bfloat16)[i % 3 == 2])
        )
        for i, s in enumerate(SHAPES)
    ]
    optimizer = cls(params, seed=1, backend=backend)
    for t in range(3):
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=rng).to(device, p.dtype)
            p.grad = None if t == 1 and i % 4 == 0 else g
        optimizer.step()
    state = [optimizer.state[p] for p in params]
    return [*params, *(x for entry in state for x in entry.values() if isinstance(x, Tensor))]


@pytest.mark.parametrize("spec", [Strided, Stacked])
def test_every_shape_has_the_references_bits(spec: type[Optimizer], device: str) -> None:
    cls = signconv.compile(spec)
    wanted = trained(cls, "reference", device)
    for backend in ("triton", "auto"):
        found = trained(cls, backend, device)
        assert len(found) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize("most", [1, 3000])
def test_parts_of_a_model_have_the_same_bits(
    most: int, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    if device == "cuda":
        pytest.skip("products of other batches may sum in another order on a GPU")
    cls = signconv.compile("muon")
    wanted = trained(cls, "triton", device)
    monkeypatch.setattr(stages, "TOGETHER", most)
    monkeypatch.setattr(signs, "TOGETHER", most)
    found = trained(cls, "triton", device)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_the_pass_of_signs_writes_their_operands_alone(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """What other passes find of the same stage has no room in it."""
    seen: list[bool] = []
    whole = Stages._launch_pass

    def watched(self: Stages, s: Any, wanted: Any, *rest: Any) -> list[Callable[..., None]]:
        first, *others = whole(self, s, wanted, *rest)
        if [s.results[i].kind for i in wanted] != ["msign"]:
            return [first, *others]

        def run(*tables: Tensor) -> None:
            self.scratch.fill_(7.25)
            first(*tables)
            seen.append(bool((self.scratch == 7.25).all()))

        return [run, *others]

    monkeypatch.setattr(Stages, "_launch_pass", watched)
    p = torch.nn.Parameter(torch.randn(64, 128, device=device))
    optimizer = signconv.compile(Strided)([p], backend="triton")
    p.grad = torch.randn(64, 128, device=device)
    optimizer.step()
    assert seen == [True]
