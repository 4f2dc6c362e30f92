"""The tables of the README that are arithmetic: bytes of state, and what fits on a GPU."""

from __future__ import annotations

import re

import pytest
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_fp4 import AdamWFP4

from tests.support import ROOT

TEXT = (ROOT / "README.md").read_text("utf-8")
#: Bytes a parameter: weight, gradient, state.
STATE = {c: sum(m.stored.bytes_per_element for m in c.program.moments) for c in (AdamW, AdamWFP4)}
SPLIT = 2 + 4 / 32  # 16 bits, and a checksum of 32 for each row of 32
WAYS = {
    "`torch.optim.AdamW`, all": 4 + 4 + 8,
    "FP8, bf16 weights with exact masters": 2 + 2 + SPLIT + STATE[AdamW],
    "FP8, bf16 weights |": 2 + 2 + STATE[AdamW],
    "4 bits": 2 + 2 + STATE[AdamWFP4],
    "the same, `gradient_release`": 2 + STATE[AdamWFP4],
    "the same, state in host memory": 2,
}
SHARE = 0.85


@pytest.mark.parametrize("way", WAYS)
def test_what_fits(way: str) -> None:
    (line,) = [x for x in TEXT.splitlines() if x.startswith(f"| {way}")]
    size, *fits = [float(x) for x in line.strip("|").split("|")[1:]]
    assert size == pytest.approx(WAYS[way], abs=0.0051)
    assert fits == [pytest.approx(SHARE * g / WAYS[way], abs=0.051) for g in (24, 48, 80, 141)]


@pytest.mark.parametrize(("state", "cls"), [("fp8", AdamW), ("fp4", AdamWFP4)])
def test_bytes_of_state(state: str, cls: type) -> None:
    found = re.search(rf"\| \*\*signconv, `--state {state}`.*", TEXT)
    assert found
    size, *models = re.findall(r"\*\*([\d.]+)(?: GB)?\*\*", found[0].split("|", 2)[2])[:4]
    assert float(size) == pytest.approx(STATE[cls], abs=0.0051)
    for shown, billions in zip(models, (1.236, 8.03, 70.55), strict=True):
        assert float(shown) == pytest.approx(STATE[cls] * billions, rel=0.03)
