"""torchtitan's container and DeepSpeed's ZeRO with optimizers of ours, on ranks of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from signconv.verification.bits import different
from tests.integrations import ranks

pytestmark = pytest.mark.integration


def test_torchtitan_trains_and_goes_on_with_fewer_ranks(tmp_path: Path) -> None:
    pytest.importorskip("torchtitan.components.optimizer", exc_type=ImportError)
    for part, count in (("first", 2), ("second", 1)):
        (tmp_path / part).mkdir()
        mp.spawn(ranks.titan, args=(count, str(tmp_path), part), nprocs=count)
    one, two = (torch.load(tmp_path / f"{part}.pt") for part in ("first", "second"))
    assert one.keys() == two.keys()
    assert all(different(one[n], two[n]) == 0 for n in one)
    start = dict(ranks.model().named_parameters())
    assert all(different(one[n], start[n].detach()) for n in one)


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_trains_and_resumes(tmp_path: Path, stage: int) -> None:
    pytest.importorskip("deepspeed", exc_type=ImportError)
    mp.spawn(ranks.deepspeed, args=(2, str(tmp_path), stage), nprocs=2)
