"""A hybrid of matrices and others, and what tests of it compare."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lion import Lion
from torch import Tensor, nn

import signconv
from signconv.runtime.hybrid import Hybrid
from signconv.verification.bits import different


def params(dtype: torch.dtype = torch.float32) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices and others."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(7, 64), (48, 40)], [(33,), (), (64,)]
    a, b = ([nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in x] for x in shapes)
    return a, b


def give(of: Any, t: int) -> None:
    rng = torch.Generator().manual_seed(100 + t)
    for p in chain.from_iterable(of):
        p.grad = torch.randn(p.shape, generator=rng).to(p.dtype)


def everything(of: Any, *optimizers: Any) -> list[Tensor]:
    made = []
    for p in chain.from_iterable(of):
        made.append(p.detach().clone())
        entry: Any = next((o.state[p] for o in optimizers if p in o.state), {})
        made += [entry[k].clone() for k in sorted(entry)]
    return made


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(different(x, y) == 0 for x, y in zip(a, b, strict=True))


def parts(of: Any, backend: str = "reference", **options: Any) -> list[Any]:
    first = Lion(of[0], lr=1e-2, seed=3, backend=backend, **options)
    return [first, AdamWStoSign(of[1], lr=1e-2, seed=4, backend=backend, **options)]


def stepped(steps: int = 2, **options: Any) -> tuple[Any, Hybrid]:
    of = params()
    made = signconv.hybrid(*parts(of, **options))
    for t in range(steps):
        give(of, t)
        made.step()
    return of, made
