"""Nothing is held after a step that torch would free: gradients, copies, parameters swapped out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor, nn

from tests.support.doors import BACKENDS

if not dist.is_available():
    pytest.skip("needs torch.distributed, which this torch lacks", allow_module_level=True)


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def storages(tensors: list[Tensor]) -> list[Any]:
    return [weakref.ref(x.untyped_storage()) for x in tensors]


def alive(references: list[Any]) -> int:
    gc.collect()
    return sum(r() is not None for r in references)


def sized(numel: int) -> int:
    """Tensors of so many elements that exist."""
    gc.collect()
    found = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
    return len({x.data_ptr() for x in found if x.numel() == numel})


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_shards_are_freed(backend: str, mesh: Any, device: str) -> None:
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(32, 2), nn.Linear(2, 32))
    fully_shard(model, mesh=mesh)
    opt = AdamWStoSign(model.parameters(), backend=backend)
    for _ in range(2):
        model(torch.ones(1, 32)).square().mean().backward()
        held = storages([p.grad.to_local() for p in model.parameters()])
        assert alive(held) == len(held) == 4
        opt.step()
        opt.zero_grad(set_to_none=True)
        assert alive(held) == 0
        assert all(p._version > 0 for p in model.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_of_strided_tensors_are_freed(backend: str, device: str) -> None:
    p = nn.Parameter(torch.zeros(32, 97).t())  # as many elements as nothing else has
    opt = AdamWStoSign([p], backend=backend)
    for _ in range(2):
        p.grad = torch.ones(32, 97).t()
        opt.step()
        opt.zero_grad()
        assert sized(32 * 97) == 3  # the parameter and the codes of two moments


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_plain_parameters_are_freed(backend: str, device: str) -> None:
    ps = [nn.Parameter(torch.zeros(4, 32)), nn.Parameter(torch.zeros(5))]
    opt = AdamWStoSign(ps, backend=backend)
    for _ in range(2):
        for p in ps:
            p.grad = torch.ones_like(p)
        held = storages([p.grad for p in ps])
        opt.step()
        opt.zero_grad()
        assert alive(held) == 0


@pytest.mark.parametrize("stepped", [False, True], ids=["new", "stepped"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_parameters_that_shards_replaced_are_freed(backend: str, stepped: bool, mesh: Any) -> None:
    """As accelerate does with FSDP2: the group gets DTensors, and their moments where there are."""
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = [nn.Parameter(torch.zeros(4, 32))]
    opt = AdamWStoSign(whole, backend=backend)
    if stepped:
        whole[0].grad = torch.ones(4, 32)
        opt.step()
        opt.state.clear()
    shards = [nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in whole]
    held = storages(whole)
    opt.param_groups[0]["params"] = shards
    del whole
    for p in shards:
        p.grad = torch.ones_like(p)
    opt.step()
    opt.zero_grad()
    assert alive(held) == 0
