"""The S3 paper's ablation as specs: order p, with and without Nesterov, one beta or two.

With one beta there is no bias correction (arXiv 2507.06464, Alg. 1); with two, both moments are
corrected as Adam's are, since the uncorrected ratio starts at (1 - beta1)/(1 - beta2)^(1/p).
"""

from __future__ import annotations

from signconv.dsl import Optimizer, abs, decoupled, ema, grad, hyper, root, sqrt, t

ORDERS = (1, 2, 3, 5)


def _root(x, p: int):  # type: ignore[no-untyped-def]
    """x^(1/p), by the exact square root where there is one."""
    return x if p == 1 else sqrt(x) if p == 2 else root(x, p)


def _size(g, p: int):  # type: ignore[no-untyped-def]
    """abs(g)^p; not dsl.moment, whose order 1 is the signed EMA."""
    return abs(g) if p == 1 else g**2 if p == 2 else abs(g) ** p


def same(p: int, nesterov: bool) -> type[Optimizer]:
    """One beta for both moments: abs(update) <= 1 always."""

    class S3Same(Optimizer):
        """S3 with one beta (arXiv 2507.06464, Alg. 1)."""

        lr = hyper(3e-3, ge=0)
        beta = hyper(0.95, ge=0, lt=1)
        weight_decay = hyper(0.0, ge=0)

        m = ema(grad, beta)
        s = ema(_size(grad, p), beta)
        numerator = beta * m + (1 - beta) * grad if nesterov else m
        denominator = _root(beta * s + (1 - beta) * _size(grad, p) if nesterov else s, p)
        decay = decoupled(weight_decay)

    return S3Same


def different(p: int, nesterov: bool) -> type[Optimizer]:
    """Adam's two betas: the bound is 7.27 for p = 2, 3.61 for p = 3."""

    class S3Different(Optimizer):
        """S3 with two betas, bias-corrected (ablation of arXiv 2507.06464)."""

        lr = hyper(3e-3, ge=0)
        beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
        weight_decay = hyper(0.0, ge=0)

        m = ema(grad, beta1)
        s = ema(_size(grad, p), beta2)
        numerator = (
            (beta1 * m + (1 - beta1) * grad) / (1 - beta1 ** (t + 1)) if nesterov else m.corrected
        )
        denominator = _root(
            (beta2 * s + (1 - beta2) * _size(grad, p)) / (1 - beta2 ** (t + 1))
            if nesterov
            else s.corrected,
            p,
        )
        decay = decoupled(weight_decay)

    return S3Different


S3P1Same, S3P2Same, S3P3Same, S3P5Same = (same(p, False) for p in ORDERS)
S3P1SameNesterov, S3P2SameNesterov, S3P3SameNesterov, S3P5SameNesterov = (
    same(p, True) for p in ORDERS
)
S3P1Different, S3P2Different, S3P3Different, S3P5Different = (different(p, False) for p in ORDERS)
S3P1DifferentNesterov, S3P2DifferentNesterov, S3P3DifferentNesterov, S3P5DifferentNesterov = (
    different(p, True) for p in ORDERS
)
