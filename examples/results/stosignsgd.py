"""What StoSignSGD's running maximum forgets, and where its momentum starts.

    python examples/results/stosignsgd.py [--quick]

All on FP8 state, long runs at AdamW's best lr.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claims import Record, Summary, main
from noise import at_one_lr, dots
from plan import Scale


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per setting."""
    return {"rows": at_one_lr(records, "stosignsgd", scale.stosignsgd)}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    dots(summary["rows"], figure)


if __name__ == "__main__":
    main("stosignsgd", __doc__, summarize, draw, (8, 2.4))
