"""FP8 state: AdamW collapses on raw FP8; which optimizers reach its loss, and how fast?

    python examples/results/fp8_state.py [--quick]

The source: GPT-2 in FP8, AdamW fails, StoSignSGD is 1.44 to 2.14 times faster than the baselines
(arXiv 2604.15416, abstract); m and v of AdamW are 100% zero at step 103 (its Table 12).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from claims import Record, Summary, main, of_kind, spread, sweep_table
from plan import REFERENCE, Scale, full_sweep
from runs import COLLAPSE_STEP, final_loss

COLOURS = ("tab:blue", "tab:red", "tab:green", "tab:orange", "tab:purple", "tab:brown", "tab:pink")


def steps_to(record: Record, target: float) -> float | None:
    """Steps until the held-out loss is at most target, between evaluations linearly."""
    before: tuple[float, float] | None = None
    for step, loss in record["held_out"]:
        if loss is None:
            return None
        if loss <= target:
            if before is None or before[1] <= target:
                return float(step)
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (step - before[0])
        before = (step, loss)
    return None


def zero_share(record: Record, step: int) -> dict[str, list[float]] | None:
    """Shares of zeros after `step`, or after the last step before it that was looked at."""
    looked = {int(k): v for k, v in record["zero_shares"].items() if int(k) <= step}
    return looked[max(looked)] if looked else None


def row(name: str, runs: list[Record], target: float | None) -> dict[str, Any]:
    """What the table says of one optimizer."""
    reached = [steps_to(r, target) if target is not None else None for r in runs]
    got = [x for x in reached if x is not None]
    steps = runs[0]["steps"]
    return {
        "optimizer": name,
        "lr": runs[0]["lr"],
        "held_out": spread([final_loss(r) for r in runs]),
        "steps": steps,
        "tokens": steps * runs[0]["tokens_per_step"],
        "steps_to_reference": spread(got) if got else None,
        "reached_by": f"{len(got)} of {len(runs)}",
        "speedup": round(steps / (sum(got) / len(got)), 3) if got else None,
        "state_bytes_per_parameter": round(runs[0]["state_bytes_per_parameter"], 3),
        "optimizer_ms": spread([r["optimizer_ms"] for r in runs if r["optimizer_ms"]]),
        "tokens_per_second": max(r["tokens_per_second"] for r in runs),
        "zeros": zero_share(runs[0], COLLAPSE_STEP),
        "update_rms": runs[0]["update_rms"],
        "spikes": [r["spikes"] for r in runs],
        "status": [r["status"] for r in runs],
    }


def by_lr(records: Mapping[str, Record], name: str) -> dict[float, list[Record]]:
    """The long runs of one optimizer by lr."""
    own: dict[float, list[Record]] = {}
    for r in (*of_kind(records, "near", name), *of_kind(records, "full", name)):
        own.setdefault(r["lr"], []).append(r)
    return own


def best_runs(records: Mapping[str, Record], name: str, scale: Scale) -> list[Record]:
    """The long runs at the best lr of long runs; none while their sweep is incomplete."""
    _, best = full_sweep(records, name, scale)
    return by_lr(records, name)[best] if best else []


def mean_loss(runs: list[Record]) -> float | None:
    """Mean final held-out loss of the runs that did not diverge."""
    finite = [x for x in map(final_loss, runs) if math.isfinite(x)]
    return sum(finite) / len(finite) if finite else None


def full_length(
    records: Mapping[str, Record], name: str, scale: Scale, targets: tuple[float | None, ...]
) -> Summary | None:
    """The sweep of long runs of one optimizer; None where only the chosen lr was run.

    best is the lr of the least loss on the first seed, the only one that all lrs have; its runs
    are compared as a table row is, to AdamW at its best and at the lr of the short sweep.
    """
    if not of_kind(records, "near", name):
        return None
    own = by_lr(records, name)
    losses = {lr: spread([final_loss(r) for r in runs]) for lr, runs in own.items()}
    missing, best = full_sweep(records, name, scale)
    return {
        "lrs": [{"lr": lr, "held_out": losses[lr]} for lr in sorted(own)],
        "complete": not missing,
        "best": best,
        "held_out": losses[best] if best else None,
        "to_best": row(name, own[best], targets[0]) if best else None,
        "to_short": row(name, own[best], targets[1]) if best else None,
    }


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per optimizer; the target is the mean final loss of AdamW on fp32 state."""
    target = mean_loss(of_kind(records, "full", REFERENCE))
    long_target = mean_loss(best_runs(records, REFERENCE, scale))
    targets = (long_target, target)
    names = [n for n in scale.table if of_kind(records, "full", n)]
    extras = [n for n in scale.extras if of_kind(records, "short", n)]
    return {
        "target": target,
        "rows": [row(n, of_kind(records, "full", n), target) for n in names],
        "short_rows": [row(n, of_kind(records, "short", n), None) for n in extras],
        "long_target": long_target,
        "full_length": {n: f for n in scale.near if (f := full_length(records, n, scale, targets))},
        "sweeps": {n: sweep_table(records, "sweep", n) for n in (*scale.table, *scale.extras)},
    }


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Held-out loss of every optimizer, at the best lr that is known; zeros of the raw ones."""
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    ends = []
    for i, row_ in enumerate(summary["rows"]):
        name = row_["optimizer"]
        best = summary["full_length"].get(name, {}).get("best") or row_["lr"]
        for j, record in enumerate(by_lr(records, name)[best]):
            steps, losses = zip(*record["held_out"][1:])
            curve = [math.nan if x is None else x for x in losses]
            ends += [x for x in curve[-1:] if math.isfinite(x) and x < 6]
            label = f"{name} (lr {best:g})" if j == 0 else None
            style = "-" if i < len(COLOURS) else "--"
            left.plot(steps, curve, style, color=COLOURS[i % len(COLOURS)], lw=1.2, label=label)
    if (target := summary["long_target"] or summary["target"]) is not None:
        left.axhline(target, color="black", lw=0.8, ls=":")
    if ends:
        left.set_ylim(min(ends) - 0.05, max(ends) + 1.6)
    left.set(
        xlabel="step", ylabel="held-out loss (nats per byte)", title="held-out loss, all seeds"
    )
    left.legend(fontsize=7, ncols=2)
    left.grid(alpha=0.25)
    for i, row_ in enumerate(r for r in summary["rows"] if r["optimizer"] != REFERENCE):
        record = of_kind(records, "full", row_["optimizer"])[0]
        for k, name in enumerate(next(iter(record["zero_shares"].values()), {})):
            points = sorted((int(s), v[name][0]) for s, v in record["zero_shares"].items())
            if max(y for _, y in points) > 0.005:
                label = f"{row_['optimizer']}: {name}"
                style = ("-", "--")[k % 2]
                colour = COLOURS[i % len(COLOURS)]
                right.plot(*zip(*points), style, marker="o", ms=3, color=colour, label=label)
    right.set(xscale="log", ylim=(-0.02, 1.02), xlabel="step", title="share of state that is zero")
    right.grid(alpha=0.25)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=7)


if __name__ == "__main__":
    main("fp8_state", __doc__, summarize, draw, (12, 5))
