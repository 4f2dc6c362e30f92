"""Parameters cut in any way over a mesh of two dimensions train as whole ones, bit for bit."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import nn

if not torch.distributed.is_available():
    pytest.skip("needs torch.distributed, which this torch lacks", allow_module_level=True)

from tests.distributed import dealing, meshes
from tests.distributed.training import differences, spawned

STEPS, RANKS = 3, 4
CASES = meshes.cases()


@pytest.fixture(scope="module")
def found() -> Any:
    """What each rank found."""
    folder = Path(tempfile.mkdtemp(prefix="signconv_meshes_"))
    spawned(meshes.run, (RANKS, str(folder), STEPS), 300)
    yield [torch.load(folder / f"found{rank}.pt") for rank in range(RANKS)]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", CASES)
def test_any_cut_gives_the_same_bits(name: str, found: list[dict[str, Any]]) -> None:
    params, optimizer = meshes.started(CASES[name], None)
    before = [p.detach().clone() for p in params]
    meshes.stepped(params, optimizer, range(STEPS), poison=name == "skip")
    moved = [not torch.equal(p, q) for p, q in zip(params, before, strict=True)]
    assert all(m for m, p in zip(moved, params, strict=True) if p.dim())  # one number may stay
    wanted = meshes.results(params, optimizer)
    for rank in found:
        assert differences(rank[name], wanted) == []


def test_parts_lie_where_torch_puts_them(found: list[dict[str, Any]]) -> None:
    assert all(rank["placed"] == [] for rank in found)


def test_only_cuts_inside_blocks_need_the_others(found: list[dict[str, Any]]) -> None:
    inside = {(3, 96), (5, 100), (4, 33), (70,), (4, 3, 64), (4, 4, 40), (2, 3, 64)}
    wanted = [i for i, (shape, _) in enumerate(meshes.CUT) if shape in inside]
    assert [rank["gathered"] for rank in found] == [wanted] * RANKS


def test_master_weights_of_cut_parameters(found: list[dict[str, Any]]) -> None:
    params, optimizer = meshes.started(CASES["split"], None)
    meshes.stepped(params, optimizer, range(2))
    model = nn.Module()
    model.weights = nn.ParameterList(params)
    wanted = optimizer.master_weights(model)
    assert all(differences(rank["master weights"], wanted) == [] for rank in found)


def test_the_point_of_evaluation(found: list[dict[str, Any]]) -> None:
    wanted = meshes.evaluated(None)
    assert differences(*wanted)
    for rank in found:
        assert [differences(*x) for x in zip(rank["evaluated"], wanted, strict=True)] == [[], []]


@pytest.mark.parametrize("name", meshes.WAYS)
def test_models_that_torch_cuts(name: str, found: list[dict[str, Any]]) -> None:
    """Three steps; and two more from a checkpoint that another mesh wrote."""
    model = meshes.Model()
    optimizer = AdamWStoSign(model.parameters(), seed=7, backend="reference")
    for way, steps in ((name, range(3)), (f"{name}, resumed", range(3, 5))):
        meshes.trained(model, optimizer, steps)
        wanted = meshes.results([*model.parameters()], optimizer)
        for rank in found:
            if way in rank["parallel"]:
                assert differences(rank["parallel"][way], wanted) == [], way
    assert sum("resumed" in way for way in found[0]["parallel"]) == len(meshes.WAYS) - 1


def test_what_a_user_keeps_stays(found: list[dict[str, Any]]) -> None:
    assert all(torch.equal(rank["own"], torch.arange(10.0)) for rank in found)


@pytest.mark.parametrize("name", meshes.DEALT)
def test_matrices_are_dealt_out(name: str, found: list[dict[str, Any]]) -> None:
    """Over all ranks that share them, each replica by itself."""
    wanted = dealing.results(None, None)
    assert all(differences(rank[f"dealt {name}"], wanted) == [] for rank in found)
    replicas = 1 if name == "both" else 2
    signs = [s for rank in found for s in rank[f"counted {name}"]["signs"]]
    assert sorted(signs) == sorted(dealing.SHAPES * replicas)
    ranks = RANKS // replicas
    every = sum(math.prod(s) for s in dealing.SHAPES)
    for rank in found:
        held = [s for batch in rank[f"counted {name}"]["held"] for s in batch]
        assert sum(math.prod(s) for s in held) < 1.5 * every / ranks
        assert {*rank[f"counted {name}"]["beside"]} == {0}
