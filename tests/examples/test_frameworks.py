"""examples/hf_trainer.py and examples/distributed.py run, learn and resume; torch.compile."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from torch import nn

from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.support import ROOT, environment


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trainer_example() -> ModuleType:
    for library in ("transformers", "accelerate"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}, which is not installed")
    return example("hf_trainer")


@pytest.mark.integration
def test_hugging_face_trainer_learns(tmp_path: Path) -> None:
    losses = trainer_example().main(tmp_path)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.integration
def test_hugging_face_trainer_hands_on_weight_decay_and_no_lr(tmp_path: Path) -> None:
    """What docs/using.md says of the two arguments, and why the example repeats its lr."""
    trainer = trainer_example().make_trainer(tmp_path)
    decays = trainer.create_optimizer().param_groups
    assert [g["lr"] for g in decays] == [trainer.args.learning_rate] * 2
    assert [g["weight_decay"] for g in decays] == [trainer.args.weight_decay, 0.0]
    trainer.optimizer, trainer.optimizer_cls_and_kwargs = None, (AdamWStoSign, {})
    own = AdamWStoSign([torch.nn.Parameter(torch.ones(1))]).defaults["lr"]
    assert own != trainer.args.learning_rate
    assert {g["lr"] for g in trainer.create_optimizer().param_groups} == {own}


@pytest.mark.integration
def test_hugging_face_trainer_resumes_bit_for_bit(tmp_path: Path) -> None:
    """From its own checkpoint, which holds codes and scales and is read with weights_only."""
    made = trainer_example()
    whole = made.make_trainer(tmp_path / "a", 20)
    whole.train()
    assert type(whole.optimizer).__name__ == "AcceleratedOptimizer"
    assert isinstance(whole.optimizer.optimizer, AdamWStoSign)
    again = made.make_trainer(tmp_path / "b", 20)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    first, second = (t.optimizer.optimizer.state_dict()["state"] for t in (whole, again))
    assert len(first) > 10
    for i, entry in first.items():
        assert all(different(x, second[i][name]) == 0 for name, x in entry.items())
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert different(p, q) == 0


def torchrun(ranks: int, folder: Path, *arguments: str) -> tuple[float, float]:
    """Losses that examples/distributed.py prints."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*run, *where, str(ROOT / "examples" / "distributed.py"), *arguments],
        env=environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME="lo"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"loss before ([\d.]+), after ([\d.]+)", done.stdout)
    assert found is not None
    return float(found[1]), float(found[2])


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_fsdp_loop_learns_and_goes_on_with_fewer_ranks(tmp_path: Path) -> None:
    options = ("--mode", "fsdp", "--checkpoint", str(tmp_path / "saved"))
    first, last = torchrun(2, tmp_path, *options)
    assert last < 0.9 * first
    resumed, _ = torchrun(1, tmp_path, *options, "--steps", "5")
    assert resumed < 0.95 * first


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_ddp_loop_learns(tmp_path: Path) -> None:
    first, last = torchrun(2, tmp_path, "--mode", "ddp")
    assert last < 0.9 * first


@pytest.mark.parametrize("cls", [AdamWStoSign, LAMB])
@pytest.mark.parametrize("backend", ["reference", "triton", "auto"])
def test_a_compiled_step_gives_the_bits_of_a_plain_one(
    cls: type[FusedOptimizer], backend: str, device: str
) -> None:
    """torch.compile around forward, backward and opt.step(): graph breaks, no errors."""
    where = device if backend == "triton" else "cpu"
    sides: list[list[Any]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1)).to(where)
        optimizer = cls(model.parameters(), lr=1e-2, backend=backend)
        plan = torch.optim.lr_scheduler.StepLR(optimizer, 2)

        def step(x: torch.Tensor, model: Any = model, optimizer: Any = optimizer) -> torch.Tensor:
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        torch.compiler.reset()
        run = torch.compile(step, backend="eager") if compiled else step
        rng = torch.Generator().manual_seed(1)
        for _ in range(4):
            run(torch.randn(8, 32, generator=rng).to(where))
            plan.step()
        sides.append([*model.parameters(), *(optimizer.state[p]["m"] for p in model.parameters())])
    assert all(different(a, b) == 0 for a, b in zip(*sides, strict=True))


def test_compiling_the_step_alone_does_not_recompile_for_ever() -> None:
    model = nn.Linear(32, 4)
    optimizer = AdamWStoSign(model.parameters(), backend="reference")
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for t in range(12):  # more than dynamo's limit of recompilations
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.5 + t)
        step()
    assert all(int(optimizer.state[p]["step"]) == 12 for p in model.parameters())
