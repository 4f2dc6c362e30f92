"""Which part of StoSignSGD matters: plain, expected and stochastic-sign forms side by side.

    python examples/results/ablation.py [--quick]

The expected form is the mean of the stochastic sign, clip(m / sigma): what is left of it without
its noise.  All on FP8 state, each at its own lr.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claims import Record, Summary, main, of_kind, spread, sweep_table
from plan import Scale
from runs import final_loss

FORMS = {  # (base, form) of each name
    "sgd": ("sgd", "plain"),
    "sgd-expected": ("sgd", "expected"),
    "stosignsgd": ("sgd", "stosign"),
    "adamw": ("adamw", "plain"),
    "adamw-expected": ("adamw", "expected"),
    "adamw-stosign": ("adamw", "stosign"),
    "adamax": ("adamax", "plain"),
    "adamax-expected": ("adamax", "expected"),
    "adamax-stosign": ("adamax", "stosign"),
}
COLOURS = {"plain": "tab:grey", "expected": "tab:blue", "stosign": "tab:red"}


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per name."""
    rows = []
    for name in scale.ablation:
        if own := of_kind(records, "short", name):
            base, form = FORMS[name]
            rows.append(
                {
                    "optimizer": name,
                    "base": base,
                    "form": form,
                    "lr": own[0]["lr"],
                    "held_out": spread([final_loss(r) for r in own]),
                    "update_rms": own[0]["update_rms"],
                }
            )
    return {"rows": rows, "sweeps": {n: sweep_table(records, "sweep", n) for n in scale.ablation}}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    """Final held-out loss, one group per base optimizer, every seed a mark."""
    axes = figure.subplots()
    bases = list(dict.fromkeys(row["base"] for row in summary["rows"]))
    seen = set()
    for row in summary["rows"]:
        place = bases.index(row["base"]) + 0.25 * (list(COLOURS).index(row["form"]) - 1)
        losses = [final_loss(r) for r in of_kind(records, "short", row["optimizer"])]
        label = None if row["form"] in seen else row["form"]
        seen.add(row["form"])
        axes.plot([place] * len(losses), losses, "o", color=COLOURS[row["form"]], label=label)
        axes.annotate(f"lr {row['lr']:g}", (place, max(losses)), (3, 5), fontsize=7,
                      textcoords="offset points")  # fmt: skip
    axes.set_xticks(range(len(bases)), bases)
    axes.set(ylabel="final held-out loss (nats per byte)", xlim=(-0.6, len(bases) - 0.4))
    axes.grid(alpha=0.25)
    axes.legend()


if __name__ == "__main__":
    main("ablation", __doc__, summarize, draw, (8, 4))
