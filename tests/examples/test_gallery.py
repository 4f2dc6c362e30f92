"""What the site's curves on digits are made of: runs at the best lr of each sweep."""

from __future__ import annotations

import sys

import pytest

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "examples" / "results"))
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
import gallery


def record(kind: str, lr: float, seed: int, *held_out: tuple[int, float]) -> dict:
    return {
        "id": f"{kind}/a/{lr:g}/{seed}",
        "optimizer": "a",
        "lr": lr,
        "seed": seed,
        "status": "ok",
        "train_loss": {"0": 1.0},
        "held_out": [list(x) for x in held_out],
    }


SWEEP = [
    record("sweep", lr, 11, (16, 3.0), (32, end)) for lr, end in ((0.1, 0.9), (0.3, 0.2), (1, 0.5))
]
OLD = [record("digits", 0.1, seed, (16, 2.0), (32, 9.0)) for seed in (1, 2, 3)]
BEST = [record("digits", 0.3, seed, (16, 1.0), (32, 0.1 * seed)) for seed in (1, 2, 3)]


def test_a_row_is_of_the_best_lr_alone() -> None:
    """Runs at what was best before the sweep went on do not count."""
    records = {r["id"]: r for r in (*SWEEP, *OLD, *BEST)}
    (row,) = gallery.summarize(records, ["a"])["rows"]
    assert row["lr"] == 0.3 and row["runs"] == 3
    assert row["held_out"] == [[16, 1.0], [32, pytest.approx(0.2)]]
    assert not gallery.summarize({r["id"]: r for r in (*SWEEP, *OLD)}, ["a"])["rows"]


def test_what_is_kept_is_enough_to_go_on() -> None:
    slim = {r["id"]: gallery.slim(r) for r in (*SWEEP, *BEST)}
    assert all("train_loss" not in r for r in slim.values())
    assert slim["sweep/a/0.1/11"]["held_out"] == [[32, 0.9]]
    whole = {r["id"]: r for r in (*SWEEP, *BEST)}
    assert gallery.summarize(slim, ["a"]) == gallery.summarize(whole, ["a"])


def test_what_needs_an_extra_input_is_not_trained() -> None:
    assert {n for n, e in gallery.ENTRIES.items() if gallery.lacking(e)} == {"sophia-fp8-fp32"}
