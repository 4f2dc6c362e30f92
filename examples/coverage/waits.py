"""Optimizers of the collection that the language cannot say yet, and what they wait for."""

from __future__ import annotations

from dataclasses import dataclass

#: The closed list of reasons, by their short names.
REASONS = {
    "matrix": "matrix products (Newton-Schulz, SVD, QR, projections)",
    "axes": "reductions over rows, columns, channels or blocks, and states of their shape",
    "all": "sums over all tensors, other than the norm of all gradients",
    "extra": "inputs beside the gradient: the loss, a diagonal of the Hessian",
    "largest": "the largest or smallest element of a tensor",
    "nested": "a reduction of something that reads another reduction",
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
    "adafactor": Wait(
        ("axes", "nested"),
        "row and column means of the squares; clipping by the RMS of what they divide",
    ),
    "adago": Wait(("matrix",), "Newton-Schulz"),
    "adahessian": Wait(
        ("extra", "axes"), "the Hessian's diagonal, averaged over a kernel's elements"
    ),
    "adai": Wait(("all",), "the mean of the second moment over all tensors"),
    "adalite": Wait(("axes", "nested"), "row and column means, softmax over them"),
    "adalomo": Wait(
        ("axes", "nested"),
        "row and column means of the squares; clipping by the RMS of what they divide",
    ),
    "adammini": Wait(("axes",), "the mean of the squares over a head, a neuron or a tensor"),
    "adamp": Wait(
        ("axes", "largest"), "cosine of gradient and weights by channel, and the largest of them"
    ),
    "adams": Wait(("all",), "the mean of the second moment over all tensors"),
    "adamuon": Wait(("matrix",), "Newton-Schulz"),
    "adamwsn": Wait(("axes",), "the sum of the squares over subsets of a tensor"),
    "adashift": Wait(
        ("largest",),
        "the largest square in a tensor; besides a window of ten gradients, which are ten states",
    ),
    "adatam": Wait(("axes",), "norms of gradient and momentum along the first axis"),
    "alice": Wait(("matrix", "draw"), "subspace iteration, with random vectors of the complement"),
    "alig": Wait(("extra", "all"), "the loss over the squared norm of all gradients"),
    "apollo": Wait(("matrix", "axes", "draw"), "a random projection, norms of its rows or columns"),
    "asgd": Wait(("all",), "the norm of all weights, from which it makes lr"),
    "avagrad": Wait(("all",), "a norm of step sizes over all tensors"),
    "bsam": Wait(("draw", "evaluations"), "noisy weights, then perturbed ones"),
    "came": Wait(("axes", "nested"), "row and column means of squares and of the instability"),
    "conda": Wait(("matrix",), "an orthogonal basis from an SVD"),
    "dadaptadagrad": Wait(("all",), "the estimated distance, from sums over all tensors"),
    "dadaptadam": Wait(("all",), "the estimated distance, from sums over all tensors"),
    "dadaptadan": Wait(("all",), "the estimated distance, from sums over all tensors"),
    "dadaptlion": Wait(("all",), "the estimated distance, from sums over all tensors"),
    "dadaptsgd": Wait(("all",), "the estimated distance, from sums over all tensors"),
    "dash": Wait(("matrix",), "inverse roots of block preconditioners"),
    "demo": Wait(("transform",), "DCT of blocks"),
    "distributedmuon": Wait(("matrix",), "Newton-Schulz"),
    "emofact": Wait(("extra", "axes"), "the loss; row and column means of the squares"),
    "emolynx": Wait(("extra",), "the loss, of which it keeps three averages"),
    "emonavi": Wait(("extra",), "the loss, of which it keeps three averages"),
    "fadam": Wait(("nested",), "the RMS of a gradient divided by what reads the gradient's RMS"),
    "fira": Wait(("matrix",), "a low-rank projection from an SVD"),
    "galore": Wait(("matrix",), "a low-rank projection from an SVD"),
    "gravity": Wait(
        ("largest", "draw"), "the largest gradient of a tensor; a momentum that starts from noise"
    ),
    "kron": Wait(("matrix", "draw"), "Kronecker-factored preconditioners"),
    "lbfgs": Wait(("evaluations", "all"), "a line search; dot products over all tensors"),
    "lorarite": Wait(("matrix",), "QR of both factors of an adapter"),
    "magma": Wait(("draw",), "a coin by tensor that keeps or undoes its step"),
    "muon": Wait(("matrix",), "Newton-Schulz"),
    "muonclip": Wait(("matrix",), "Newton-Schulz"),
    "nero": Wait(("axes", "nested"), "norms and means by neuron"),
    "normuon": Wait(("matrix", "axes"), "Newton-Schulz, then norms by neuron"),
    "prodigy": Wait(("all",), "the estimated distance, from sums over all tensors"),
    "racs": Wait(
        ("axes", "nested"), "row and column means of the squares, then the norm of what they divide"
    ),
    "ranger21": Wait(
        ("axes", "all", "nested"), "centralized and clipped gradients by unit; the variance of all"
    ),
    "rose": Wait(
        ("axes", "largest", "nested"),
        "the range of a gradient by row, and its spread over the rows",
    ),
    "scalableshampoo": Wait(("matrix",), "inverse roots of block preconditioners"),
    "scion": Wait(("matrix", "axes"), "Newton-Schulz, or norms by row"),
    "scionlight": Wait(("matrix", "axes"), "Newton-Schulz, or norms by row"),
    "sgdp": Wait(
        ("axes", "largest"), "cosine of gradient and weights by channel, and the largest of them"
    ),
    "shampoo": Wait(("matrix",), "inverse roots of preconditioners"),
    "sm3": Wait(("axes", "largest"), "the largest of the squares by row and by column"),
    "soap": Wait(("matrix",), "eigenbases by QR"),
    "sophiah": Wait(("extra",), "the Hessian's diagonal, every tenth step"),
    "spam": Wait(
        ("cos", "draw"), "a warmup in cos; a random mask of the elements that have moments"
    ),
    "spectralsphere": Wait(("matrix",), "Newton-Schulz and the largest singular value"),
    "splus": Wait(("matrix",), "eigenbases"),
    "stablespam": Wait(
        ("largest", "nested"), "the largest gradient of a tensor, then the norm of those it clips"
    ),
    "swats": Wait(("all",), "the step in which all tensors change from Adam to SGD"),
    "tam": Wait(("axes",), "norms of gradient and momentum along the first axis"),
}
