"""Situations that a running optimizer meets, and what is expected of each backend in them.

The parametrized tests of tests/runtime/test_doors_*.py run every situation on every backend and
``settle`` what came out; the door matrix of docs/using.md is made of these outcomes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

BACKENDS = ("auto", "reference", "triton")
#: Outcomes beside the code of a refusal.
STEPS = "steps"


@dataclass(frozen=True)
class Situation:
    """One situation; ``outcome`` is STEPS (the bits of a run that it does not touch), or the code
    of the refusal, before which nothing is written; on ``others`` (backend: outcome) it differs."""

    name: str
    what: str
    outcome: str = STEPS
    others: tuple[tuple[str, str], ...] = ()

    def expected(self, backend: str) -> str:
        return dict(self.others).get(backend, self.outcome)


#: What came out: (name of the situation, backend) -> outcome.
OUTCOMES: dict[tuple[str, str], str] = {}


def settle(situation: Situation, backend: str, act: Callable[[], object]) -> str:
    """Run ``act``, which asserts right values itself; the outcome, which must be the expected."""
    try:
        act()
        outcome = STEPS
    except (TypeError, ValueError, RuntimeError) as error:
        found = re.search(r"\[(SC\d{3})\]$", str(error))
        if found is None:
            raise
        outcome = found.group(1)
    OUTCOMES[situation.name, backend] = outcome
    assert outcome == situation.expected(backend), (situation.name, backend, outcome)
    return outcome


MEMORY = (
    Situation("wrapper subclass", "a parameter without memory of its own (quantized)", "SC423"),
    Situation("subclass with memory", "a parameter of a subclass of Parameter"),
    Situation("half", "`model.half()` after construction", "SC412"),
    Situation("double", "`model.double()` after construction", "SC412"),
    Situation("bf16", "`model.bfloat16()` after construction"),
    Situation("resized", "`p.data` of another shape between backward and step", "SC429"),
    Situation("reshaped", "`p.data` of another shape with as many elements", "SC429"),
    Situation("half gradient", "a gradient converted to fp16", "SC416"),
    Situation("bf16 gradient", "a bf16 gradient of an fp32 parameter"),
    Situation("freed parameter", "a parameter whose storage was resized to 0", "SC423"),
    Situation("freed gradient", "a gradient whose storage was resized to 0", "SC430"),
    Situation("short storage", "a parameter whose storage is smaller than it says", "SC423"),
    Situation("negated gradient", "a gradient that torch negates lazily"),
    Situation("negated parameter", "a parameter that torch negates lazily"),
    Situation("zero gradient", "a gradient of zeros that has no memory"),
    Situation("transposed", "parameter and gradient transposed"),
    Situation("expanded", "a parameter whose elements share memory", "SC425"),
    Situation("shared", "two parameters that share memory", "SC427"),
    Situation("columns", "two parameters that are columns of one matrix"),
    Situation("listed twice", "a parameter twice in a param group", "SC428"),
    Situation("inference parameter", "a parameter made in inference mode", "SC424"),
)
#: After steps: the state exists, and the last step's tables.
LATER = (
    Situation("state converted", "a tensor of `state[p]` in another dtype", "SC426"),
    Situation("state of another shape", "moments of another shape than their parameter", "SC418"),
    Situation("scales of another shape", "block scales of another shape", "SC426"),
    Situation("state missing", "a moment deleted from `state[p]`", "SC426"),
    Situation("state moved", "moments on another device than their parameter", "SC426"),
    Situation("state offloaded", "state replaced by copies, as offloading back and forth does"),
)
SETTINGS = (
    Situation("default dtype bf16", "`torch.set_default_dtype(torch.bfloat16)`"),
    Situation("default dtype fp16", "`torch.set_default_dtype(torch.float16)`"),
    Situation("default dtype fp64", "`torch.set_default_dtype(torch.float64)`"),
    Situation("default device", "`torch.set_default_device(…)`, another than the parameters'"),
    Situation("flush denormal", "`torch.set_flush_denormal(True)`"),
    Situation("deterministic", "`torch.use_deterministic_algorithms(True)`"),
    Situation("no grad", "`torch.no_grad()` around everything"),
    Situation("inference mode", "`torch.inference_mode()` around a step, and not the next"),
    Situation("autocast", "`torch.autocast` around everything"),
    Situation("threads", "`torch.set_num_threads` between steps"),
)
SITUATIONS = (*MEMORY, *LATER, *SETTINGS)
