"""What is measured of an optimizer during a run: zeros, updates, sizes of moments, noise.

Per layer only where a run asks for it (``Run.detail``), so that records stay small.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from optimizers import moments
from torch import Tensor

from signconv.runtime.exchange import decoded
from signconv.runtime.reference.ops import unpack

HISTOGRAM = range(-36, 5, 2)  # powers of two between the bins of abs(m)
#: Moments whose quotient is the mean of a stochastic sign; of v the root, and without m (RMSprop)
#: the gradient above it.
SIGNED = ({"m", "G"}, {"m", "u"}, {"m", "v"}, {"v"})


@torch.no_grad()
def zero_shares(optimizer: torch.optim.Optimizer, embedding: Tensor) -> dict[str, list[float]]:
    """Share of stored zeros of each moment: in all weights, and in the token embedding."""
    made = {}
    program = getattr(optimizer, "program", None)
    formats = {m.name: m.stored for m in program.moments} if program else {}
    for name in moments(optimizer):
        zeros, count, first = torch.zeros((), device=embedding.device), 0, math.nan
        for p, state in optimizer.state.items():
            value = state[name]
            none = value == 0
            if value.dtype == torch.uint8 and formats[name].packed:
                value = unpack(value)
                none = value == 0
            elif value.dtype == torch.uint8:  # a zero with a sign is one, of codes that have signs
                layout = formats[name].float8
                none = (value & (layout.magnitude if layout else 0xFF)) == 0
            zeros, count = zeros + none.sum(), count + value.numel()
            if p is embedding:
                first = float(none.float().mean())
        made[name] = [round(float(zeros) / count, 5), round(first, 5)]
    return made


@torch.no_grad()
def update_rms(
    optimizer: torch.optim.Optimizer, weights: list[Tensor], before: list[Tensor]
) -> float | None:
    """Root mean square of what lr multiplied in the last step, weight decay taken out."""
    decay = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    total, count = 0.0, 0
    for w, old in zip(weights, before):
        lr, wd = float(decay[w][0]), decay[w][1]
        total += float((((1 - lr * wd) * old - w.detach()) / lr).double().square().sum())
        count += w.numel()
    return float(f"{math.sqrt(total / count):.5g}") if math.isfinite(total) else None


# ---------------------------------------------------------------- what a detailed run keeps


def values(optimizer: torch.optim.Optimizer, p: Tensor) -> Mapping[str, Tensor]:
    """A parameter's moments as fp32 numbers."""
    program = getattr(optimizer, "program", None)
    if program is None:
        return {name: optimizer.state[p][name] for name in moments(optimizer)}
    return decoded(program, p, optimizer.state[p])


def layer_of(name: str, layers: int) -> str:
    """The row of a parameter: norms together, of the blocks the first and the last."""
    if "norm" in name:
        return "norms"
    block = re.match(r"blocks\.(\d+)\.(.*)\.weight", name)
    if not block:
        return name.removesuffix(".weight")
    number = int(block[1])
    place = "first" if number == 0 else "last" if number == layers - 1 else "middle"
    return f"{place} {block[2]}"


def _figures(x: float) -> float | None:
    return float(f"{x:.3g}") if math.isfinite(x) else None


@torch.no_grad()
def by_layer(
    optimizer: torch.optim.Optimizer, named: Sequence[tuple[str, Tensor]], layers: int
) -> dict[str, dict[str, Any]]:
    """Share of zeros of each moment and the largest abs(g) by layer, as the StoSignSGD paper's
    Table 12 has them; g as the optimizer got it."""
    rows: dict[str, dict[str, Any]] = {}
    for name, p in named:
        row = rows.setdefault(layer_of(name, layers), {"zeros": {}, "count": 0, "largest": 0.0})
        for moment, x in values(optimizer, p).items():
            row["zeros"][moment] = row["zeros"].get(moment, 0.0) + float((x == 0).sum())
        row["count"] += p.numel()
        assert p.grad is not None
        row["largest"] = max(row["largest"], float(p.grad.abs().max()))
    return {
        layer: {
            **{k: round(v / row["count"], 4) for k, v in row["zeros"].items()},
            "largest_g": _figures(row["largest"]),
        }
        for layer, row in rows.items()
    }


@torch.no_grad()
def histogram(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> dict[str, Any]:
    """Shares of abs(m): zeros, then between powers of two (the paper's Figure 3)."""
    edges = torch.tensor([2.0**k for k in HISTOGRAM], device=weights[0].device)
    counts = torch.zeros(len(HISTOGRAM) + 1, device=edges.device, dtype=torch.float64)
    zeros, total = 0.0, 0
    for p in weights:
        m = values(optimizer, p).get("m")
        if m is None:
            return {}
        size = m.abs().flatten()
        zeros += float((size == 0).sum())
        total += size.numel()
        places = torch.bucketize(size[size > 0], edges)
        counts += torch.bincount(places, minlength=len(counts))
    shares = [round(float(x) / total, 5) for x in counts]
    return {"log2": list(HISTOGRAM), "zero": round(zeros / total, 5), "shares": shares}


@torch.no_grad()
def sign_means(
    optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], step: int
) -> dict[str, float | None] | None:
    """Of r = m/σ, the mean of a stochastic sign: root mean square, mean of abs(r), and the share
    with abs(r) >= 1, where there is no noise (the paper's Figure 4).  The noise has variance
    1 - r².  From the moments as they are stored; None where there is no σ.
    """
    names = set(moments(optimizer))
    if names not in SIGNED:
        return None
    (under,) = names - {"m"}
    group = optimizer.param_groups[0]
    betas = group.get("betas") or (0.0, 0.0)
    squares = mean = above = 0.0
    total = 0
    for p in weights:
        kept = values(optimizer, p)
        sigma = kept[under]
        m = kept.get("m", p.grad)
        assert m is not None
        if under != "G":
            m = m / (1 - betas[0] ** step)
        if under == "v":
            sigma = (sigma / (1 - betas[1] ** step)).sqrt()
        r = torch.where(sigma > 0, m / sigma, m.sign()).abs()
        squares += float(r.clamp(max=1).double().square().sum())
        mean += float(r.clamp(max=1).double().sum())
        above += float((r >= 1).sum())
        total += r.numel()
    return {
        "rms": _figures(math.sqrt(squares / total)),
        "mean": _figures(mean / total),
        "above": _figures(above / total),
    }
