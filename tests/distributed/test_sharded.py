"""Sharded training is the unsharded one, bit for bit, and checkpoints fit any number of ranks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from signconv.generated.s3 import S3

from signconv.pipeline import build
from signconv.verification.bits import load_class
from tests.support import class_of

if not torch.distributed.is_available():
    pytest.skip("needs torch.distributed, which this torch lacks", allow_module_level=True)

from tests.distributed import dealing, ranks
from tests.distributed.training import (
    ANCHORED,
    SHAPES,
    cases,
    differences,
    extra_cases,
    formerly,
    load,
    mixed,
    result,
    save,
    spawned,
    start,
    together,
    train,
)

CASES = [*cases(), "anchored"]
#: Each loads the checkpoints of the one before it; the first those of one process.
WORLDS = (3, 2)
#: Ranks -> what each of them found.
Worlds = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="signconv_ranks_"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def anchored(folder: Path) -> Path:
    (folder / "anchored_spec.py").write_text(ANCHORED)
    class_of(build(f"{folder / 'anchored_spec.py'}:Anchored"), folder)
    return folder / "anchored.py"


@pytest.fixture(scope="module")
def worlds(folder: Path, anchored: Path) -> Worlds:
    """What the ranks of each world found."""
    checkpoints = folder / "plain"
    for name, (cls, options) in ranks.CHECKPOINTED.items():
        model, optimizer = start(cls, options, None)
        train(model, optimizer, range(2))
        save(checkpoints / name, model, optimizer)
    found: Worlds = {}
    for n in WORLDS:
        mine = folder / str(n)
        shutil.copytree(checkpoints, mine / "in")
        spawned(ranks.run, (n, str(mine), str(anchored)), 240)
        found[n] = [torch.load(mine / f"found{rank}.pt") for rank in range(n)]
        checkpoints = mine / "out"
    return found


def options_of(name: str, anchored: Path) -> tuple[Any, dict[str, Any]]:
    return (load_class(anchored), {}) if name == "anchored" else cases()[name]


def whole(ranks: list[dict[str, Any]], name: str) -> dict[str, torch.Tensor]:
    return together([rank[name] for rank in ranks])


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_gives_the_same_bits(name: str, worlds: Worlds, anchored: Path) -> None:
    cls, options = options_of(name, anchored)
    model, optimizer = start(cls, options, None)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, range(3))
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    wanted = result(model, optimizer)
    for n, found in worlds.items():
        assert differences(whole(found, name), wanted) == [], f"{n} ranks"


@pytest.mark.parametrize("name", ranks.CHECKPOINTED)
def test_checkpoints_load_on_any_number_of_ranks(name: str, worlds: Worlds, folder: Path) -> None:
    """1 -> 3 -> 2 -> 1, each into a fresh optimizer that has never stepped."""
    cls, options = ranks.CHECKPOINTED[name]
    for i, n in enumerate(WORLDS):
        model, optimizer = start(cls, options, None)
        train(model, optimizer, range(2))
        for _ in range(i):  # the ranks of the world before went two steps on, from t = 2
            train(model, optimizer, range(2, 4))
        train(model, optimizer, range(2, 4))
        train(model, optimizer, range(4, 5))
        assert (
            differences(whole(worlds[n], f"checkpoint {name}"), result(model, optimizer)) == []
        ), n
    model, optimizer = start(cls, {**options, "seed": 1}, None)
    load(folder / str(WORLDS[-1]) / "out" / name, model, optimizer)
    other, unbroken = start(cls, options, None)
    for steps in (range(2), *[range(2, 4)] * len(WORLDS), range(5, 6)):
        train(other, unbroken, steps)
    train(model, optimizer, range(5, 6))
    assert differences(result(model, optimizer), result(other, unbroken)) == []


@pytest.mark.parametrize("way", ["full state dict", "plain state dict"])
def test_an_unsharded_state_dict_loads(way: str, worlds: Worlds) -> None:
    model, optimizer = start(AdamWStoSign, {}, None)
    train(model, optimizer, range(3))
    for n, found in worlds.items():
        assert differences(whole(found, way), result(model, optimizer)) == [], f"{n} ranks"


def test_a_state_dict_in_codes_of_before_loads(worlds: Worlds) -> None:
    """Converted on any number of ranks to what one process makes of it."""
    wanted = {}
    for cls in (AdamW, S3):
        model, optimizer = start(cls, {}, None)
        train(model, optimizer, range(2))
        model, other = start(cls, {"seed": 1}, None)
        other.load_state_dict(formerly(optimizer))
        wanted |= {f"{cls.__name__} {n}": x for n, x in result(model, other).items()}
    for n, found in worlds.items():
        assert differences(whole(found, "former state dict"), wanted) == [], f"{n} ranks"


@pytest.mark.parametrize(("name", "cls"), [("skip", AdamWStoSign), ("mixed skip", mixed)])
def test_one_bad_gradient_skips_the_step_on_every_rank(name: str, cls: Any, worlds: Worlds) -> None:
    model, optimizer = start(cls, {"skip_nonfinite": True}, None)
    train(model, optimizer, range(3), ranks.poison)
    wanted = {**result(model, optimizer), "skipped": torch.tensor(1)}
    for n, found in worlds.items():
        assert differences(whole(found, name), wanted) == [], f"{n} ranks"


def test_states_are_placed_as_their_parameters(worlds: Worlds) -> None:
    assert all(rank["placements"] == [] for found in worlds.values() for rank in found)


def test_refusals_say_what_to_do(worlds: Worlds) -> None:
    for rank in (rank for found in worlds.values() for rank in found):
        said = rank["refusals"]
        assert said["partial"].startswith(
            "TypeError: AdamWStoSign takes DTensors that are whole or cut"
        )
        assert "redistribute the gradient" in said["gradient"]
        assert "is no DTensor: place it as the parameter is" in said["extra"]
        assert "is placed (Replicate(),): redistribute it to (Shard(" in said["extra elsewhere"]


def test_inspect_counts_sharded_state(worlds: Worlds) -> None:
    for rank in (rank for found in worlds.values() for rank in found):
        rows = rank["inspect"]
        assert len(rows) == 4 * len(SHAPES)  # parameter, two moments, master
        assert all(row.endswith("True") for row in rows)


def test_master_weights_go_out_and_in(worlds: Worlds) -> None:
    model, optimizer = start(AdamWStoSign, {"dtype": torch.bfloat16, "master": "split"}, None)
    train(model, optimizer, range(2))
    exact = optimizer.master_weights(model)
    wanted = {f"{way} {k}": v for way in ("out", "in") for k, v in exact.items()}
    for n, found in worlds.items():
        assert differences(whole(found, "master weights"), wanted) == [], f"{n} ranks"


def test_replicated_dtensors_step_like_tensors(worlds: Worlds) -> None:
    x = torch.ones(127, requires_grad=True)
    optimizer = LAMB([x])
    x.grad = torch.linspace(-1, 1, 127)
    optimizer.step()
    for rank in (rank for found in worlds.values() for rank in found):
        wanted = {"x": x.detach(), "m": optimizer.state[x]["m"]}
        assert differences(rank["replicated"], wanted) == []


def test_extra_inputs_are_cut_as_parameters_are(worlds: Worlds) -> None:
    for name, cls in extra_cases().items():
        model, optimizer = start(cls, ranks.REFERENCE, None)
        train(model, optimizer, range(3), hessian=True)
        wanted = result(model, optimizer)
        for found in worlds.values():
            got = together([rank["extras"][name] for rank in found])
            assert differences(got, wanted) == [], name


def test_grad_scaler_skips_on_every_rank(worlds: Worlds) -> None:
    for rank in (rank for found in worlds.values() for rank in found):
        assert rank["scaler"] == {"same": True, "scale": 512.0, "steps": {2}}


def test_zero_1_draws_different_noise_on_every_rank(worlds: Worlds) -> None:
    """Ranks agree on what each of them stepped; equal parameters of different ranks part ways, also
    after a checkpoint, whose groups have the first rank's seed."""
    for found in worlds.values():
        first, *others = [rank["zero"] for rank in found]
        for run, moved in enumerate(first):
            assert all(differences(rank[run], moved) == [] for rank in others)
            assert len({tuple(x.flatten().tolist()) for x in moved.values()}) == len(moved)


def test_fully_shard_steps_inside_backward(worlds: Worlds) -> None:
    """Bit for bit as ordinary steps, clipped by the norm over all ranks; vectors that are cut
    inside a block wait for ``step()``."""
    for found in worlds.values():
        for rank in found:
            for wrong, left, norms in rank["release"]:
                assert wrong == [] and left == 2 * 3  # the two biases, at each of three steps
                assert all(
                    abs(mine - total) < 1e-5 * total and total > 0.05 for mine, total in norms
                )
        assert len(found[0]["release"][1][2]) == 3


def test_matrices_are_dealt_out(worlds: Worlds) -> None:
    """Every sign is taken once, by ranks that have about as much to do, and hold what they own
    alone, some of it at a time."""
    shapes = sorted(dealing.SHAPES)
    work = {s: s[0] * s[1] * min(s) for s in shapes}
    every = sum(work[s] for s in shapes)
    wanted = dealing.results(None, None)
    for n, found in worlds.items():
        counted = [rank["counted"] for rank in found]
        assert sorted(s for rank in counted for s in rank["signs"]) == shapes, f"{n} ranks"
        for rank in counted:
            done = sum(work[s] for s in rank["signs"])
            assert done <= every / n + max(work.values())
            assert sorted(s for batch in rank["held"] for s in batch) == sorted(rank["signs"])
            for batch in rank["held"]:
                assert len(batch) == 1 or dealing.bytes_of(batch) <= dealing.BATCH_BYTES
            assert {*rank["beside"]} == {0}
        # To the owner once, and without the gradient back; every rank had all, gathered
        sent = sum(rank["received"] for rank in counted)
        assert sent < 2 * (n - 1) / n * dealing.bytes_of(shapes)
        assert all(differences(rank["dealt"], wanted) == [] for rank in found)


def test_an_owner_that_fails_leaves_nobody_waiting(worlds: Worlds) -> None:
    """Of a hybrid neither in the part that fails nor in the next one, where what others own is
    stepped; what the owner held goes with the error."""
    for n, found in worlds.items():
        for rank, (message, moved, left) in enumerate(x["failing"] for x in found):
            assert message == ("" if rank else "no memory for a sign")
            assert moved == [False] + [True] * (n - 1)
            assert left == 0
