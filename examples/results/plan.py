"""Which runs each claim needs, in the order of their worth; a pure function of what is done.

Learning rates are chosen by a sweep: three lrs of the grid, then further ones while the best lies
at the edge, five at most.  Runs at the chosen lr come into being when their sweep is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optimizers import ABLATION, CHOICES, FINETUNE, SPIKES, TABLE, rate
from runs import Run, final_loss

Records = Mapping[str, Mapping[str, Any]]
WIDEST = 5  # lrs of one sweep, at most
SWEEP_SEED = 0  # of no reported run
CHECKPOINT = "pretrained.pt"  # AdamW's, where fine-tuning starts
REFERENCE = "adamw-fp32"
FACTORS = (1, 3, 10)  # of AdamW's lr, for the spikes


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
    near: tuple[str, ...] = ("adamw", "adamw-stosign")


FULL_SCALE = Scale(full=100_000_000, short=10_000_000, finetune=5_000_000)

# ---------------------------------------------------------------- sweeps


def _sweep(
    done: Records, name: str, scale: Scale, make: Callable[[float], Run]
) -> tuple[list[Run], float | None]:
    """The runs of one sweep that are still missing, and the best lr once none is."""
    middle = CHOICES[name].middle
    half = scale.first_lrs // 2
    indexes = list(range(middle - half, middle - half + scale.first_lrs))
    widest = WIDEST if scale.first_lrs > 1 else 1
    while True:
        runs = [make(rate(i)) for i in indexes]
        missing = [run for run in runs if run.id not in done]
        if missing:
            return missing, None
        losses = [final_loss(done[run.id]) for run in runs]
        best = losses.index(min(losses))  # the smallest lr where all diverged
        if len(indexes) >= widest or 0 < best < len(indexes) - 1:
            return [], rate(indexes[best])
        if best == 0:
            indexes.insert(0, indexes[0] - 1)
        else:
            indexes.append(indexes[-1] + 1)


def sweep(done: Records, name: str, scale: Scale) -> tuple[list[Run], float | None]:
    """The sweep of one optimizer from scratch; shared by every claim that trains it."""

    def make(lr: float) -> Run:
        return Run(f"sweep/{name}/{lr:g}", "sweep", name, lr, scale.short, SWEEP_SEED)

    return _sweep(done, name, scale, make)


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

    missing, best = _sweep(done, name, scale, make)
    return missing, best and float(f"{best / 10:.1g}")


# ---------------------------------------------------------------- stages


def full(
    done: Records, name: str, seed: int, scale: Scale, claim: str = "fp8_state"
) -> Iterator[Run]:
    """A long run at the chosen lr."""
    _, lr = sweep(done, name, scale)
    if lr is not None:
        save = CHECKPOINT if name == REFERENCE and seed == scale.seeds[0] else ""
        yield Run(
            f"full/{name}/{seed}", claim, name, lr, scale.full, seed, save=save, evaluations=40
        )


def near(done: Records, name: str, seed: int, scale: Scale) -> Iterator[Run]:
    """Long runs at the lrs beside the chosen one: does the short sweep choose well?"""
    _, lr = sweep(done, name, scale)
    if lr is not None:
        grid = [rate(i) for i in range(-20, 5)]
        middle = grid.index(lr)
        for lr_ in (grid[middle - 1], grid[middle + 1]):
            yield Run(f"near/{name}/{lr_:g}/{seed}", "fp8_state", name, lr_, scale.full, seed)


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


def spiking(done: Records, factor: int, seed: int, scale: Scale) -> Iterator[Run]:
    """Every form at one multiple of AdamW's chosen lr."""
    _, lr = sweep(done, REFERENCE, scale)
    if lr is not None:
        for name in scale.spikes:
            id_ = f"spikes/{name}/x{factor}/{seed}"
            yield Run(id_, "spikes", name, lr * factor, scale.short, seed)


def pending(
    done: Records, have: Collection[str], scale: Scale, claims: Collection[str]
) -> Iterator[Run]:
    """Every run that can start now and is not done, the most valuable first.

    done: records by run id; have: names of checkpoints that exist; claims: of fp8_state, finetune,
    spikes, ablation and ema_stall, those that are wanted.
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
    for factor in sorted(scale.factors, reverse=True):
        if "spikes" in claims:
            for seed in scale.seeds:
                yield from spiking(done, factor, seed, scale)
        if "ablation" in claims:  # between the spikes at the largest lr and the others
            yield from at_chosen_lr(done, "ablation", scale.ablation, scale)
    if "ema_stall" in claims:
        yield from at_chosen_lr(done, "ema_stall", scale.stall, scale)
    if "fp8_state" in claims:
        yield from at_chosen_lr(done, "fp8_state", scale.extras, scale)
        for seed in scale.seeds:
            for name in scale.near:
                yield from near(done, name, seed, scale)


def at_chosen_lr(done: Records, claim: str, names: Collection[str], scale: Scale) -> Iterator[Run]:
    """Sweeps of several optimizers, then their short runs."""
    for name in names:
        yield from sweep(done, name, scale)[0]
    for seed in scale.seeds:
        for name in names:
            yield from short(done, claim, name, seed, scale)
