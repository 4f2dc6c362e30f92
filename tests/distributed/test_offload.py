"""Parts on the CPU and a mesh on a GPU, as FSDP2 offloads them: without one, by a mesh that says
so.  The same on two GPUs: offload_gpu.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from signconv.generated.came import CAME
from signconv.generated.lamb import LAMB
from signconv.generated.nadam_stosign import NAdamStoSign
from torch import nn

from signconv.runtime import mesh as geometry
from signconv.runtime import sharded
from signconv.runtime.mesh import local
from signconv.verification.bits import different

if not dist.is_available():
    pytest.skip("needs torch.distributed, which this torch lacks", allow_module_level=True)


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("cls", [NAdamStoSign, LAMB, CAME], ids=lambda c: c.__name__)
@pytest.mark.parametrize("gathered", [False, True], ids=["local", "gathered"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_state_lies_beside_the_part_and_not_on_the_mesh(
    backend: str, gathered: bool, cls: Any, mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    if gathered:
        monkeypatch.setattr(sharded, "is_local", lambda *_: False)
    plain = [nn.Parameter(torch.ones(4, 32)), nn.Parameter(torch.ones(5))]
    parts = [nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in plain]
    grads = [torch.linspace(-1, 1, p.numel()).view(p.shape) for p in plain]
    mesh._device_type = "cuda"  # no CUDA device is touched but by collectives
    assert mesh.device_type == "cuda"
    monkeypatch.setattr(sharded, "wire", lambda x: "cpu")
    sides = []
    for ps in (parts, plain):
        opt = cls(ps, lr=0.01, seed=3, backend=backend, skip_nonfinite=True)
        for _ in range(2):
            for p, g in zip(ps, grads, strict=True):
                p.grad = sharded.wrap(g.clone(), p, p.shape) if ps is parts else g.clone()
            opt.step()
        saved = opt.state_dict()
        opt = cls(ps, lr=0.01, seed=3, backend=backend)
        opt.load_state_dict(saved)
        opt.step()
        sides.append([opt.state[p] | {"p": p.detach()} for p in ps])
    for mine, theirs in zip(*sides, strict=True):
        for name, x in mine.items():
            assert local(x).device.type == "cpu"
            assert not different(local(x), theirs[name]), name


def test_what_is_gathered_lies_in_order(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 gathers uneven columns into a larger tensor and returns a view of it: codes and
    scales are read as they lie in memory (two H200 said so)."""
    from torch.distributed.tensor import Shard, distribute_tensor

    def view_of(x: Any) -> torch.Tensor:
        whole = x.full_tensor()
        return torch.nn.functional.pad(whole, (0, 3))[..., : whole.shape[-1]]

    monkeypatch.setattr(geometry, "cut_along_rows", lambda _: None)
    monkeypatch.setattr(sharded, "_full", view_of)
    x = torch.linspace(-1, 1, 4 * 65).view(4, 65)
    p = distribute_tensor(x, mesh, [Shard(1)])
    value, state = sharded.whole(p, {"m": distribute_tensor(2 * x, mesh, [Shard(1)])})
    for got, wanted in ((value, x), (state["m"], 2 * x)):
        assert got.is_contiguous() and torch.equal(got, wanted)
