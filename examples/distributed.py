"""A plain training loop on several ranks, DDP or FSDP2, with a checkpoint to resume from.

    torchrun --nproc-per-node 2 examples/distributed.py --mode fsdp --checkpoint build/saved

Runs with NCCL where there are GPUs, otherwise with gloo on the CPU.  Run it again, on any number
of ranks, and it goes on from the checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def train(mode: str, steps: int, checkpoint: Path | None) -> list[float]:
    """Train on this rank, in a process group that is there; returns the losses."""
    cuda = torch.cuda.is_available()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = f"cuda:{rank % torch.cuda.device_count()}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)

    torch.manual_seed(0)  # the same weights on every rank
    model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10)).to(device)
    if mode == "fsdp":
        mesh = init_device_mesh("cuda" if cuda else "cpu", (ranks,))
        for layer in (model[0], model[2], model):  # type: ignore[index]
            fully_shard(layer, mesh=mesh)
    else:
        model = DistributedDataParallel(model)
    optimizer = AdamWStoSign(model.parameters(), lr=2e-3)  # after the model is wrapped

    if checkpoint is not None and checkpoint.exists():
        weights, state = get_state_dict(model, optimizer)
        load({"model": weights, "optimizer": state}, checkpoint_id=checkpoint)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)

    data = torch.Generator().manual_seed(1 + rank)  # different data on every rank
    target = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).to(device)
    losses = []
    for _ in range(steps):
        x = torch.randn(32, 64, generator=data).to(device)
        loss = nn.functional.mse_loss(model(x), x @ target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    if checkpoint is not None:
        weights, state = get_state_dict(model, optimizer)
        save({"model": weights, "optimizer": state}, checkpoint_id=checkpoint)
    if rank == 0:
        print(f"{mode}, {ranks} ranks: loss before {losses[0]:.3f}, after {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train(options.mode, options.steps, options.checkpoint)
    dist.barrier()
    # Only now, when the model is gone: a DDP model that outlives its group can hang
    dist.destroy_process_group()
