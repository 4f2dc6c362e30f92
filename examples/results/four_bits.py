"""Moments of 4 bits beside 8 and 32.

    python examples/results/four_bits.py [--quick]

Long runs, each optimizer at the best lr known for it.  AdamW and AdamW + stosign on FP8 are the
rows of noise.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claims import Record, Summary, main
from noise import at_one_lr, dots
from plan import Scale


def summarize(records: Mapping[str, Record], scale: Scale) -> Summary:
    """One row per optimizer and storage."""
    return {"rows": at_one_lr(records, "four_bits", scale.four_bits)}


def draw(records: Mapping[str, Record], summary: Summary, figure: Any) -> None:
    dots(summary["rows"], figure)


if __name__ == "__main__":
    main("four_bits", __doc__, summarize, draw, (8, 4))
