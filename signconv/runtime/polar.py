"""Iterations towards the polar factor of a matrix, its matrix sign U V^T (X = U S V^T).

X <- a X + (b A + c A A) X with A = X X^T moves every singular value s to a s + b s**3 + c s**5 and
leaves U and V; a schedule is a triple (a, b, c) a step.  It starts from X over its Frobenius norm,
whose singular values lie in [0, 1].
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

Triple = tuple[float, float, float]

#: By name: the triples in order, the last of which is repeated.
SCHEDULES: dict[str, tuple[Triple, ...]] = {
    # Jordan et al. 2024, "Muon": the steepest at 0 that keeps singular values near 1
    "quintic": ((3.4445, -4.7750, 2.0315),),
    # Amsel et al. 2025, arXiv 2505.16932: the best of degree 5 for singular values from 1e-3 on
    "polar_express": (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ),
    # Kovarik 1970, Bjorck & Bowie 1971: the Taylor polynomial of degree 5, exact in the limit
    "newton_schulz": ((1.875, -1.25, 0.375),),
}
#: Steps where none are asked for.
STEPS = {"quintic": 5, "polar_express": 8, "newton_schulz": 16}
#: No more are taken: the quintic comes no nearer to 1 after 6, and from there on small differences
#: grow from step to step.
MOST_STEPS = {"quintic": 6, "polar_express": 32, "newton_schulz": 32}
#: Matrix products of a step.
PRODUCTS = 3
#: Bytes an element that are read and written beside the products: the operand in fp32, that for
#: its norm and once more to bf16, and the result by who reads it.
MOVED = 4 + 4 + (4 + 2) + 2
#: By how much "polar_express" stays below what its polynomials are made for, since bf16 rounds
#: singular values up as well (as its authors do); not in its last step.
SAFETY = 1.01


def named(coefficients: str, steps: int) -> str:
    """A schedule and a number of steps as one word, which programs hold."""
    return f"{coefficients} {steps}"


def split(how: str) -> tuple[str, int]:
    """What ``named`` was made of."""
    coefficients, steps = how.split()
    return coefficients, int(steps)


@cache
def triples(how: str) -> tuple[Triple, ...]:
    """(a, b, c) of every step."""
    name, steps = split(how)
    known = SCHEDULES[name]
    made = [known[min(i, len(known) - 1)] for i in range(steps)]
    if name == "polar_express":
        made = [
            x if x == known[-1] else (x[0] / SAFETY, x[1] / SAFETY**3, x[2] / SAFETY**5)
            for x in made
        ]
    return tuple(made)


def largest(how: str) -> float:
    """No less than any singular value that may come out, in exact arithmetic."""
    top = 1.0
    for triple in triples(how):
        top = max(abs(value(triple, s)) for s in [top, *_turns(triple, top)])
    return top * (1 + 1e-12)


def value(triple: Triple, s: Any) -> Any:
    """What a step makes of singular values: a number, or an array of them."""
    a, b, c = triple
    return s * (a + s * s * (b + s * s * c))


def _turns(triple: Triple, top: float) -> list[float]:
    """Where the polynomial of a step turns, up to ``top``: a + 3 b x + 5 c x**2 = 0, x = s**2."""
    a, b, c = triple
    inner = 9 * b * b - 20 * a * c
    if inner < 0 or c == 0:
        return []
    roots = [(-3 * b + sign * math.sqrt(inner)) / (10 * c) for sign in (-1, 1)]
    return [math.sqrt(x) for x in roots if 0 < x <= top * top]


def smallest_kept(how: str) -> tuple[float, float]:
    """(least, from): singular values of at least ``from``, a share of the Frobenius norm, come out
    as ``least`` or more, in exact arithmetic; of those that are smaller nothing is said."""
    steps = triples(how)
    grid = [2.0 ** (-i / 64) for i in range(64 * 20)]  # 1 down to about 1e-6
    ends = []
    for s in grid:
        for triple in steps:
            s = value(triple, s)
        ends.append(abs(s))
    least = min(ends[: 64 * 4])  # what large ones come to
    kept = next((i for i, x in enumerate(ends) if x < least * 0.999), len(grid))
    return least, grid[kept - 1]
