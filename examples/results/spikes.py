"""Loss spikes at 1, 3 and 10 times AdamW's learning rate: AdamW and the S3 paper's ablation.

    python examples/results/spikes.py [--quick]

What a spike is, is fixed in runs.py: SPIKE_WINDOW and below.  The source: S3 "rarely experiences
loss spikes, even with a 10 times larger learning rate" (arXiv 2507.06464, abstract).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import runs as definition
from claims import Record, Summary, main, of_kind, spread, sweep_table
from optimizers import SPIKES
from plan import LONG_FACTOR, REFERENCE, Scale
from runs import final_loss

DRAWN = ("adamw-fp32", "adamw-999", "s3-p2-same-nesterov", "s3-p3-same-nesterov")
GROUPS = {  # what the forms are counted together as
    "AdamW, two pairs of betas": ("adamw-fp32", "adamw-999"),
    "AdamW, gradients clipped to norm 1": ("adamw-clip",),
    "S3, one beta": tuple(n for n in SPIKES if "-same" in n),
    "S3, two betas": tuple(n for n in SPIKES if "-different" in n),
}
COLOURS = ("tab:red", "tab:orange", "tab:green", "tab:blue")


def of_form(
    records: Mapping[str, Record], name: str, factor: int, kind: str = "spikes"
) -> list[Record]:
    """Runs of one form at one multiple of the lr, by seed."""
    own = [r for key, r in records.items() if key.startswith(f"{kind}/{name}/x{factor}/")]
    return sorted(own, key=lambda r: r["seed"])


def cell(own: list[Record]) -> dict[str, Any] | None:
    """Spikes and final loss of runs that differ in the seed; None where there are none."""
    if not own:
        return None
    return {
        "lr": own[0]["lr"],
        "steps": own[0]["steps"],
        "seeds": [r["seed"] for r in own],
        "spikes": [r["spikes"] for r in own],
        "held_out": spread([final_loss(r) for r in own]),
        "status": [r["status"] for r in own],
    }


def count(records: Mapping[str, Record], names: Sequence[str], factor: int) -> dict[str, int]:
    """Spikes of several forms at one multiple, and in how many runs."""
    own = [r for n in names for r in of_form(records, n, factor)]
    return {"spikes": sum(r["spikes"] for r in own), "runs": len(own)}


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per form, one cell per multiple; beside them the long runs."""
    rows = {n: {f: cell(of_form(records, n, f)) for f in scale.factors} for n in scale.spikes}
    long = {n: cell(of_form(records, n, LONG_FACTOR, "long-spikes")) for n in scale.long_spikes}
    factors = [f for f in scale.factors if any(r[f] for r in rows.values())]
    return {
        "definition": {
            "window": definition.SPIKE_WINDOW,
            "rise": definition.SPIKE_RISE,
            "sigmas": definition.SPIKE_SIGMAS,
            "gap": definition.SPIKE_GAP,
        },
        "factors": factors,
        "groups": {
            group: {str(f): count(records, names, f) for f in factors}
            for group, names in GROUPS.items()
        },
        "sweep": sweep_table(records, "sweep", REFERENCE),
        "rows": {n: {str(f): c for f, c in r.items()} for n, r in rows.items()},
        "long_factor": LONG_FACTOR,
        "long": {n: c for n, c in long.items() if c},
        "long_at_own_lr": cell(of_kind(records, "full", REFERENCE)),
    }


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Training loss of some forms, one panel per multiple that was run, every seed: the median
    of each part of a run, and up to its largest."""
    wanted = [("spikes", f, f"{f} times AdamW's lr") for f in summary["factors"]]
    if summary["long"]:
        wanted.append(("long-spikes", LONG_FACTOR, f"{LONG_FACTOR} times AdamW's lr, long"))
    panels = figure.subplots(1, len(wanted), sharey=True, squeeze=False)[0]
    for axes, (kind, factor, title) in zip(panels, wanted):
        for name, colour in zip(DRAWN, COLOURS):
            own = of_form(records, name, factor, kind)
            counts = [r["spikes"] for r in own]
            for i, record in enumerate(own):
                kept = record["train_loss"].items()
                loss = {k: [math.nan if x is None else x for x in v] for k, v in kept}
                n = len(loss["median"])
                steps = [(k + 1) * record["steps_done"] // n for k in range(n)]
                label = f"{name}: spikes by seed {counts}" if i == 0 else None
                axes.plot(steps, loss["median"], color=colour, lw=0.8, label=label)
                axes.fill_between(steps, loss["median"], loss["max"], color=colour, alpha=0.15)
        axes.set(title=title, xlabel="step", yscale="log")
        axes.grid(alpha=0.25, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    panels[0].set(ylabel="training loss (nats per byte)")


if __name__ == "__main__":
    main("spikes", __doc__, summarize, draw, (14, 4))
