"""Optimizers of the collection that the language cannot say yet, and what they wait for."""

from __future__ import annotations

from dataclasses import dataclass

#: The closed list of reasons, by their short names.
REASONS = {
    "matrix": "matrix algebra other than the matrix sign (SVD, QR, projections, inverse roots)",
    "evaluations": "several evaluations of the gradient in a step",
    "draw": "a random draw other than the stochastic sign",
    "cos": "cos",
    "transform": "a transform (DCT), and the largest of its coefficients",
}


@dataclass(frozen=True)
class Wait:
    """Reasons, by name, and what exactly is reduced, drawn or multiplied."""

    reasons: tuple[str, ...]
    detail: str


WAITS: dict[str, Wait] = {
    "alice": Wait(("matrix", "draw"), "subspace iteration, with random vectors of the complement"),
    "apollo": Wait(("matrix", "draw"), "a random projection of the gradient"),
    "bsam": Wait(("draw", "evaluations"), "noisy weights, then perturbed ones"),
    "conda": Wait(("matrix",), "an orthogonal basis from an SVD"),
    "dash": Wait(("matrix",), "inverse roots of block preconditioners"),
    "demo": Wait(("transform",), "DCT of blocks"),
    "fira": Wait(("matrix",), "a low-rank projection from an SVD"),
    "galore": Wait(("matrix",), "a low-rank projection from an SVD"),
    "kron": Wait(("matrix", "draw"), "Kronecker-factored preconditioners"),
    "lbfgs": Wait(("evaluations",), "iterations within a step, and a line search"),
    "lorarite": Wait(("matrix",), "QR of both factors of an adapter"),
    "magma": Wait(("draw",), "a coin by tensor that keeps or undoes its step"),
    "scalableshampoo": Wait(("matrix",), "inverse roots of block preconditioners"),
    "shampoo": Wait(("matrix",), "inverse roots of preconditioners"),
    "soap": Wait(("matrix",), "eigenbases by QR"),
    "spam": Wait(
        ("cos", "draw"),
        "a warmup in cos after each reset; below density 1 a random mask of elements",
    ),
    "spectralsphere": Wait(
        ("matrix",),
        "the first singular vectors of the weights, and a multiplier of their product by bisection",
    ),
    "splus": Wait(("matrix",), "eigenbases"),
}
