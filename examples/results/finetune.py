"""Fine-tuning: AdamW's pretrained GPT goes on with C, C++ and CUDA headers.

    python examples/results/finetune.py [--quick]

The source: on GSM8K and MATH with 7B models StoSignSGD beats AdamW and SignSGD (77.33 against
74.37 and 71.95 on GSM8K, arXiv 2604.15416).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from claims import Record, Summary, main, of_kind, spread, sweep_table
from plan import Scale
from runs import final_loss


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per optimizer: loss on the new text, and on the old before and after."""
    rows = []
    for name in scale.finetuned:
        own = of_kind(records, "finetune", name)
        if not own:
            continue
        after = [r["other_held_out"]["python"][1] for r in own]
        rows.append(
            {
                "optimizer": name,
                "lr": own[0]["lr"],
                "before": own[0]["held_out"][0][1],
                "held_out": spread([final_loss(r) for r in own]),
                "old_text_before": own[0]["other_held_out"]["python"][0],
                "old_text_after": spread([math.inf if x is None else x for x in after]),
                "state_bytes_per_parameter": round(own[0]["state_bytes_per_parameter"], 3),
            }
        )
    sweeps = {n: sweep_table(records, "finetune-sweep", n) for n in scale.finetuned}
    return {"rows": rows, "sweeps": sweeps}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Left the loss on the new text over the steps, right the sweeps."""
    left, right = figure.subplots(1, 2)
    colours = ("tab:blue", "tab:red", "tab:green", "tab:orange", "tab:purple")
    for row, colour in zip(summary["rows"], colours):
        name = row["optimizer"]
        for i, record in enumerate(of_kind(records, "finetune", name)):
            points = [(s, x) for s, x in record["held_out"] if x is not None]
            label = f"{name} (lr {row['lr']:g})" if i == 0 else None
            left.plot(*zip(*points), color=colour, lw=1.2, marker="o", ms=3, label=label)
        points = [(lr, x) for lr, x in summary["sweeps"][name] if x is not None]
        if points:
            right.plot(*zip(*points), color=colour, marker="o", label=name)
    left.set(xlabel="step", ylabel="held-out loss on headers (nats per byte)")
    right.set(xlabel="lr", xscale="log", title="the sweep, seed 0")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)


if __name__ == "__main__":
    main("finetune", __doc__, summarize, draw)
