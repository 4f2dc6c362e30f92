"""Loss spikes at 1, 3 and 10 times AdamW's learning rate: AdamW and the S3 paper's ablation.

    python examples/results/spikes.py [--quick]

What a spike is, is fixed in runs.py: SPIKE_WINDOW and below.  The source: S3 "rarely experiences
loss spikes, even with a 10 times larger learning rate" (arXiv 2507.06464, abstract).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import runs as definition
from claims import Record, Summary, main, smooth, spread, sweep_table
from plan import REFERENCE, Scale
from runs import final_loss

DRAWN = ("adamw-fp32", "adamw-999", "s3-p2-same-nesterov", "s3-p3-same-nesterov")
COLOURS = ("tab:red", "tab:orange", "tab:green", "tab:blue")


def cell(records: Mapping[str, Record], name: str, factor: int) -> dict[str, Any] | None:
    """Spikes and final loss of one form at one multiple of the lr; None where it was not run."""
    own = [records[k] for k in sorted(records) if k.startswith(f"spikes/{name}/x{factor}/")]
    if not own:
        return None
    return {
        "lr": own[0]["lr"],
        "spikes": [r["spikes"] for r in own],
        "held_out": spread([final_loss(r) for r in own]),
        "status": [r["status"] for r in own],
    }


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per form, one cell per multiple."""
    rows = {n: {f: cell(records, n, f) for f in scale.factors} for n in scale.spikes}
    return {
        "definition": {
            "window": definition.SPIKE_WINDOW,
            "rise": definition.SPIKE_RISE,
            "sigmas": definition.SPIKE_SIGMAS,
            "gap": definition.SPIKE_GAP,
        },
        "factors": scale.factors,
        "sweep": sweep_table(records, "sweep", REFERENCE),
        "rows": {n: {str(f): c for f, c in r.items()} for n, r in rows.items()},
    }


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Training loss of some forms, one panel per multiple that was run, every seed."""
    names = [n for n in DRAWN if n in summary["rows"]]
    factors = [f for f in summary["factors"] if any(summary["rows"][n][str(f)] for n in names)]
    panels = figure.subplots(1, len(factors), sharey=True, squeeze=False)[0]
    for axes, factor in zip(panels, factors):
        for name, colour in zip(names, COLOURS):
            own = [k for k in sorted(records) if k.startswith(f"spikes/{name}/x{factor}/")]
            for i, key in enumerate(own):
                path = smooth(records[key]["train_loss"], 1)
                counts = summary["rows"][name][str(factor)]["spikes"]
                label = f"{name}: spikes by seed {counts}" if i == 0 else None
                axes.plot(range(1, len(path) + 1), path, color=colour, lw=0.8, label=label)
        axes.set(title=f"{factor} times AdamW's lr", xlabel="step", yscale="log")
        axes.grid(alpha=0.25, which="both")
        axes.legend(fontsize=7)
    panels[0].set(ylabel="training loss (nats per byte)")


if __name__ == "__main__":
    main("spikes", __doc__, summarize, draw, (9, 4))
