"""How long a step of a generated optimizer can be, in units of lr, over a short run."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import cache

from signconv.pipeline import build, resolve
from signconv.pipeline.catalogue import Entry
from signconv.prove.proofs import prove
from tests.support.entries import FIRST_LENGTH

#: Updates that grow with the gradient (sgd), with the parameter (lamb, adafactor), or with what a
#: row has beside a column (came), or with an estimate of the distance: finite, without bound.
UNSCALED = ("sgd", "lamb", "adafactor", "adalomo", "came", "dadapt_adam", "prodigy")
#: Ratios that are finite without a useful bound: here they stay within Adam's.
UNBOUNDED = ("adabelief", "cautious_adamw")
STEPS = 12
#: Elements of a row, or of a vector, in the tests that ask.
LONGEST_ROW = 64
#: Specs without a proved bound: what bounds abs(update) over so many steps from the start, at the
#: default hyperparameters, whatever the gradients.
BOUNDS = {
    # v >= (1 - rho) g**2, so that update**2 <= (d + eps) / (1 - rho), with d the average of its
    # squares before the step, and the next d is at most (1 + rho) d + eps: d + eps, at first eps,
    # at most doubles
    "adadelta": math.sqrt(1e-6 * 2.0 ** (STEPS - 1) / 0.1),
    # AdamW's at its betas, where the one other element of a row's mean counts for so many
    "adam_mini": 1.17 * math.sqrt(LONGEST_ROW),
    # the sum holds g**2 itself
    "adagrad": 1.0,
    # AdamW's, and 5 times what the slow average, of weights below 1e-4 each where the second
    # moment's are about a twelfth, adds by Cauchy and Schwarz: 1e-4 * sqrt(STEPS) * sqrt(STEPS)
    "ademamix": 7.271 + 5 * 1e-4 * STEPS,
    # an average of what is clipped at (t - 1)**0.25
    "adopt": (STEPS - 1) ** 0.25,
    # an average of ratios: v.corrected >= g**2 (1 - beta2) / (1 - beta2**t) >= g**2 / t
    "laprop": math.sqrt(STEPS),
    # AdamW's at its betas, by Cauchy and Schwarz: the clipped gradient enters both moments
    "mars": 0.05 / math.sqrt(0.01 * (1 - 0.95**2 / 0.99)),
    # from step 6 AdamW's times the rectification, which grows: at step 12 it is 0.0543
    "radam": 7.271 * 0.0544,
    # no more than 1.2024 of any singular value, and so of any element; no tensor of the tests has
    # more rows than columns
    "muon": 1.2024,
    "muon_rms": 1.2024 * 0.2 * math.sqrt(LONGEST_ROW),
    "scion": 1.2024 * 50.0,
    # a tensor of norm 0.2 * sqrt(its elements), of 4 rows at most
    "adamuon": 0.2 * math.sqrt(4 * LONGEST_ROW),
    "normuon": 0.2 * math.sqrt(4 * LONGEST_ROW),
    # a size of 1 that grew at every step but the first
    "rprop": 1.2 ** (STEPS - 1),
    # the iterate moves by a ratio of at most sqrt(t), as LaProp's; its average by a share 1/t of a
    # distance of t such moves at most, and the parameter lies between the two
    "schedulefree_adamw": math.sqrt(STEPS),
    # AdamW's at its betas, divided by 1 or more
    "sophia": 1.0,  # rho clips it
    "stableadamw": 0.1 / math.sqrt(0.01 * (1 - 0.9**2 / 0.99)),
}
#: RAdam's first steps are momentum: they grow with the gradient like sgd's, and are not bounded.
UNSCALED_UNTIL = {"radam": 5}
#: What the largest step exceeds, in units of lr, where that is not a tenth: RAdam's rectification
#: at step 6 is 0.026.
LEAST = {"radam": 0.025} | {name: 0.99 * x for name, x in FIRST_LENGTH.items()}


@cache
def allowed(entry: Entry) -> float:
    """The largest step in units of lr: 1 for signs, else the proved bound, early steps included,
    or that of BOUNDS.

    Stored moments are above the bound between them by a rounding or two: 1.1.
    """
    program = build(**asdict(entry)).program
    if program.link in ("stosign", "expected", "sign"):
        return 1.0
    if entry.spec in BOUNDS:
        assert prove(program).status == "unproved"  # or else it is the bound to use
        return 1.1 * BOUNDS[entry.spec]
    b = prove(resolve("adamw") if entry.spec in UNBOUNDED else program)
    assert b.status == "proved" and b.value < 11
    return 1.1 * max(b.value, b.early[1] if b.early else 0.0)
