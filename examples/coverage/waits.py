"""Optimizers of the collection that the language cannot say yet, and what they wait for."""

from __future__ import annotations

from dataclasses import dataclass

#: The closed list of reasons, by their short names.
REASONS = {
    "matrix": "matrix products (Newton-Schulz, SVD, QR, projections)",
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
    "adago": Wait(("matrix",), "Newton-Schulz"),
    "adamuon": Wait(("matrix",), "Newton-Schulz"),
    "alice": Wait(("matrix", "draw"), "subspace iteration, with random vectors of the complement"),
    "apollo": Wait(("matrix", "draw"), "a random projection of the gradient"),
    "bsam": Wait(("draw", "evaluations"), "noisy weights, then perturbed ones"),
    "conda": Wait(("matrix",), "an orthogonal basis from an SVD"),
    "dash": Wait(("matrix",), "inverse roots of block preconditioners"),
    "demo": Wait(("transform",), "DCT of blocks"),
    "distributedmuon": Wait(("matrix",), "Newton-Schulz"),
    "fira": Wait(("matrix",), "a low-rank projection from an SVD"),
    "galore": Wait(("matrix",), "a low-rank projection from an SVD"),
    "kron": Wait(("matrix", "draw"), "Kronecker-factored preconditioners"),
    "lbfgs": Wait(("evaluations",), "iterations within a step, and a line search"),
    "lorarite": Wait(("matrix",), "QR of both factors of an adapter"),
    "magma": Wait(("draw",), "a coin by tensor that keeps or undoes its step"),
    "muon": Wait(("matrix",), "Newton-Schulz"),
    "muonclip": Wait(("matrix",), "Newton-Schulz"),
    "normuon": Wait(("matrix",), "Newton-Schulz"),
    "scalableshampoo": Wait(("matrix",), "inverse roots of block preconditioners"),
    "scion": Wait(("matrix",), "Newton-Schulz, unless norms by row or column are asked for"),
    "scionlight": Wait(("matrix",), "Newton-Schulz, unless norms by row or column are asked for"),
    "shampoo": Wait(("matrix",), "inverse roots of preconditioners"),
    "soap": Wait(("matrix",), "eigenbases by QR"),
    "spam": Wait(
        ("cos", "draw"),
        "a warmup in cos after each reset; below density 1 a random mask of elements",
    ),
    "spectralsphere": Wait(("matrix",), "Newton-Schulz and the largest singular value"),
    "splus": Wait(("matrix",), "eigenbases"),
}
