"""Every optimizer of the results, by the name that the tables use.

Learning rates come from one grid, two a decade: rate(-6) = 1e-3, rate(-7) = 3e-4 and so on.  The
weight decay of each is ``decay`` / lr, so that lr * weight_decay is the same for all (the S3
paper's rule); it acts on matrices and embeddings only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DECAY = 1e-4  # lr * weight_decay, unless an entry says otherwise
SOURCES_DECAY = 3e-5  # the S3 paper's: AdamW's 3e-4 times Llama's 0.1; the other paper's is lost
E4M3_MAX, E5M2_MAX = 448.0, 57344.0
FORMS = Path(__file__).with_name("s3_forms.py")


def rate(index: int) -> float:
    """The grid of learning rates: 1 and 3 in every decade."""
    return float(f"{(1, 3)[index % 2]}e{index // 2}")


@dataclass(frozen=True)
class Choice:
    """One optimizer: what to build, its hyperparameters, and the middle of its first three lrs."""

    spec: str
    convert: str | None = None
    state: str = "fp8"
    math: str = "fp32"
    hypers: dict[str, Any] = field(default_factory=dict)
    middle: int = -6
    raw: bool = False  # round the moments to E4M3, nearest, without scales, after every step
    clip: float | None = None  # norm of the whole gradient
    scale: float = 1.0  # of the gradient, a power of two, for what is invariant under it
    later: str | None = None  # passes from ``later_from`` on, with the same moments
    later_from: float = 0.3  # share of the steps
    long: int = -6  # index of the lr of long runs without a sweep of their own
    gradient: str = "fp32"  # e5m2: rounded to nearest E5M2 without a scale, after ``scale``
    masters: str = "fp32"  # bf16: the weights rounded to nearest bf16 after every step
    decay: float = DECAY  # lr * weight_decay
    rest: str | None = None  # the spec of what steps embeddings and vectors beside matrices
    rest_state: str | None = None  # its storage, where it is another


ADAM = {"betas": (0.9, 0.95)}
ADAM_999 = {"betas": (0.9, 0.999)}
FRESH, GOLDEN = "stosign:noise=fresh", "stosign:noise=golden"
PAPER = {"beta2": 1.0}  # a running maximum that never forgets

#: The FP8-state table: AdamW in three storages, then everything else on FP8.
TABLE: dict[str, Choice] = {
    "adamw-fp32": Choice("adamw", state="fp32", hypers=ADAM),
    "adamw-raw": Choice("adamw", state="fp32", hypers=ADAM, raw=True),
    "adamw": Choice("adamw", hypers=ADAM),
    "signsgd": Choice("signsgd", middle=-7),
    "signum": Choice("signum", middle=-7),
    "lion": Choice("lion", middle=-7),
    "stosignsgd": Choice("stosignsgd", hypers=PAPER, middle=-7),
    "adamw-stosign": Choice("adamw", FRESH, hypers=ADAM),
    "adamax-stosign": Choice("adamax", FRESH),
    "s3": Choice("s3", middle=-5),
    "s3gd-raw": Choice("s3gd", state="fp8-raw", middle=-7),
    "s3gd": Choice("s3gd", middle=-7),
    # The sources do not say how they scale m and G: what their own optimizer does without scales
    "stosignsgd-raw": Choice("stosignsgd", state="fp32", hypers=PAPER, middle=-7, raw=True),
}

#: Beside the table: the same storage for the other sign methods, and two yardsticks.
MORE: dict[str, Choice] = {
    "signum-raw": Choice("signum", state="fp32", middle=-7, raw=True),
    "lion-raw": Choice("lion", state="fp32", middle=-7, raw=True),
    "torch-adamw": Choice("torch.optim.AdamW", hypers=ADAM),
    "stosignsgd-fp32": Choice("stosignsgd", state="fp32", hypers=PAPER, middle=-7),
    "stosignsgd-decayed": Choice("stosignsgd", hypers={"beta2": 0.999}, middle=-7),
    "s3gd-99-raw": Choice("s3gd", state="fp8-raw", hypers={"momentum": 0.99}, middle=-7),
    "s3gd-99": Choice("s3gd", hypers={"momentum": 0.99}, middle=-7),
}

#: Which part matters: plain, expected and stochastic-sign forms of three base optimizers.
ABLATION: dict[str, Choice] = {
    "sgd": Choice("sgd", middle=0),
    "sgd-expected": Choice("sgd", "expected", hypers=PAPER, middle=-5),
    "stosignsgd": TABLE["stosignsgd"],
    "adamw": TABLE["adamw"],
    "adamw-expected": Choice("adamw", "expected", hypers=ADAM),
    "adamw-stosign": TABLE["adamw-stosign"],
    "adamax": Choice("adamax"),
    "adamax-expected": Choice("adamax", "expected"),
    "adamax-stosign": TABLE["adamax-stosign"],
}


#: Kinds of noise of the stochastic sign beside AdamW and the sign's mean, one state for all.
NOISE: dict[str, Choice] = {
    "adamw": TABLE["adamw"],
    "adamw-stosign-golden": Choice("adamw", GOLDEN, hypers=ADAM),
    "adamw-stosign": TABLE["adamw-stosign"],
    "adamw-stosign-antithetic": Choice("adamw", "stosign:noise=antithetic", hypers=ADAM),
    "adamw-expected": ABLATION["adamw-expected"],
    "adamw-stosign-then-golden": Choice("adamw", FRESH, hypers=ADAM, later=GOLDEN),
}

#: What StoSignSGD's G forgets, and where its m starts (the paper: beta2 = 1, m1 = g1).
STOSIGNSGD: dict[str, Choice] = {
    "stosignsgd-99-zero": Choice("stosignsgd", "init:to=zero", hypers={"beta2": 0.99}),
    "stosignsgd-99": Choice("stosignsgd", hypers={"beta2": 0.99}),
    "stosignsgd-999-zero": Choice("stosignsgd", "init:to=zero", hypers={"beta2": 0.999}),
    "stosignsgd-zero": Choice("stosignsgd", "init:to=zero", hypers=PAPER),
}

#: Moments of 4 bits beside 8 and 32, each optimizer at the best lr known for it.
FOUR_BITS: dict[str, Choice] = {
    "adamw-fp4": Choice("adamw", state="fp4", hypers=ADAM),
    "adamw-stosign-golden-fp4": Choice("adamw", GOLDEN, state="fp4", hypers=ADAM),
    "adamw-fp32": TABLE["adamw-fp32"],
    "stosignsgd-99-fp4": Choice("stosignsgd", state="m=fp4,G=fp8", hypers={"beta2": 0.99}),
    "adamw-999-fp4": Choice("adamw", state="fp4", hypers=ADAM_999),
    "adamw-999-fp8": Choice("adamw", hypers=ADAM_999),
    "s3-fp4": Choice("s3", state="fp4", long=-5),
    "s3-fp8": Choice("s3", long=-5),
    "lion-fp4": Choice("lion", state="fp4", long=-8),
    "lion-fp8": Choice("lion", long=-8),
}


def _forms() -> dict[str, Choice]:
    made = {
        "adamw-fp32": TABLE["adamw-fp32"],
        "adamw-999": Choice("adamw", state="fp32", hypers=ADAM_999),
        "adamw-clip": Choice("adamw", state="fp32", hypers=ADAM, clip=1.0),
    }
    for p in (1, 2, 3, 5):
        for betas, hypers in (("Same", {"beta": 0.95}), ("Different", ADAM_999)):
            for nesterov in ("Nesterov", ""):
                name = f"s3-p{p}-{betas.lower()}" + ("-nesterov" if nesterov else "")
                spec = f"{FORMS}:S3P{p}{betas}{nesterov}"
                # abs(g)^5 of g = 1e-9 is below fp32's range: S3 has no eps, so any scale will do
                made[name] = Choice(spec, state="fp32", hypers=hypers, scale=2.0**16)
    return made


#: Loss spikes: AdamW and the S3 paper's ablation, all on fp32 state.
SPIKES: dict[str, Choice] = _forms()

#: The two regimes of FP8.  OURS: state of FP8 with block scales, rounded without bias, beside fp32
#: masters.  THEIRS, the StoSignSGD paper's as far as it is known: bf16 masters, E5M2 gradients,
#: E4M3 state, all without scales and to nearest.  In both gradients are clipped to norm 1.
OURS: dict[str, Any] = {"clip": 1.0}
THEIRS: dict[str, Any] = {
    "state": "fp32", "raw": True, "gradient": "e5m2", "masters": "bf16", "clip": 1.0,
    "decay": SOURCES_DECAY,
}  # fmt: skip
#: With gradients 64 times as large, as a loss scale makes them: fewer of them are below E4M3.
THEIRS_64 = {**THEIRS, "scale": 64.0}
REGIMES = {"ours": OURS, "theirs": THEIRS, "theirs64": THEIRS_64}
ZERO = "init:to=zero"
FORGETS = {"beta2": 0.99}


def _papers() -> dict[str, Choice]:
    made: dict[str, Choice] = {}
    for regime, setting in REGIMES.items():
        aligned = -6 if regime == "ours" else -7  # on raw state every update is nearly a sign
        arms = {
            "adamw": Choice("adamw", hypers=ADAM, middle=aligned),
            "signum": Choice("signum", middle=-7),
            "lion": Choice("lion", middle=-7),
            "stosignsgd": Choice("stosignsgd", ZERO, hypers=FORGETS, middle=aligned),
            "stosignsgd-paper": Choice("stosignsgd", hypers=PAPER, middle=aligned),
            "stosignsgd-v2": Choice("stosignsgd_v2", middle=aligned),
            "ie-stosignsgd": Choice("ie_stosignsgd", ZERO, hypers=FORGETS, middle=aligned),
        }
        made |= {f"{n}-{regime}": replace(arm, **setting) for n, arm in arms.items()}
    ours = {
        "stosignsgd-first": Choice("stosignsgd", hypers=FORGETS),
        "adamw-expected": Choice("adamw", "expected", hypers=ADAM),
        "adamw-stosign": Choice("adamw", FRESH, hypers=ADAM),
        "adamax-stosign": Choice("adamax", FRESH),
        "rmsprop-stosign": Choice("rmsprop", FRESH),
        "nadam": Choice("nadam", hypers={"betas": (0.9, 0.95)}),
        "adan": Choice("adan", middle=-5),
        "signsgd": Choice("signsgd", middle=-7),
        "s3gd": Choice("s3gd"),
        "s3gd-raw": Choice("s3gd", state="fp8-raw"),
        "adamw-fp32": Choice("adamw", state="fp32", hypers=ADAM),
        "adamw-fp4": Choice("adamw", state="fp4", hypers=ADAM),
        "adamw-golden-fp4": Choice("adamw", GOLDEN, state="fp4", hypers=ADAM),
        "adamw-decay": Choice("adamw", hypers=ADAM, decay=SOURCES_DECAY),
    }
    made |= {f"{n}-ours": replace(arm, **OURS) for n, arm in ours.items()}
    # Not clipped: S3, as its paper has it, and what clipping does to AdamW
    made |= {
        "s3-ours": Choice("s3", middle=-5),
        "s3-fp32-ours": Choice("s3", state="fp32", middle=-5),
        "adamw-noclip-ours": Choice("adamw", hypers=ADAM),
    }
    for p in (1, 2, 3, 5):  # the S3 paper's Figure 9
        for beta in (0.9, 0.95, 0.98):
            spec, hypers = f"{FORMS}:S3P{p}SameNesterov", {"beta": beta}
            made[f"s3-p{p}-{beta:g}"] = Choice(spec, state="fp32", hypers=hypers, scale=2.0**16)
    return made


#: Arms of papers.py, by name and regime.
PAPERS: dict[str, Choice] = _papers()

#: Muon of the blocks' matrices with AdamW of the rest, one lr for both: torch's own two, and ours
#: in several storages: of both rules, or of momentum alone.
_BESIDE: dict[str, Any] = {
    "clip": 1.0, "rest": "adamw", "hypers": {"momentum": 0.95}, "middle": -5
}  # fmt: skip
MUON: dict[str, Choice] = {
    "torch-muon": Choice("torch.optim.Muon", state="fp32", **_BESIDE),
    "muon-fp32": Choice("muon_rms", state="fp32", **_BESIDE),
    "muon": Choice("muon_rms", **_BESIDE),
    "muon-e4m3": Choice("muon_rms", state="m=fp8", rest_state="fp8", **_BESIDE),
    "muon-momentum": Choice("muon_rms", rest_state="fp32", **_BESIDE),
    "muon-fp4": Choice("muon_rms", state="fp4", **_BESIDE),
    "muon-fp4-momentum": Choice("muon_rms", state="fp4", rest_state="fp8", **_BESIDE),
}

FINETUNE = ("adamw-fp32", "signsgd", "signum", "stosignsgd", "s3gd", "adamw-fp4", "adamw")

CHOICES: dict[str, Choice] = {
    **SPIKES,
    **ABLATION,
    **NOISE,
    **STOSIGNSGD,
    **FOUR_BITS,
    **PAPERS,
    **MUON,
    **MORE,
    **TABLE,
}


@cache
def _class(spec: str, convert: str | None, state: str, math: str) -> Any:
    if spec.startswith("torch.optim."):
        return getattr(torch.optim, spec.rpartition(".")[2])
    import signconv

    return signconv.compile(spec, convert=convert, state=state, math=math)


def make(name: str, weights: list[Tensor], lr: float, seed: int) -> torch.optim.Optimizer:
    """The optimizer `name` of `weights` (fp32 leaves); 1-D weights do not decay."""
    choice = CHOICES[name]
    if choice.rest is not None:
        return _hybrid(choice, weights, lr, seed)
    cls = _class(choice.spec, choice.convert, choice.state, choice.math)
    matrices = [w for w in weights if w.dim() > 1]
    vectors = [w for w in weights if w.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": choice.decay / lr},
        {"params": vectors, "weight_decay": 0.0},
    ]
    hypers = dict(choice.hypers)
    if cls is torch.optim.AdamW:
        hypers["fused"] = True
    else:
        hypers["seed"] = seed
    made: torch.optim.Optimizer = cls(groups, lr=lr, **hypers)
    return made


#: Of the weights of gpt.GPT those of tokens and of positions come first.
EMBEDDINGS = 2


class Both:
    """Two of torch's own optimizers as runs.py uses one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [g for part in self.parts for g in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {p: x for part in self.parts for p, x in part.state.items()}

    def step(self) -> None:
        for part in self.parts:
            part.step()


def _hybrid(choice: Choice, weights: list[Tensor], lr: float, seed: int) -> Any:
    """One rule for the matrices of blocks, another for embeddings and vectors."""
    matrices = [w for w in weights[EMBEDDINGS:] if w.dim() > 1]
    groups = [
        {"params": weights[:EMBEDDINGS], "weight_decay": choice.decay / lr},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    own = {"lr": lr, "weight_decay": choice.decay / lr, **choice.hypers}
    if choice.spec == "torch.optim.Muon":
        muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **own)
        return Both(muon, torch.optim.AdamW(groups, lr=lr, fused=True, betas=ADAM["betas"]))
    import signconv

    assert choice.rest is not None
    first = _class(choice.spec, None, choice.state, choice.math)(matrices, seed=seed, **own)
    second = _class(choice.rest, None, choice.rest_state or choice.state, choice.math)
    return signconv.hybrid(first, second(groups, lr=lr, seed=seed + 1, **ADAM))


def successor(
    name: str, old: torch.optim.Optimizer, weights: list[Tensor], seed: int
) -> torch.optim.Optimizer:
    """What steps `weights` from ``later_from`` on: other passes, the moments that `old` has.

    Programs that differ in the sign's noise alone have one meaning of a moment; a state_dict names
    its program all the same, so the name is changed by hand.
    """
    choice = CHOICES[name]
    new = _class(choice.spec, choice.later, choice.state, choice.math)(
        [{"params": g["params"]} for g in old.param_groups], seed=seed
    )
    saved = old.state_dict()
    for group in saved["param_groups"]:
        group["program"] = new.program.hash
    new.load_state_dict(saved)
    return new


def moments(optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the moments in state[p]."""
    if hasattr(optimizer, "parts"):  # each with its own
        return []
    program = getattr(optimizer, "program", None)
    return [m.name for m in program.moments] if program else ["exp_avg", "exp_avg_sq"]


@torch.no_grad()
def round_raw(optimizer: torch.optim.Optimizer) -> None:
    """Store every moment as raw E4M3 would hold it: round to nearest, no scale, saturate."""
    names = moments(optimizer)
    for state in optimizer.state.values():
        for name in names:
            value = state[name]
            value.copy_(value.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn))


@torch.no_grad()
def rounded_gradients(gradients: list[Tensor]) -> None:
    """What E5M2 without a scale holds of the gradients: to nearest, saturating."""
    for g in gradients:
        g.copy_(g.clamp(-E5M2_MAX, E5M2_MAX).to(torch.float8_e5m2))


def state_bytes(optimizer: torch.optim.Optimizer, raw: bool) -> float:
    """Bytes of moments and scales for each parameter element; counters left out."""
    size = count = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            count += p.numel()
            for name, value in optimizer.state.get(p, {}).items():
                if name not in ("step", "offset") and isinstance(value, Tensor):
                    size += value.numel() * (1 if raw else value.element_size())
    return size / count if count else math.nan
