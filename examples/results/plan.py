"""Which runs each claim needs, in the order of their worth; a pure function of what is done.

Learning rates are chosen by a sweep: three lrs of the grid, then further ones while the best lies
at the edge, five at most.  Runs at the chosen lr come into being when their sweep is complete.
Sweeps are short; for some optimizers a second one of long runs begins around the chosen lr.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import papers
from optimizers import (
    ABLATION,
    CHOICES,
    FINETUNE,
    FOUR_BITS,
    NOISE,
    SPIKES,
    STOSIGNSGD,
    TABLE,
    rate,
)  # fmt: skip
from runs import Run
from search import Records, search

SWEEP_SEED = 0  # of no reported run
CHECKPOINT = "pretrained.pt"  # AdamW's, where fine-tuning starts
REFERENCE = "adamw-fp32"
FACTORS = (1, 3, 10)  # of AdamW's lr, for the spikes
LONG_FACTOR = 10  # of the long runs among them
LEAST = -20  # index of the least lr of the grid
CLAIMS = (
    "fp8_state", "finetune", "spikes", "ablation", "ema_stall", "noise", "stosignsgd", "four_bits",
    "large", "plateau", *papers.MODELS,
)  # fmt: skip
#: What a claim's runs train (gpt.MODELS), where it is not the model of 25 million parameters.
MODELS = {"large": "large", "plateau": "small", **papers.MODELS}
GRID = [rate(i) for i in range(LEAST, 5)]
STOSIGN_FACTOR = 0.2  # of the base's lr: the root mean square of AdamW's update


@dataclass(frozen=True)
class Scale:
    """How long the runs are, and which."""

    full: int  # tokens
    short: int  # tokens of sweeps, spikes and the ablation
    finetune: int
    seeds: tuple[int, ...] = (1, 2)
    first_lrs: int = 3
    table: tuple[str, ...] = tuple(TABLE)
    spikes: tuple[str, ...] = tuple(SPIKES)
    factors: tuple[int, ...] = FACTORS
    ablation: tuple[str, ...] = tuple(ABLATION)
    finetuned: tuple[str, ...] = FINETUNE
    extras: tuple[str, ...] = ("signum-raw", "lion-raw", "torch-adamw", "stosignsgd-decayed")
    stall: tuple[str, ...] = ("s3gd-99-raw", "s3gd-99")
    near: tuple[str, ...] = ("adamw-stosign", "adamw-fp32", "s3", "signum", "stosignsgd", "s3gd")
    defaults: tuple[str, ...] = ("adamw-stosign",)  # whose default lr is to be decided
    long_spikes: tuple[str, ...] = ("adamw-fp32", "s3-p3-same-nesterov")
    more_seeds: tuple[int, ...] = (3, 4)  # where a close claim depends on them:
    closer: tuple[str, ...] = ("adamw-fp32", "adamw-stosign", "s3gd", "signum")
    repeated_spikes: tuple[str, ...] = (
        "adamw-fp32", "adamw-999", "s3-p3-same-nesterov", "s3-p3-different-nesterov",
    )  # fmt: skip
    noise: tuple[str, ...] = tuple(NOISE)
    stosignsgd: tuple[str, ...] = tuple(STOSIGNSGD)
    four_bits: tuple[str, ...] = tuple(FOUR_BITS)
    four_bits_closer: tuple[str, ...] = tuple(FOUR_BITS)[:3]  # with more seeds, first
    large: tuple[str, ...] = (
        "adamw", "adamw-stosign-antithetic", "adamw-fp4", "adamw-stosign-golden",
    )  # fmt: skip
    large_seeds: tuple[int, ...] = (1, 2, 3)
    plateau: tuple[str, ...] = tuple(NOISE)
    plateau_tokens: int = 3_000_000
    papers: papers.Part = papers.ALL


FULL_SCALE = Scale(full=100_000_000, short=10_000_000, finetune=5_000_000)

# ---------------------------------------------------------------- sweeps


def sweep(done: Records, name: str, scale: Scale) -> tuple[list[Run], float | None]:
    """The sweep of one optimizer from scratch; shared by every claim that trains it."""

    def make(lr: float) -> Run:
        return Run(f"sweep/{name}/{lr:g}", "sweep", name, lr, scale.short, SWEEP_SEED)

    return search(done, CHOICES[name].middle, scale.first_lrs, make)


def finetune_sweep(done: Records, name: str, scale: Scale) -> tuple[list[Run], float | None]:
    """The sweep of one optimizer from the checkpoint, on the other kind of text.

    Fine-tuning begins a decade below: rates are those of the grid, divided by ten.
    """

    def make(lr: float) -> Run:
        lr = float(f"{lr / 10:.1g}")
        name_ = f"finetune-sweep/{name}/{lr:g}"
        return Run(
            name_, "finetune", name, lr, scale.finetune, SWEEP_SEED, "headers", start=CHECKPOINT
        )

    missing, best = search(done, CHOICES[name].middle, scale.first_lrs, make)
    return missing, best and float(f"{best / 10:.1g}")


# ---------------------------------------------------------------- stages


def full(
    done: Records, name: str, seed: int, scale: Scale, claim: str = "fp8_state"
) -> Iterator[Run]:
    """A long run at the chosen lr."""
    _, lr = sweep(done, name, scale)
    if lr is not None:
        yield long_run(done, name, lr, seed, scale, claim)


def long_run(
    done: Records, name: str, lr: float, seed: int, scale: Scale, claim: str = "fp8_state"
) -> Run:
    """The long run of one optimizer at any lr; full/ at the lr that the short sweep chose."""
    _, chosen = sweep(done, name, scale)
    own = lr == chosen
    id_ = f"full/{name}/{seed}" if own else f"near/{name}/{lr:g}/{seed}"
    save = CHECKPOINT if own and name == REFERENCE and seed == scale.seeds[0] else ""
    return Run(id_, claim, name, lr, scale.full, seed, save=save, evaluations=40)


def full_sweep(done: Records, name: str, scale: Scale) -> tuple[list[Run], float | None]:
    """A sweep of long runs around the lr that the short one chose: does that choose well?"""
    _, chosen = sweep(done, name, scale)
    if chosen is None:
        return [], None
    seed = scale.seeds[0]
    return search(done, GRID.index(chosen) + LEAST, 3, lambda lr: long_run(
        done, name, lr, seed, scale
    ))  # fmt: skip


def around(done: Records, name: str, scale: Scale) -> list[float]:
    """The chosen lr between its neighbours on the grid; empty before the sweep is complete."""
    _, chosen = sweep(done, name, scale)
    if chosen is None:
        return []
    middle = GRID.index(chosen)
    return GRID[middle - 1 : middle + 2]


def default_lrs(done: Records, name: str, scale: Scale) -> list[float]:
    """What a default lr is decided between: the factor of equal size, and the grid."""
    lrs = around(done, name, scale)
    return [float(f"{STOSIGN_FACTOR * lrs[1]:.1g}"), *lrs] if lrs else []


def at_best_lr(done: Records, name: str, seed: int, scale: Scale) -> Iterator[Run]:
    """A long run at the best lr of the sweep of long runs."""
    _, lr = full_sweep(done, name, scale)
    if lr is not None:
        yield long_run(done, name, lr, seed, scale)


def short(done: Records, claim: str, name: str, seed: int, scale: Scale) -> Iterator[Run]:
    """A run of the sweep's length at the chosen lr, with a reported seed."""
    _, lr = sweep(done, name, scale)
    if lr is not None:
        yield Run(f"short/{name}/{seed}", claim, name, lr, scale.short, seed)


def finetuning(done: Records, scale: Scale, have: Collection[str]) -> Iterator[Run]:
    """Sweeps and runs from the checkpoint; first the checkpoint itself where it was lost."""
    wanted: list[Run] = []
    for name in scale.finetuned:
        missing, lr = finetune_sweep(done, name, scale)
        wanted += missing
        if lr is not None:
            wanted += [
                Run(
                    f"finetune/{name}/{seed}", "finetune", name, lr, scale.finetune, seed,
                    "headers", start=CHECKPOINT,
                )
                for seed in scale.seeds
            ]  # fmt: skip
    if all(run.id in done for run in wanted):
        return
    if CHECKPOINT in have:
        yield from wanted
        return
    seed = scale.seeds[0]
    if f"full/{REFERENCE}/{seed}" in done:  # of an earlier call: the weights are gone
        again = sum(key.startswith("base/") for key in done)
        for run in full(done, REFERENCE, seed, scale):
            yield Run(**{**vars(run), "id": f"base/{again}", "claim": "finetune"})


def spiking(
    done: Records, names: Collection[str], factor: int, seed: int, scale: Scale, long: bool = False
) -> Iterator[Run]:
    """Forms at one multiple of AdamW's chosen lr."""
    _, lr = sweep(done, REFERENCE, scale)
    if lr is not None:
        kind, tokens = ("long-spikes", scale.full) if long else ("spikes", scale.short)
        for name in names:
            id_ = f"{kind}/{name}/x{factor}/{seed}"
            yield Run(id_, "spikes", name, lr * factor, tokens, seed)


def at_known_lr(
    claim: str,
    names: Collection[str],
    seeds: Collection[int],
    scale: Scale,
    factor: int = 0,
    tokens: int | None = None,
) -> Iterator[Run]:
    """Long runs at the best lr that earlier sweeps found (AdamW's and its sign's where there was
    none), or ``factor`` places of the grid from it."""
    for seed in seeds:
        for name in names:
            lr = rate(CHOICES[name].long + factor)
            id_ = f"{claim}/{name}/{lr:g}/{seed}"
            yield Run(id_, claim, name, lr, tokens or scale.full, seed, evaluations=40)


def at_known_lrs(scale: Scale, claims: Collection[str]) -> Iterator[Run]:
    """Kinds of noise, StoSignSGD's settings and moments of 4 bits: first seeds first, then more of
    them, then the neighbours of the lr with one seed."""
    wanted = {
        "noise": scale.noise, "four_bits": scale.four_bits_closer, "stosignsgd": scale.stosignsgd,
    }  # fmt: skip
    first = scale.seeds[:1]
    others = [name for name in scale.four_bits if name not in scale.four_bits_closer]
    chosen = {claim: names for claim, names in wanted.items() if claim in claims}
    for claim, names in chosen.items():
        yield from at_known_lr(claim, names, scale.seeds, scale)
    if "four_bits" in claims and (own := "stosignsgd-99-fp4") in others:
        yield from at_known_lr("four_bits", [own], scale.large_seeds, scale)
    for claim, names in chosen.items():
        close = names[:2] if claim == "stosignsgd" else names  # the others ended far above
        yield from at_known_lr(claim, close, scale.more_seeds, scale)
    if "four_bits" in claims:
        yield from at_known_lr("four_bits", others, first, scale)
    for factor in (-1, 1):
        for claim, names in chosen.items():
            yield from at_known_lr(claim, names, first, scale, factor)
    if "four_bits" in claims:
        yield from at_known_lr("four_bits", others, scale.seeds, scale)


def pending(
    done: Records, have: Collection[str], scale: Scale, claims: Collection[str]
) -> Iterator[Run]:
    """Every run that can start now and is not done, the most valuable first.

    done: records by run id; have: names of checkpoints that exist; claims: of CLAIMS, those that
    are wanted.
    """
    for run in _stages(done, have, scale, claims):
        if run.id not in done:
            yield run


def _stages(
    done: Records, have: Collection[str], scale: Scale, claims: Collection[str]
) -> Iterator[Run]:
    first, *later = scale.seeds
    if {"fp8_state", "finetune", "spikes"} & set(claims):
        yield from sweep(done, REFERENCE, scale)[0]
    if "finetune" in claims:
        yield from full(done, REFERENCE, first, scale)
    if "fp8_state" in claims:
        for name in scale.table:
            yield from sweep(done, name, scale)[0]
        for name in scale.table:
            yield from full(done, name, first, scale)
    if "finetune" in claims:
        yield from finetuning(done, scale, have)
    if "fp8_state" in claims:
        for seed in later:
            for name in scale.table:
                yield from full(done, name, seed, scale)
    highest, *others = sorted(scale.factors, reverse=True)
    if "spikes" in claims:
        for seed in scale.seeds:
            yield from spiking(done, scale.spikes, highest, seed, scale)
    if "ablation" in claims:
        yield from at_chosen_lr(done, "ablation", scale.ablation, scale)
    if "ema_stall" in claims:
        yield from at_chosen_lr(done, "ema_stall", scale.stall, scale)
    if "fp8_state" in claims:
        yield from at_chosen_lr(done, "fp8_state", scale.extras, scale)
        yield from at_full_length(done, scale)
        for seed in later:
            for name in scale.near:
                yield from at_best_lr(done, name, seed, scale)
    if "spikes" in claims:
        yield from spiking(done, scale.long_spikes, LONG_FACTOR, first, scale, long=True)
        for factor in others:
            for seed in scale.seeds:
                yield from spiking(done, scale.spikes, factor, seed, scale)
        for seed in later:
            yield from spiking(done, scale.long_spikes, LONG_FACTOR, seed, scale, long=True)
    for seed in scale.more_seeds:
        if "ablation" in claims:
            for name in scale.ablation:
                yield from short(done, "ablation", name, seed, scale)
        if "fp8_state" in claims:
            for name in scale.closer:
                yield from at_best_lr(done, name, seed, scale)
        if "spikes" in claims:
            yield from spiking(done, scale.repeated_spikes, highest, seed, scale)
    if "fp8_state" in claims:
        for seed in later:
            for name in scale.near:
                for lr in around(done, name, scale):
                    yield long_run(done, name, lr, seed, scale)
    yield from at_known_lrs(scale, claims)
    if "large" in claims:
        yield from at_known_lr("large", scale.large, scale.large_seeds, scale)
    if "plateau" in claims:
        for seed in (*scale.seeds, *scale.more_seeds):
            for factor in (0, 1, 2, -1):
                yield from at_known_lr(
                    "plateau", scale.plateau, [seed], scale, factor, scale.plateau_tokens
                )
    yield from papers.runs(done, have, claims, scale.papers)


def at_full_length(done: Records, scale: Scale) -> Iterator[Run]:
    """The sweeps of long runs, and every seed where a default lr depends on one."""
    for name in scale.near:
        yield from full_sweep(done, name, scale)[0]
    for name in scale.defaults:
        for seed in scale.seeds:
            for lr in default_lrs(done, name, scale):
                yield long_run(done, name, lr, seed, scale)


def at_chosen_lr(done: Records, claim: str, names: Collection[str], scale: Scale) -> Iterator[Run]:
    """Sweeps of several optimizers, then their short runs."""
    for name in names:
        yield from sweep(done, name, scale)[0]
    for seed in scale.seeds:
        for name in names:
            yield from short(done, claim, name, seed, scale)
