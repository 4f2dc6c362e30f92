"""The sign's noise and 4-bit moments at 114 million parameters.

    python examples/results/large.py [--quick]

All at one lr, the best of AdamW at 26 million.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claims import Record, Summary, main
from noise import at_one_lr, dots
from plan import Scale


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per optimizer."""
    return {"rows": at_one_lr(records, "large", scale.large)}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    dots(summary["rows"], figure)


if __name__ == "__main__":
    main("large", __doc__, summarize, draw, (8, 2.4))
