"""Optimizers whose updates are matrix signs of their momentum, by Newton-Schulz iterations.

The first dimension is the rows, all others the columns. Muon's relatives are for matrices alone:
the collection's classes step other tensors by AdamW, as ``adamw`` of the catalogue does.
"""

from __future__ import annotations

from signconv.dsl import (
    Optimizer,
    columns,
    decoupled,
    ema,
    exp,
    extra,
    given,
    grad,
    hyper,
    log,
    max,
    mean,
    min,
    msign,
    ndim,
    norm,
    rows,
    sqrt,
    state,
    stepped,
    t,
    where,
)


class AdaMuon(Optimizer):
    """Muon with a second moment of its orthogonalized momentum, and steps of the size of AdamW's
    (Si et al. 2025, arXiv 2507.11005), without that paper's sign of the momentum."""

    lr = hyper(2e-2, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.95, ge=0, lt=1)
    eps = hyper(1e-10, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    o = msign(m)
    v = ema(o**2, beta2)
    u = o / (sqrt(v.corrected) + eps)
    scale = 0.2 * sqrt(max(rows, columns)) * sqrt(min(rows, columns))
    update = scale * u / (norm(u) + eps)
    decay = decoupled(weight_decay)


class AdaGO(Optimizer):
    """Muon with AdaGrad's step sizes of whole matrices (Zhang et al. 2025, arXiv 2509.02981);
    ``v0`` is the sum of squares before the first step, eps the least step."""

    lr = hyper(5e-2, gt=0)
    momentum = hyper(0.95, ge=0, lt=1)
    gamma, v0 = hyper(10.0, gt=0), hyper(1e-6, gt=0)
    eps = hyper(5e-4, gt=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum)
    size = min(norm(grad), gamma)
    v = state()
    v.next = where(t == 1, v0, v.prev) + size**2
    scale = sqrt(max(rows / columns, 1))
    update = max(scale * size / v, eps / lr) * msign(m)
    decay = decoupled(weight_decay)


class NorMuon(Optimizer):
    """Muon with a second moment by row of its orthogonalized momentum, whose norm it keeps (Li et
    al. 2025, arXiv 2510.05491, as in the authors' code)."""

    lr = hyper(2e-2, ge=0)
    momentum, beta2 = hyper(0.95, ge=0, lt=1), hyper(0.95, ge=0, lt=1)
    eps = hyper(1e-10, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum)
    o = msign(momentum * m + (1 - momentum) * grad)
    v = ema(mean(o**2, axis=(1, ...)), beta2)
    u = o / (sqrt(v) + eps)
    update = sqrt(max(rows / columns, 1)) * norm(o) * u / (norm(u) + eps)
    decay = decoupled(weight_decay)


class MuonClip(Optimizer):
    """Muon whose query and key projections are scaled down, head by head, where logits of the
    attention pass a threshold (Kimi Team 2025, arXiv 2507.20534, Alg. 1).

    ``max_logits`` holds for each row, in any of its elements, the largest logit of the row's head.
    ``exponent``, by param group, is the query's share; the key has 1 less it, all others 0.
    """

    lr = hyper(2e-2, ge=0)
    momentum = hyper(0.95, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)
    qk_clip_threshold, exponent = hyper(100.0, gt=0), hyper(0.0, ge=0, le=1)

    max_logits = extra(per="element")
    m = state()
    m.next = momentum * m.prev + grad
    update = 0.2 * sqrt(max(rows, columns)) * msign(m)
    decay = decoupled(weight_decay)
    largest = max(max(max_logits, axis=(1, ...)), qk_clip_threshold)
    share = exp(exponent * log(qk_clip_threshold / largest))
    new_param = where(given(max_logits), stepped * share, stepped)


class SCION(Optimizer):
    """Steps to the corner of a norm's ball: of a matrix the spectral norm, of a vector the root
    mean square (Pethick et al. 2025, arXiv 2502.07529, Alg. 1).

    ``momentum`` is the weight of the newest gradient. ``kernel``, by param group, is the number of
    elements of a convolution's kernel, 1 for a matrix. A weight decay of 1 makes the constrained
    form, Alg. 2: weights stay in the ball of radius ``scale``.
    """

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.1, gt=0, le=1)
    scale, kernel = hyper(1.0, gt=0), hyper(1, ge=1)
    weight_decay = hyper(0.0, ge=0)

    d = ema(grad, 1 - momentum)
    corner = sqrt(rows / (columns / kernel)) / kernel * msign(d)
    update = scale * where(ndim >= 2, corner, d / (sqrt(mean(d**2)) + 1e-8))
    decay = decoupled(weight_decay)


class SCIONLight(Optimizer):
    """SCION whose momentum is a sum of gradients that it forgets a share of, kept in their own
    buffers by its authors."""

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.1, gt=0, le=1)
    scale, kernel = hyper(1.0, gt=0), hyper(1, ge=1)
    weight_decay = hyper(0.0, ge=0)

    d = state()
    d.next = (1 - momentum) * d.prev + grad
    corner = sqrt(rows / (columns / kernel)) / kernel * msign(d)
    update = scale * where(ndim >= 2, corner, d / (sqrt(mean(d**2)) + 1e-8))
    decay = decoupled(weight_decay)
