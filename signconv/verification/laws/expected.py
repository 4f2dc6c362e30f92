"""expected: see clipped_ratio.py."""

from signconv.verification.laws.base import Law
from signconv.verification.laws.clipped_ratio import check

LAW = Law("clip(ratio)", check)
